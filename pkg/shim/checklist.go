package shim

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/fcshim/containerd-shim-fc-v2/pkg/agent/agentpb"
	"github.com/fcshim/containerd-shim-fc-v2/pkg/shim/hostcgroup"
)

// The oldest kernel that this project supports.
const minKernelMajor, minKernelMinor = 5, 10

// all makes every check, the host's before those that need what came before.
func (c *checkup) all(ctx context.Context) {
	c.checkUser()
	c.checkHostKernel()
	kvmWorks := c.checkKVM()
	settings := c.checkSettings()
	guest := settings != nil && c.checkGuest(ctx, settings)
	if settings != nil {
		c.checkMemory(settings)
	}
	c.checkFeatures()
	c.checkContainerd(ctx)
	switch {
	case c.uid != 0 || !kvmWorks || !guest:
		c.add(doubt, "boot", "not tried", "mend what failed above first")
	default:
		what, err := c.boot(ctx, settings)
		c.judge("boot", what, err, "set console_log in fc.toml, run a container, and look at the guest's console there; a VM on a host that is itself a VM needs nested virtualisation")
	}
}

func (c *checkup) checkUser() {
	if c.uid != 0 {
		c.add(failure, "user", fmt.Sprintf("uid %d", c.uid), "run this as root, as containerd runs the shim")
	}
}

func (c *checkup) checkHostKernel() {
	const about = "host kernel"
	advice := fmt.Sprintf("install Linux %d.%d or newer", minKernelMajor, minKernelMinor)
	release, err := c.release()
	if err != nil {
		c.add(failure, about, err.Error(), advice)
		return
	}
	var major, minor int
	if _, err := fmt.Sscanf(release, "%d.%d", &major, &minor); err != nil {
		c.add(doubt, about, fmt.Sprintf("%q is no version that is known here", release), advice)
		return
	}
	v := fine
	if major < minKernelMajor || major == minKernelMajor && minor < minKernelMinor {
		v = failure
	}
	c.add(v, about, release, advice)
}

func (c *checkup) release() (string, error) {
	b, err := os.ReadFile(c.path("proc/sys/kernel/osrelease"))
	return strings.TrimSpace(string(b)), err
}

func (c *checkup) checkKVM() bool {
	n, err := c.kvm()
	return c.judge("KVM", fmt.Sprintf("/dev/kvm makes VMs, of up to %d vCPUs", n), err,
		"load kvm_amd or kvm_intel (modprobe), enable virtualisation (SVM, VT-x) in the firmware, or nested virtualisation if this host is a VM")
}

// checkSettings returns nil if there are none to go on with.
func (c *checkup) checkSettings() *Settings {
	const about = "settings"
	s, err := loadSettings(c.config)
	if err != nil {
		c.add(failure, about, err.Error(), "see configs/fc.toml, which explains every key")
		return nil
	}
	name := c.config
	if name == "" {
		name = DefaultConfigPath
		if !exists(name) {
			name = "defaults (there is no " + name + ")"
		}
	}
	c.add(fine, about, name, "")
	s.locate(c.self)
	return s
}

// checkGuest looks at what a VM is made of.
func (c *checkup) checkGuest(ctx context.Context, s *Settings) bool {
	err := checkVMM(s.VMM)
	what := s.VMM
	if err == nil {
		var version string
		version, err = c.run(ctx, s.VMM, "--version")
		what += ", " + version
	}
	if err != nil {
		err = fmt.Errorf("%s: %w", s.VMM, err)
	}
	good := c.judge("fc-vmm", what, err, "put fc-vmm beside the shim (make install), or set vmm in fc.toml")
	if err = checkKernel(s.Kernel); err != nil {
		err = fmt.Errorf("%s: %w", s.Kernel, err)
	}
	good = c.judge("guest kernel", s.Kernel, err, "put vmlinux into share/containerd-shim-fc-v2 (make install), or set kernel in fc.toml") && good
	if err = checkImage(s.Image); err != nil {
		err = fmt.Errorf("%s: %w", s.Image, err)
	}
	return c.judge("guest image", s.Image, err, "put guest.img into share/containerd-shim-fc-v2 (make install), or set image in fc.toml") && good
}

