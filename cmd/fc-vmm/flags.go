package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"strings"
)

const usage = `fc-vmm runs one microVM, driven over Firecracker's HTTP API on a Unix socket.

Usage: fc-vmm [OPTION]...      (--name VALUE and --name=VALUE are the same)
       fc-vmm hold ...          the process that stands for a container on the
                                host; the shim starts it

  --api-sock PATH      socket to make and serve the API on; must not exist yet
                       (default /run/firecracker.socket)
  --api-fd N           serve the API on this inherited, listening socket instead
  --no-api             serve no API; needs --config-file
  --id ID              name of the microVM: 1 to 64 letters, digits, hyphens
                       (default anonymous-instance)
  --config-file FILE   boot from this JSON document: boot-source, drives,
                       machine-config, vsock, entropy, serial, filesystems
  --log-path FILE      append the log to this file, not to standard error
  --level LEVEL        Off, Error, Warn, Info, Debug or Trace (default Info)
  --parent-fd N        inherited read end of a pipe: when its other end closes,
                       this process is killed at once, whatever it is doing
  --boot-timer         give the guest a byte at 0xc0000000: when its init writes 123
                       there, log the wall and CPU time since InstanceStart
  --start-time-us N, --start-time-cpu-us N, --parent-cpu-time-us N
                       when whoever started this process began to, in us: by
                       CLOCK_MONOTONIC; by this process's CPU time; and the CPU
                       time that was spent on it before. The log then has the
                       time from there until the API was served
  --version            print the version
  --help               print this

By hand:
  fc-vmm --api-sock /tmp/fc.sock &
  curl --unix-socket /tmp/fc.sock -X PUT http://localhost/boot-source \
       -d '{"kernel_image_path": "vmlinux", "boot_args": "console=ttyS0"}'
  curl --unix-socket /tmp/fc.sock -X PUT http://localhost/actions \
       -d '{"action_type": "InstanceStart"}'

The serial console is standard output unless the configuration says otherwise.

Exit status:
   0  the guest rebooted, or fc-vmm was told to stop (SIGTERM, SIGINT)
   1  arguments, configuration, socket or host were at fault: no guest ran
  80  the guest powered off
  81  the guest's kernel panicked, and its pvpanic driver was there to tell;
      before that, or where the driver is a module not loaded (Debian's kernels),
      a panic is a reboot (0) with panic=1 in boot_args, else a hang
  82  triple fault, error of KVM, or a stop that did not end in time
`

// settings are the command line.
type settings struct {
	apiSock     string
	apiFD       int
	noAPI       bool
	id          string
	configFile  string
	logPath     string
	level       string
	parentFD    int
	bootTimer   bool
	startup     startup
	showVersion bool
}

// parseFlags reads the command line. flag.ErrHelp asks for help.
func parseFlags(args []string) (settings, error) {
	var s settings
	f := flag.NewFlagSet("fc-vmm", flag.ContinueOnError)
	f.SetOutput(io.Discard)
	f.StringVar(&s.apiSock, "api-sock", "/run/firecracker.socket", "")
	f.IntVar(&s.apiFD, "api-fd", -1, "")
	f.BoolVar(&s.noAPI, "no-api", false, "")
	f.StringVar(&s.id, "id", "anonymous-instance", "")
	f.StringVar(&s.configFile, "config-file", "", "")
	f.StringVar(&s.logPath, "log-path", "", "")
	f.StringVar(&s.level, "level", "Info", "")
	f.IntVar(&s.parentFD, "parent-fd", -1, "")
	f.BoolVar(&s.bootTimer, "boot-timer", false, "")
	f.Uint64Var(&s.startup.wallUS, "start-time-us", 0, "")
	f.Uint64Var(&s.startup.cpuUS, "start-time-cpu-us", 0, "")
	f.Uint64Var(&s.startup.parentCPUUS, "parent-cpu-time-us", 0, "")
	f.BoolVar(&s.showVersion, "version", false, "")
	if err := f.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return s, err
		}
		return s, fmt.Errorf("%w (--help lists the options)", err)
	}
	given := make(map[string]bool)
	f.Visit(func(fl *flag.Flag) { given[fl.Name] = true })
	s.startup.wall, s.startup.cpu = given["start-time-us"], given["start-time-cpu-us"]
	return s, s.check(f.Args(), given)
}

func (s *settings) check(rest []string, given map[string]bool) error {
	switch {
	case len(rest) > 0:
		return fmt.Errorf("argument %q is not expected: want options only (--help lists them)", rest[0])
	case !validID(s.id):
		return fmt.Errorf("--id is %q: want 1 to 64 letters, digits, hyphens", s.id)
	case s.noAPI && s.configFile == "":
		return errors.New("--no-api: want --config-file with it, or nothing can ever start")
	case s.noAPI && (given["api-sock"] || given["api-fd"]):
		return errors.New("--no-api: want neither --api-sock nor --api-fd with it")
	case given["api-sock"] && given["api-fd"]:
		return errors.New("--api-fd: want no --api-sock with it")
	case given["api-fd"] && s.apiFD < 0:
		return fmt.Errorf("--api-fd is %d: want an open file descriptor", s.apiFD)
	case given["parent-fd"] && s.parentFD < 0:
		return fmt.Errorf("--parent-fd is %d: want an open file descriptor", s.parentFD)
	case given["config-file"] && s.configFile == "":
		return errors.New("--config-file is empty: want a path")
	}
	_, err := logLevel(s.level)
	return err
}

// logLevel translates Firecracker's levels; "" is no log at all.
func logLevel(level string) (string, error) {
	switch l := strings.ToLower(level); l {
	case "off":
		return "", nil
	case "error", "warn", "info", "debug", "trace":
		return l, nil
	case "warning":
		return "warn", nil
	}
	return "", fmt.Errorf("--level is %q: want Off, Error, Warn, Info, Debug or Trace", level)
}

func validID(id string) bool {
	bad := func(r rune) bool {
		return r != '-' && (r < '0' || r > '9') && (r < 'a' || r > 'z') && (r < 'A' || r > 'Z')
	}
	return len(id) >= 1 && len(id) <= 64 && !strings.ContainsFunc(id, bad)
}
