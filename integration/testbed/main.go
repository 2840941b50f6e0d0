package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// Exit statuses of kvmhost's own.
const (
	statusTimeout = 124
	statusMachine = 125
	statusUsage   = 126
)

// errTimeout is the cause of a context that the time limit ended.
var errTimeout = errors.New("time limit")

// settings is everything that the environment decides.
type settings struct {
	mode    string // "direct", "nested", or "" for a probe
	timeout time.Duration
	cache   string // folder for what later runs use again
	mem     string // QEMU's syntax
	cpus    int
	icount  bool
	log     string // console log to keep, or ""
	out     string // folder shared read-write, or ""
	qemu    string // QEMU binary, or "" for the choice of findQEMU
	threads string // QEMU's way to run CPUs: "multi" or "single"
	kvmAMD  string // the module's parameters
	env     []string
}

func main() {
	// Children get SIGKILL when the thread that started them ends: it must be this one, for ever.
	runtime.LockOSThread()
	os.Exit(run(os.Args[1:]))
}

func run(args []string) int {
	if len(args) == 0 {
		fmt.Fprintln(os.Stderr, "usage: kvmhost CMD [ARG…] | kvmhost --where   (variables: integration/testbed/doc.go)")
		return statusUsage
	}
	s, err := readSettings(os.Getenv, os.Environ())
	if err != nil {
		say("%v", err)
		return statusUsage
	}
	if args[0] == "--where" {
		if s.mode == "" {
			s.mode, _ = probe()
		}
		fmt.Println(s.mode)
		return 0
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	defer stop()
	ctx, cancel := context.WithTimeoutCause(ctx, s.timeout, errTimeout)
	defer cancel()

	if s.mode == "" {
		var why error
		if s.mode, why = probe(); why != nil {
			say("nested machine (no KVM here: %v)", why)
		} else {
			say("real KVM")
		}
	} else {
		say("%s (forced by KVMHOST)", s.mode)
	}
	work, err := newWorkDir(s.cache)
	if err != nil {
		say("%v", err)
		return statusMachine
	}
	defer work.remove()

	var status int
	if s.mode == "direct" {
		status, err = runDirect(ctx, s, work.path, args)
	} else {
		status, err = runNested(ctx, s, work.path, args)
	}
	switch {
	case errors.Is(context.Cause(ctx), errTimeout):
		say("killed after %v (KVMHOST_TIMEOUT): %s", s.timeout, args[0])
		return statusTimeout
	case ctx.Err() != nil:
		say("interrupted")
		return 128 + int(syscall.SIGINT)
	case err != nil:
		say("%v", err)
		return statusMachine
	}
	return status
}

// probe chooses where a command runs, and says why not here.
func probe() (mode string, why error) {
	if err := probeKVM(); err != nil {
		return "nested", err
	}
	return "direct", nil
}

// readSettings turns variables into settings, or says which one is wrong.
func readSettings(get func(string) string, environ []string) (settings, error) {
	s := settings{
		mode: get("KVMHOST"), timeout: 30 * time.Minute, mem: "6G", cpus: min(2, runtime.NumCPU()),
		icount: get("ICOUNT") != "" && get("ICOUNT") != "0",
		log:    get("KVMHOST_LOG"), out: get("KVMHOST_OUT"), qemu: get("KVMHOST_QEMU"),
		threads: cmp.Or(get("KVMHOST_THREADS"), steadyThreads),
		kvmAMD:  cmp.Or(get("KVMHOST_KVM_AMD"), steadyKVMAMD),
	}
	if s.mode != "" && s.mode != "direct" && s.mode != "nested" {
		return s, fmt.Errorf("KVMHOST=%q: must be direct or nested", s.mode)
	}
	if v := get("KVMHOST_TIMEOUT"); v != "" {
		n, err := strconv.Atoi(v)
		if err != nil || n < 1 {
			return s, fmt.Errorf("KVMHOST_TIMEOUT=%q: must be a number of seconds, 1 or more", v)
		}
		s.timeout = time.Duration(n) * time.Second
	}
	if v := get("CPUS"); v != "" {
		n, err := strconv.Atoi(v)
		if err != nil || n < 1 || n > 255 {
			return s, fmt.Errorf("CPUS=%q: must be 1 to 255", v)
		}
		s.cpus = n
	}
	if s.icount && get("CPUS") == "" {
		s.cpus = 1 // what is measured is the sum of what they do: more have their turns, no more speed
	}
	if v := get("MEM"); v != "" {
		if n, err := strconv.Atoi(strings.TrimRight(v, "MG")); err != nil || n < 1 {
			return s, fmt.Errorf("MEM=%q: must be a size such as 4096M or 6G", v)
		}
		s.mem = v
	}
	base := get("XDG_CACHE_HOME")
	if base == "" {
		base = filepath.Join(get("HOME"), ".cache")
	}
	if !filepath.IsAbs(base) {
		return s, fmt.Errorf("no cache folder: HOME or XDG_CACHE_HOME must be an absolute path")
	}
	s.cache = filepath.Join(base, "fcshim")
	var err error
	if s.out != "" {
		if s.out, err = filepath.Abs(s.out); err == nil {
			err = os.MkdirAll(s.out, 0o755)
		}
		if err != nil {
			return s, fmt.Errorf("KVMHOST_OUT: %w", err)
		}
	}
	s.env = handedOn(environ, strings.Fields(get("KVMHOST_ENV")))
	return s, nil
}

// handedOn picks the variables that CMD gets.
func handedOn(environ, more []string) []string {
	names := map[string]bool{"HOME": true, "PATH": true, "CI": true, "LANG": true, "TERM": true, "ICOUNT": true}
	for _, n := range more {
		names[n] = true
	}
	var env []string
	for _, kv := range environ {
		name, _, _ := strings.Cut(kv, "=")
		if names[name] || strings.HasPrefix(name, "FC_") || strings.HasPrefix(name, "GO") {
			env = append(env, kv)
		}
	}
	return env
}

func say(format string, args ...any) {
	fmt.Fprintf(os.Stderr, "kvmhost: "+format+"\n", args...)
}
