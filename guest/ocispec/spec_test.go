package ocispec

import (
	"encoding/json"
	"maps"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/runc/libcontainer/configs"
	"github.com/opencontainers/runtime-spec/specs-go"
)

func valid() *specs.Spec {
	return &specs.Spec{
		Root:    &specs.Root{Path: "/run/shared/c/rootfs"},
		Process: &specs.Process{Args: []string{"true"}, Cwd: "/"},
		Linux: &specs.Linux{
			CgroupsPath: "/c",
			Namespaces:  []specs.LinuxNamespace{{Type: specs.PIDNamespace}, {Type: specs.MountNamespace}},
		},
	}
}

func TestRefused(t *testing.T) {
	for field, spoil := range map[string]func(*specs.Spec){
		"process: ":               func(s *specs.Spec) { s.Process = nil },
		"process.args: ":          func(s *specs.Spec) { s.Process.Args = nil },
		"process.cwd: must":       func(s *specs.Spec) { s.Process.Cwd = "" },
		`process.cwd: "here"`:     func(s *specs.Spec) { s.Process.Cwd = "here" },
		"process.rlimits: unkn":   func(s *specs.Spec) { s.Process.Rlimits = []specs.POSIXRlimit{{Type: "RLIMIT_X"}} },
		"process.rlimits: RLIM":   func(s *specs.Spec) { s.Process.Rlimits = make2("RLIMIT_CPU") },
		"root.path: a":            func(s *specs.Spec) { s.Root = nil },
		`root.path: "rootfs"`:     func(s *specs.Spec) { s.Root.Path = "rootfs" },
		"hooks: ":                 func(s *specs.Spec) { s.Hooks = &specs.Hooks{Poststop: []specs.Hook{{Path: "/x"}}} },
		"linux.intelRdt: ":        func(s *specs.Spec) { s.Linux.IntelRdt = &specs.LinuxIntelRdt{} },
		"linux.cgroupsPath: ":     func(s *specs.Spec) { s.Linux.CgroupsPath = "/host/place" },
		"linux.mountLabel: ":      func(s *specs.Spec) { s.Linux.MountLabel = "l" },
		"linux.namespaces: the n": func(s *specs.Spec) { s.Linux.Namespaces = []specs.LinuxNamespace{{Type: specs.NetworkNamespace}} },
		"linux.namespaces: ipc": func(s *specs.Spec) {
			s.Linux.Namespaces = []specs.LinuxNamespace{{Type: specs.IPCNamespace, Path: "/proc/7/ns/ipc"}}
		},
		"process: AppArmor": func(s *specs.Spec) { s.Process.ApparmorProfile = "cri-containerd.apparmor.d" },
		`process: AppArmor profile "", SELinux label "l"`: func(s *specs.Spec) { s.Process.SelinuxLabel = "l" },
		"spec: ":                  func(s *specs.Spec) { s.Linux.RootfsPropagation = "sideways" },
		"spec: namespace":         func(s *specs.Spec) { s.Linux.Namespaces = []specs.LinuxNamespace{{Type: "soul"}} },
		"spec: malformed spec fi": func(s *specs.Spec) { s.Linux.Namespaces = []specs.LinuxNamespace{{Type: "pid"}, {Type: "pid"}} },
	} {
		s := valid()
		spoil(s)
		_, err := Convert("c", s)
		if err == nil || !errdefs.IsInvalidArgument(err) || !strings.HasPrefix(err.Error(), field) {
			t.Errorf("%s: %v", field, err)
		}
	}
	if _, err := Parse("c", []byte("{")); !errdefs.IsInvalidArgument(err) {
		t.Errorf("no JSON: %v", err)
	}
}

func make2(name string) []specs.POSIXRlimit { return []specs.POSIXRlimit{{Type: name}, {Type: name}} }

