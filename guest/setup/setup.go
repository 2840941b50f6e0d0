package setup

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// settings are written once the mounts are there; what is not in this list has the kernel's own default.
var settings = [...]struct{ path, value string }{
	{"/proc/sys/fs/protected_hardlinks", "1"},
	{"/proc/sys/fs/protected_symlinks", "1"},
	{"/proc/sys/kernel/printk_devkmsg", "on\n"}, // the newline is demanded; the agent's log must not be thinned out
	{"/proc/self/oom_score_adj", "-1000"},       // the agent is the last to go; specs without a value get 0, see ocispec
}

// limits are what containers inherit when their spec says nothing, as on a host under systemd.
var limits = [...]struct {
	name       string
	resource   int
	soft, hard uint64
}{
	{"nofile", unix.RLIMIT_NOFILE, 1024, 524288},
	{"nproc", unix.RLIMIT_NPROC, unix.RLIM_INFINITY, unix.RLIM_INFINITY},
	{"core", unix.RLIMIT_CORE, 0, unix.RLIM_INFINITY},
}

// Run sets the guest up. warnings tell what an ordinary VM has and this one lacks; err, what nothing works without.
func Run() (warnings []error, err error) {
	unix.Umask(0o022)
	warnings, err = MountAll(Mounts())
	if err != nil {
		return warnings, err
	}
	for _, s := range settings {
		if err := os.WriteFile(s.path, []byte(s.value), 0); err != nil {
			warnings = append(warnings, err)
		}
	}
	for _, l := range limits {
		// Through package syscall, which must know that NOFILE was changed: else children get the limit of before.
		if err := syscall.Setrlimit(l.resource, &syscall.Rlimit{Cur: l.soft, Max: l.hard}); err != nil {
			warnings = append(warnings, fmt.Errorf("set rlimit %s to %d:%d: %w", l.name, l.soft, l.hard, err))
		}
	}
	if err := unix.Sethostname([]byte("localhost")); err != nil {
		warnings = append(warnings, fmt.Errorf("set the hostname: %w", err))
	}
	if err := LoopbackUp(); err != nil {
		warnings = append(warnings, err)
	}
	return warnings, DelegateCgroups(CgroupRoot)
}

// ShortenFreeLists has the kernel report most of what is free to the host. What lies in a CPU's own list of free pages is not reported, and
// such a list may by default have 27 MiB of a guest of 1 GiB; now it has a 1024th of the memory, or 1 MiB.
func ShortenFreeLists() error {
	return os.WriteFile("/proc/sys/vm/percpu_pagelist_high_fraction", []byte("1024"), 0)
}

// DelegateCgroups makes every controller of the cgroup at dir available to its children.
func DelegateCgroups(dir string) error {
	b, err := os.ReadFile(filepath.Join(dir, "cgroup.controllers"))
	if err != nil {
		return fmt.Errorf("read the cgroup controllers: %w", err)
	}
	fields := strings.Fields(string(b))
	if len(fields) == 0 {
		return fmt.Errorf("no cgroup v2 controllers in %s: %w", dir, errors.ErrUnsupported)
	}
	enable := "+" + strings.Join(fields, " +")
	if err := os.WriteFile(filepath.Join(dir, "cgroup.subtree_control"), []byte(enable), 0); err != nil {
		return fmt.Errorf("enable the cgroup controllers %q: %w", enable, err)
	}
	return nil
}

// LoopbackUp brings lo up, and with it 127.0.0.1 and ::1.
func LoopbackUp() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("bring lo up: %w", err)
	}
	defer unix.Close(fd)
	req, err := unix.NewIfreq("lo")
	if err != nil {
		return fmt.Errorf("bring lo up: %w", err)
	}
	req.SetUint16(unix.IFF_UP)
	if err := unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, req); err != nil {
		return fmt.Errorf("bring lo up: %w", err)
	}
	return nil
}