func (c *checkup) checkMemory(s *Settings) {
	const about = "memory"
	b, err := os.ReadFile(c.path("proc/meminfo"))
	if err != nil {
		c.add(doubt, about, err.Error(), "mount /proc")
		return
	}
	for line := range strings.Lines(string(b)) {
		f := strings.Fields(line)
		if len(f) < 2 || f[0] != "MemAvailable:" {
			continue
		}
		kib, err := strconv.ParseInt(f[1], 10, 64)
		if err != nil {
			break
		}
		v := fine
		if kib>>10 < int64(s.MemoryMiB+cgroupAllowanceMiB) {
			v = doubt
		}
		c.add(v, about, fmt.Sprintf("%d MiB available; a VM has %d if its container has no limit", kib>>10, s.MemoryMiB),
			"lower memory_mib in fc.toml, or end something")
		return
	}
	c.add(doubt, about, "MemAvailable is not in /proc/meminfo", "look yourself whether there is enough")
}

// checkFeatures looks for parts of the host's kernel that containers need.
func (c *checkup) checkFeatures() {
	if _, err := os.Stat(c.path("dev/net/tun")); err != nil {
		c.add(failure, "network devices", reason(err).Error()+": /dev/net/tun", "modprobe tun")
	} else {
		c.add(fine, "network devices", "/dev/net/tun", "")
	}
	for _, m := range []struct{ about, module, advice string }{
		{"tc ingress", "sch_ingress", "containers with a network need it (CONFIG_NET_SCH_INGRESS)"},
		{"tc matchall", "cls_matchall", "containers with a network need it (CONFIG_NET_CLS_MATCHALL)"},
		{"tc mirred", "act_mirred", "containers with a network need it (CONFIG_NET_ACT_MIRRED)"},
		{"overlay", "overlay", "containerd's default snapshotter needs it (CONFIG_OVERLAY_FS); others do not"},
	} {
		where := c.module(m.module)
		switch where {
		case "":
			c.add(doubt, m.about, "no module "+m.module+" is to be found", m.advice)
		default:
			c.add(fine, m.about, m.module+" is "+where, "")
		}
	}
	// From the mount table of the process that asks, which for tests is theirs.
	if mounted, err := hostcgroup.Mounted(); err != nil || len(mounted) == 0 {
		c.add(doubt, "cgroups", "none are mounted", "mount cgroup2 on /sys/fs/cgroup; a container whose spec names a cgroup needs it")
	} else {
		version := "v2"
		if mounted[0].Controllers != nil {
			version = "v1"
		}
		c.add(fine, "cgroups", version, "")
	}
}

// module says where a module of the host's kernel is: "loaded", "built in", "to be loaded"; empty if nowhere.
func (c *checkup) module(name string) string {
	if exists(c.path("sys/module", name)) {
		return "loaded"
	}
	release, err := c.release()
	if err != nil {
		return ""
	}
	for _, list := range []struct{ file, where string }{{"modules.builtin", "built in"}, {"modules.dep", "to be loaded"}} {
		b, err := os.ReadFile(c.path("lib/modules", release, list.file))
		if err == nil && strings.Contains("\n"+strings.ReplaceAll(string(b), "-", "_"), "/"+name+".ko") {
			return list.where
		}
	}
	return ""
}

// bootGuest boots a VM as for a container, without one, and has its agent answer.
func bootGuest(ctx context.Context, s *Settings) (_ string, err error) {
	dir, err := os.MkdirTemp("", "fc-check")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(dir)
	t, err := newTree(dir)
	if err != nil {
		return "", err
	}
	defer t.close()
	ns, err := os.Open("/proc/self/ns/net")
	if err != nil {
		return "", err
	}
	defer ns.Close()
	began := time.Now()
	v, err := startVM(ctx, vmOptions{
		Namespace: "check", ID: filepath.Base(dir), Bundle: dir, Settings: s, Size: size{VCPUs: s.VCPUs, MemoryMiB: s.MemoryMiB}, Network: ns,
	}, nil)
	if err != nil {
		return "", err
	}
	defer func() {
		if kerr := v.kill(); kerr != nil {
			err = joinCleanup(err, kerr)
		}
	}()
	if err := v.running(ctx); err != nil {
		return "", err
	}
	if err := v.ready(ctx, time.Duration(s.BootTimeout)); err != nil {
		return "", err
	}
	took := time.Since(began).Round(time.Millisecond)
	info, err := ask(ctx, "Info", v.agent.Info, &agentpb.InfoRequest{})
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("a guest with Linux %q and agent %q answers after %v", clip(info.GetKernelRelease()), clip(info.GetVersion()), took), v.stop(ctx)
}

// clip bounds what a guest says of itself.
func clip(s string) string { return s[:min(len(s), 64)] }
