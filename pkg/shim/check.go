package shim

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/containerd/containerd/v2/defaults"
	"github.com/containerd/log"

	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/kvm"
)

const (
	// checkTimeout bounds what a check waits for, a VM's boot apart.
	checkTimeout = 10 * time.Second
	checkUsage   = `Usage: containerd-shim-fc-v2 check [--config FILE] [--address SOCKET]

Tells whether this host has what io.containerd.fc.v2 needs, and what to do about what it lacks. The exit status is 1 if anything
fails; a warning is about what some containers may need.

  --config FILE     the settings to look at (default %s, if it is there)
  --address SOCKET  containerd's (default %s)
`
)

// verdict is what a check finds.
type verdict int

const (
	fine verdict = iota
	doubt
	failure
)

func (v verdict) String() string { return [...]string{"ok", "warn", "FAIL"}[v] }

// finding is a line of the answer, and what to do about it.
type finding struct {
	verdict verdict
	about   string // "kernel"
	what    string // "/x: no such file"
	advice  string // empty if nothing is to be done
}

// checkup looks at a host. Its fields are what tests put other hosts in with.
type checkup struct {
	root    string // before the paths of the host's files; empty for the host itself
	config  string
	address string
	self    string // the shim's binary
	uid     int

	kvm  func() (maxVCPUs int, err error)
	run  func(ctx context.Context, program string, args ...string) (stdout string, err error)
	peer func(socket string) (pid int, err error)
	boot func(ctx context.Context, s *Settings) (what string, err error)

	findings []finding
}

// Check is `containerd-shim-fc-v2 check`: it prints what it finds and returns the exit status.
func Check(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	flags := flag.NewFlagSet("check", flag.ContinueOnError)
	flags.SetOutput(stderr)
	flags.Usage = func() { fmt.Fprintf(stderr, checkUsage, DefaultConfigPath, defaults.DefaultAddress) }
	c := &checkup{uid: os.Geteuid(), kvm: openKVM, run: runProgram, peer: peerOf, boot: bootGuest}
	flags.StringVar(&c.config, "config", "", "")
	flags.StringVar(&c.address, "address", defaults.DefaultAddress, "")
	switch err := flags.Parse(args); {
	case errors.Is(err, flag.ErrHelp):
		return 0
	case err != nil:
		return 2
	case flags.NArg() > 0:
		fmt.Fprintf(stderr, "check: unknown argument %q\n", flags.Arg(0))
		return 2
	}
	self, err := os.Executable()
	if err != nil {
		fmt.Fprintln(stderr, "check: find the shim's own path:", err)
		return 1
	}
	c.self = self
	_ = log.SetLevel("warn") // the rest is in the findings
	c.all(ctx)
	return c.print(stdout)
}

// print writes the findings and returns the exit status.
func (c *checkup) print(w io.Writer) int {
	var counts [failure + 1]int
	for _, f := range c.findings {
		counts[f.verdict]++
		fmt.Fprintf(w, "%-4s  %s: %s\n", f.verdict, f.about, f.what)
		if f.advice != "" {
			fmt.Fprintf(w, "      %s\n", f.advice)
		}
	}
	switch {
	case counts[failure] > 0:
		fmt.Fprintf(w, "\n%d of %d checks failed: %s will not work here\n", counts[failure], len(c.findings), RuntimeName)
		return 1
	case counts[doubt] > 0:
		fmt.Fprintf(w, "\n%s can work here; %d of %d checks want a look\n", RuntimeName, counts[doubt], len(c.findings))
	default:
		fmt.Fprintf(w, "\n%s can work here\n", RuntimeName)
	}
	return 0
}

func (c *checkup) add(v verdict, about, what, advice string) {
	if v == fine {
		advice = ""
	}
	c.findings = append(c.findings, finding{v, about, what, advice})
}

// judge adds a failure if err says one, or else what is fine.
func (c *checkup) judge(about, what string, err error, advice string) bool {
	if err != nil {
		c.add(failure, about, err.Error(), advice)
		return false
	}
	c.add(fine, about, what, "")
	return true
}

func (c *checkup) path(elem ...string) string {
	return filepath.Join(append([]string{c.root + "/"}, elem...)...)
}

// openKVM asks of KVM what fc-vmm will ask of it.
func openKVM() (int, error) {
	system, err := kvm.Open("")
	if err != nil {
		return 0, err
	}
	defer system.Close()
	n, err := system.MaxVCPUs()
	if err != nil {
		return 0, err
	}
	vm, err := system.CreateVM()
	if err != nil {
		return 0, fmt.Errorf("make a VM: %w", err)
	}
	return n, vm.Close()
}

// runProgram runs a program that ends by itself, and returns the first line that it prints.
func runProgram(ctx context.Context, program string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, checkTimeout)
	defer cancel()
	out, err := exec.CommandContext(ctx, program, args...).Output()
	line, _, _ := strings.Cut(string(out), "\n")
	if err != nil && ctx.Err() != nil {
		err = fmt.Errorf("it has not ended within %v", checkTimeout)
	}
	return line, err
}
