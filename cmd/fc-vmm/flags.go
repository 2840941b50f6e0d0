package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"strings"

	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/api"
	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/config"
)

const usage = `fc-vmm runs one microVM, driven over Firecracker's HTTP API on a Unix socket.

Usage: fc-vmm [OPTION]...      (--name VALUE and --name=VALUE are the same)
       fc-vmm fs [OPTION]...    serves a folder over vhost-user (fc-vmm fs --help)
       fc-vmm hold ...          the process that stands for a container on the
                                host; the shim starts it

API and configuration:
  --api-sock PATH      socket to make and serve the API on; must not exist yet
                       (default /run/firecracker.socket)
  --api-fd N           serve the API on this inherited, listening socket instead
  --no-api             serve no API; needs --config-file or --config-fd
  --http-api-max-payload-size N
                       the largest body of a request, in bytes (default 51200)
  --id ID              name of the microVM: 1 to 64 letters, digits, hyphens
                       (default anonymous-instance)
  --config-file FILE   boot from this JSON document: boot-source, drives,
                       machine-config, network-interfaces, vsock, entropy,
                       serial, logger, metrics, mmds-config, filesystems
  --config-fd N        boot from such a document that comes over this inherited
                       Unix socket, up to its end, and answer there: {} when the
                       microVM runs, else {"fault_message": "...", "invalid": true},
                       the latter if something that the document says cannot be had.
                       With {} come descriptors (SCM_RIGHTS) of KVM's VM and of the
                       TAPs: while they are open, fc-vmm's end need not wait for the
                       kernel to destroy those
  --metadata FILE      data of the metadata service, a JSON document; the service
                       itself is mmds-config's
  --mmds-size-limit N  bound on these data as compact JSON, in bytes (default: what
                       --http-api-max-payload-size is)
  --boot-timer         give the guest a byte at 0xc0000000: when its init writes 123
                       there, log the wall and CPU time since InstanceStart

Log and metrics:
  --log-path PATH      append the log to this file or named pipe, not to standard
                       error; a pipe that is full loses lines
  --level LEVEL        Off, Error, Warn, Info, Debug or Trace (default Info)
  --show-level         each line tells its level,
  --show-log-origin    and where in the source it comes from
  --module PATH        only lines from packages whose path begins so: vmm/api
                       With any of these but --level, lines have Firecracker's form:
                       time [id:thread:level:file:line] message
  --metrics-path PATH  write metrics to this file or named pipe: a line of JSON when
                       the microVM has started, every 60 s, on FlushMetrics and at
                       the end
  --start-time-us N, --start-time-cpu-us N, --parent-cpu-time-us N
                       when whoever started this process began to, in us: by
                       CLOCK_MONOTONIC; by this process's CPU time; and the CPU
                       time that was spent on it before. Log and metrics then have
                       the time from there until the API was served

Process:
  --parent-fd N        inherited read end of a pipe: when its other end closes,
                       this process is killed at once, whatever it is doing
  --no-seccomp         changes nothing: fc-vmm has no seccomp filters yet
  --seccomp-filter FILE
                       refused, for the same reason
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

// maxPayloadSize bounds --http-api-max-payload-size, in bytes: a body is held in memory.
const maxPayloadSize = 1 << 30

// settings are the command line.
type settings struct {
	apiSock       string
	apiFD         int
	noAPI         bool
	maxPayload    int
	id            string
	configFile    string
	configFD      int
	metadata      string
	mmdsLimit     int
	logPath       string
	level         string
	showLevel     bool
	showLogOrigin bool
	module        string
	metricsPath   string
	parentFD      int
	bootTimer     bool
	noSeccomp     bool
	seccompFilter string
	startup       startup
	showVersion   bool

	given map[string]bool // by name
}

// once is an option that may be given once, as Firecracker has it.
type once struct {
	flag.Value
	given bool
}

// Set implements flag.Value.
func (o *once) Set(v string) error {
	if o.given {
		return errors.New("given more than once")
	}
	o.given = true
	return o.Value.Set(v)
}

// IsBoolFlag has the flag package ask for no value where there is none.
func (o *once) IsBoolFlag() bool {
	b, ok := o.Value.(interface{ IsBoolFlag() bool })
	return ok && b.IsBoolFlag()
}

// parseFlags reads the command line. flag.ErrHelp asks for help.
func parseFlags(args []string) (settings, error) {
	var s settings
	f := flag.NewFlagSet("fc-vmm", flag.ContinueOnError)
	f.SetOutput(io.Discard)
	f.StringVar(&s.apiSock, "api-sock", "/run/firecracker.socket", "")
	f.IntVar(&s.apiFD, "api-fd", -1, "")
	f.BoolVar(&s.noAPI, "no-api", false, "")
	f.IntVar(&s.maxPayload, "http-api-max-payload-size", api.MaxBody, "")
	f.StringVar(&s.id, "id", "anonymous-instance", "")
	f.StringVar(&s.configFile, "config-file", "", "")
	f.IntVar(&s.configFD, "config-fd", -1, "")
	f.StringVar(&s.metadata, "metadata", "", "")
	f.IntVar(&s.mmdsLimit, "mmds-size-limit", 0, "")
	f.StringVar(&s.logPath, "log-path", "", "")
	f.StringVar(&s.level, "level", "Info", "")
	f.BoolVar(&s.showLevel, "show-level", false, "")
	f.BoolVar(&s.showLogOrigin, "show-log-origin", false, "")
	f.StringVar(&s.module, "module", "", "")
	f.StringVar(&s.metricsPath, "metrics-path", "", "")
	f.IntVar(&s.parentFD, "parent-fd", -1, "")
	f.BoolVar(&s.bootTimer, "boot-timer", false, "")
	f.BoolVar(&s.noSeccomp, "no-seccomp", false, "")
	f.StringVar(&s.seccompFilter, "seccomp-filter", "", "")
	f.Uint64Var(&s.startup.wallUS, "start-time-us", 0, "")
	f.Uint64Var(&s.startup.cpuUS, "start-time-cpu-us", 0, "")
	f.Uint64Var(&s.startup.parentCPUUS, "parent-cpu-time-us", 0, "")
	f.BoolVar(&s.showVersion, "version", false, "")
	f.VisitAll(func(fl *flag.Flag) { fl.Value = &once{Value: fl.Value} })
	if err := f.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return s, err
		}
		return s, fmt.Errorf("%w (--help lists the options)", err)
	}
	s.given = make(map[string]bool)
	f.Visit(func(fl *flag.Flag) { s.given[fl.Name] = true })
	if !s.given["mmds-size-limit"] {
		s.mmdsLimit = s.maxPayload
	}
	s.startup.wall, s.startup.cpu = s.given["start-time-us"], s.given["start-time-cpu-us"]
	return s, s.check(f.Args())
}

func (s *settings) check(rest []string) error {
	switch {
	case len(rest) > 0:
		return fmt.Errorf("argument %q is not expected: want options only (--help lists them)", rest[0])
	case !validID(s.id):
		return errBadID(s.id)
	case s.given["config-fd"] && s.configFD < 0:
		return fmt.Errorf("--config-fd is %d: want an open file descriptor", s.configFD)
	case s.given["config-fd"] && s.given["config-file"]:
		return errors.New("--config-fd: want no --config-file with it")
	case s.noAPI && !s.described():
		return errors.New("--no-api: want --config-file or --config-fd with it, or nothing can ever start")
	case s.noAPI && (s.given["api-sock"] || s.given["api-fd"]):
		return errors.New("--no-api: want neither --api-sock nor --api-fd with it")
	case s.given["api-sock"] && s.given["api-fd"]:
		return errors.New("--api-fd: want no --api-sock with it")
	case s.given["api-fd"] && s.apiFD < 0:
		return fmt.Errorf("--api-fd is %d: want an open file descriptor", s.apiFD)
	case s.given["parent-fd"] && s.parentFD < 0:
		return fmt.Errorf("--parent-fd is %d: want an open file descriptor", s.parentFD)
	case s.maxPayload < 1 || s.maxPayload > maxPayloadSize:
		return fmt.Errorf("--http-api-max-payload-size is %d: want 1 to %d bytes", s.maxPayload, maxPayloadSize)
	case s.mmdsLimit < 0 || s.mmdsLimit > maxPayloadSize:
		return fmt.Errorf("--mmds-size-limit is %d: want 0 to %d bytes", s.mmdsLimit, maxPayloadSize)
	case s.noSeccomp && s.given["seccomp-filter"]:
		return errors.New("--no-seccomp: want no --seccomp-filter with it")
	case s.given["seccomp-filter"]:
		return errors.New("--seccomp-filter: fc-vmm has no seccomp filters yet, and would run without yours")
	}
	for _, name := range []string{"config-file", "metadata", "log-path", "metrics-path"} {
		if s.given[name] && s.path(name) == "" {
			return fmt.Errorf("--%s is empty: want a path", name)
		}
	}
	if s.level == "" {
		return errors.New("--level is empty: want Off, Error, Warn, Info, Debug or Trace")
	}
	_, err := config.ParseLevel("--level", s.level)
	return err
}

// path is the value of an option that names a file.
func (s *settings) path(name string) string {
	switch name {
	case "config-file":
		return s.configFile
	case "metadata":
		return s.metadata
	case "log-path":
		return s.logPath
	}
	return s.metricsPath
}

func errBadID(id string) error {
	return fmt.Errorf("--id is %q: want 1 to 64 letters, digits, hyphens", id)
}

func validID(id string) bool {
	bad := func(r rune) bool {
		return r != '-' && (r < '0' || r > '9') && (r < 'a' || r > 'z') && (r < 'A' || r > 'Z')
	}
	return len(id) >= 1 && len(id) <= 64 && !strings.ContainsFunc(id, bad)
}