func TestConvert(t *testing.T) {
	s := valid()
	s.Hooks = &specs.Hooks{}
	s.Linux.Sysctl = map[string]string{"net.ipv4.ip_unprivileged_port_start": "0", "kernel.shm_rmid_forced": "1"}
	b, err := json.Marshal(s)
	if err != nil {
		t.Fatal(err)
	}
	c, err := Parse("c", b)
	if err != nil {
		t.Fatal(err)
	}
	cfg := c.Config
	if cfg.Namespaces.Contains(configs.NEWNET) || !cfg.Namespaces.IsPrivate(configs.NEWPID) || !cfg.Namespaces.IsPrivate(configs.NEWNS) {
		t.Errorf("namespaces: %v", cfg.Namespaces)
	}
	if cfg.Cgroups.Path != "/c" {
		t.Errorf("cgroup: %q", cfg.Cgroups.Path)
	}
	if cfg.OomScoreAdj == nil || *cfg.OomScoreAdj != 0 {
		t.Errorf("oom score: %v", cfg.OomScoreAdj)
	}
	if !maps.Equal(c.NetSysctls, map[string]string{"net.ipv4.ip_unprivileged_port_start": "0"}) || len(cfg.Sysctl) != 1 {
		t.Errorf("sysctls: %v in the guest, %v in the container", c.NetSysctls, cfg.Sysctl)
	}
}

func TestSysfs(t *testing.T) {
	for _, user := range []bool{false, true} {
		s := valid()
		s.Mounts = []specs.Mount{{Destination: "/sys", Type: "sysfs", Source: "sysfs", Options: []string{"ro"}}}
		want := "sysfs"
		if user {
			s.Linux.Namespaces = append(s.Linux.Namespaces, specs.LinuxNamespace{Type: specs.UserNamespace})
			s.Linux.UIDMappings = []specs.LinuxIDMapping{{HostID: 1000, Size: 10}}
			s.Linux.GIDMappings = s.Linux.UIDMappings
			want = "/sys"
		}
		c, err := Convert("c", s)
		if err != nil {
			t.Fatal(err)
		}
		if got := c.Config.Mounts[0]; got.Source != want || got.Destination != "/sys" || (got.Device == "bind") != user {
			t.Errorf("user namespace %v: %+v", user, got)
		}
	}
}

func TestSysctlPath(t *testing.T) {
	for name, want := range map[string]string{
		"net.ipv4.ip_forward":               "/proc/sys/net/ipv4/ip_forward",
		"net/ipv4/conf/eth0.1/forwarding":   "/proc/sys/net/ipv4/conf/eth0.1/forwarding",
		"net/../../self/oom_score_adj":      "",
		"net....self":                       "/proc/sys/net/self",
		"/etc/passwd":                       "",
		"net/ipv4/../ipv6/conf/all/disable": "/proc/sys/net/ipv6/conf/all/disable",
	} {
		got, err := SysctlPath(name)
		if got != want || (want == "") != errdefs.IsInvalidArgument(err) {
			t.Errorf("%s: %q, %v; want %q", name, got, err, want)
		}
	}
}

func TestProcess(t *testing.T) {
	b := []byte(`{"args":["sh"],"cwd":"/w","env":["A=b"],"user":{"uid":7,"gid":8,"additionalGids":[9]},"noNewPrivileges":true,
		"consoleSize":{"width":80,"height":25},"rlimits":[{"type":"RLIMIT_NOFILE","hard":20,"soft":10}],
		"capabilities":{"bounding":["CAP_CHOWN"]}}`)
	p, err := ParseProcess(b)
	if err != nil {
		t.Fatal(err)
	}
	lp, err := Process(p, false)
	if err != nil {
		t.Fatal(err)
	}
	if lp.Init || lp.UID != 7 || lp.GID != 8 || lp.AdditionalGroups[0] != 9 || lp.Cwd != "/w" || lp.Env[0] != "A=b" || lp.Args[0] != "sh" ||
		!*lp.NoNewPrivileges || lp.ConsoleWidth != 80 || lp.ConsoleHeight != 25 || lp.Rlimits[0].Soft != 10 ||
		lp.Rlimits[0].Type != 7 || lp.Capabilities.Bounding[0] != "CAP_CHOWN" {
		t.Errorf("%+v", lp)
	}
	if _, err := ParseProcess([]byte(`{"args":["sh"]}`)); !errdefs.IsInvalidArgument(err) {
		t.Errorf("no cwd: %v", err)
	}
}
