package setup

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/fcshim/containerd-shim-fc-v2/pkg/agent"
)

// TestMountOrder: a mount point below another comes after it, or it would be covered.
func TestMountOrder(t *testing.T) {
	seen := map[string]bool{}
	for _, m := range Mounts() {
		if seen[m.Target] {
			t.Errorf("%s twice", m.Target)
		}
		for s := range seen {
			if strings.HasPrefix(s, m.Target+"/") {
				t.Errorf("%s comes after %s and covers it", m.Target, s)
			}
		}
		seen[m.Target] = true
		if m.Type == "" || m.Source == "" || !filepath.IsAbs(m.Target) {
			t.Errorf("incomplete: %+v", m)
		}
	}
	for _, want := range []string{"/proc", "/sys", "/dev", "/dev/pts", "/dev/shm", "/dev/mqueue", "/run", "/tmp", CgroupRoot, agent.SharedDir} {
		if !seen[want] {
			t.Errorf("%s is missing", want)
		}
	}
}

func TestMountAllErrors(t *testing.T) {
	bad := Mount{Source: "x", Target: filepath.Join(t.TempDir(), "m"), Type: "nosuchfs"}
	if _, err := MountAll([]Mount{bad}); err == nil || !strings.Contains(err.Error(), bad.Target) {
		t.Errorf("a needed mount: %v", err)
	}
	bad.Optional = true
	missing, err := MountAll([]Mount{bad})
	if err != nil || len(missing) != 1 || !strings.Contains(missing[0].Error(), "nosuchfs") {
		t.Errorf("an optional mount: %v, %v", missing, err)
	}
}

func TestDelegateCgroups(t *testing.T) {
	dir := t.TempDir()
	write := func(name, s string) { os.WriteFile(filepath.Join(dir, name), []byte(s), 0o600) }
	write("cgroup.controllers", "cpu io memory pids\n")
	write("cgroup.subtree_control", "")
	if err := DelegateCgroups(dir); err != nil {
		t.Fatal(err)
	}
	if got, _ := os.ReadFile(filepath.Join(dir, "cgroup.subtree_control")); string(got) != "+cpu +io +memory +pids" {
		t.Errorf("wrote %q", got)
	}
	write("cgroup.controllers", "")
	if DelegateCgroups(dir) == nil {
		t.Error("no controllers, no error")
	}
}
