package ocispec

import (
	"encoding/json"
	"path/filepath"

	"github.com/opencontainers/runc/libcontainer"
	"github.com/opencontainers/runc/libcontainer/configs"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// rlimits has the resources of getrlimit(2) by the names that the spec gives them.
var rlimits = map[string]int{
	"RLIMIT_AS": unix.RLIMIT_AS, "RLIMIT_CORE": unix.RLIMIT_CORE, "RLIMIT_CPU": unix.RLIMIT_CPU,
	"RLIMIT_DATA": unix.RLIMIT_DATA, "RLIMIT_FSIZE": unix.RLIMIT_FSIZE, "RLIMIT_LOCKS": unix.RLIMIT_LOCKS,
	"RLIMIT_MEMLOCK": unix.RLIMIT_MEMLOCK, "RLIMIT_MSGQUEUE": unix.RLIMIT_MSGQUEUE, "RLIMIT_NICE": unix.RLIMIT_NICE,
	"RLIMIT_NOFILE": unix.RLIMIT_NOFILE, "RLIMIT_NPROC": unix.RLIMIT_NPROC, "RLIMIT_RSS": unix.RLIMIT_RSS,
	"RLIMIT_RTPRIO": unix.RLIMIT_RTPRIO, "RLIMIT_RTTIME": unix.RLIMIT_RTTIME, "RLIMIT_SIGPENDING": unix.RLIMIT_SIGPENDING,
	"RLIMIT_STACK": unix.RLIMIT_STACK,
}

// ParseProcess reads an OCI process, for an exec.
func ParseProcess(b []byte) (*specs.Process, error) {
	var p specs.Process
	if err := json.Unmarshal(b, &p); err != nil {
		return nil, invalid("process", "%v", err)
	}
	if err := CheckProcess(&p); err != nil {
		return nil, err
	}
	return &p, nil
}

// CheckProcess says what makes a process impossible to run whatever its container.
func CheckProcess(p *specs.Process) error {
	switch {
	case p == nil:
		return invalid("process", "a container needs a process")
	case len(p.Args) == 0:
		return invalid("process.args", "must not be empty")
	case p.Cwd == "":
		return invalid("process.cwd", "must not be empty")
	case !filepath.IsAbs(p.Cwd):
		return invalid("process.cwd", "%q is not absolute", p.Cwd)
	}
	if p.ApparmorProfile+p.SelinuxLabel != "" {
		return invalid("process", "AppArmor profile %q, SELinux label %q: the guest has none", p.ApparmorProfile, p.SelinuxLabel)
	}
	seen := map[string]bool{}
	for _, r := range p.Rlimits {
		if _, ok := rlimits[r.Type]; !ok {
			return invalid("process.rlimits", "unknown type %q", r.Type)
		}
		if seen[r.Type] {
			return invalid("process.rlimits", "%s twice", r.Type)
		}
		seen[r.Type] = true
	}
	return nil
}

// Process makes libcontainer's process of one that CheckProcess accepted; its streams are left to the caller.
func Process(p *specs.Process, init bool) (*libcontainer.Process, error) {
	affinity, err := configs.ConvertCPUAffinity(p.ExecCPUAffinity)
	if err != nil {
		return nil, invalid("process.execCPUAffinity", "%v", err)
	}
	lp := &libcontainer.Process{
		Init:            init,
		Args:            p.Args,
		Env:             p.Env,
		Cwd:             p.Cwd,
		UID:             int(p.User.UID),
		GID:             int(p.User.GID),
		NoNewPrivileges: &p.NoNewPrivileges,
		Scheduler:       p.Scheduler,
		IOPriority:      p.IOPriority,
		CPUAffinity:     affinity,
		LogLevel:        "3", // logrus.WarnLevel
	}
	if p.ConsoleSize != nil {
		lp.ConsoleWidth, lp.ConsoleHeight = uint16(p.ConsoleSize.Width), uint16(p.ConsoleSize.Height)
	}
	for _, gid := range p.User.AdditionalGids {
		lp.AdditionalGroups = append(lp.AdditionalGroups, int(gid))
	}
	if c := p.Capabilities; c != nil {
		lp.Capabilities = &configs.Capabilities{
			Bounding: c.Bounding, Effective: c.Effective, Inheritable: c.Inheritable, Permitted: c.Permitted, Ambient: c.Ambient,
		}
	}
	for _, r := range p.Rlimits {
		lp.Rlimits = append(lp.Rlimits, configs.Rlimit{Type: rlimits[r.Type], Hard: r.Hard, Soft: r.Soft})
	}
	return lp, nil
}
