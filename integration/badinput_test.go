package integration

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/pkg/oci"
	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/fcshim/containerd-shim-fc-v2/integration/harness"
)

// wantError demands of a ctr that failed that it says why in one line, which holds all of words.
func wantError(t *testing.T, r harness.Result, words ...string) {
	t.Helper()
	line := strings.TrimSpace(r.Stderr)
	if r.Status == 0 || strings.Contains(line, "\n") {
		t.Errorf("want an error in one line; got %v", r)
	}
	for _, w := range words {
		if !strings.Contains(line, w) {
			t.Errorf("the error does not name %q: %s", w, line)
		}
	}
	t.Log(line)
}

// TestBadConfig runs a container with configurations that cannot do.
func TestBadConfig(t *testing.T) {
	c := containerd(t)
	fcOnly(t, c)
	dir := t.TempDir()
	text := filepath.Join(dir, "text")
	write(t, text, strings.Repeat("This is no kernel.\n", 1000))
	absent := filepath.Join(dir, "absent")
	for _, tt := range []struct {
		name    string
		changes harness.Settings
		words   []string
	}{
		{"no kernel", harness.Settings{"kernel": absent}, []string{"kernel", absent, "no such file"}},
		{"kernel is a folder", harness.Settings{"kernel": dir}, []string{"kernel", dir}},
		{"no kernel's format", harness.Settings{"kernel": text}, []string{"kernel", text}},
		{"no image", harness.Settings{"image": absent}, []string{"image", absent, "no such file"}},
		{"too little memory", harness.Settings{"memory_mib": 16}, []string{"memory_mib", "16", "64"}},
		{"no vCPU", harness.Settings{"vcpus": -1}, []string{"vcpus", "-1", "32"}},
		{"too many vCPUs", harness.Settings{"vcpus": 10000}, []string{"vcpus", "10000", "32"}},
		{"unknown key", harness.Settings{"kernal": "x"}, []string{"kernal"}},
		{"wrong type", harness.Settings{"vcpus": "two"}, []string{"vcpus"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			wantError(t, c.Run(t, harness.Run{Config: c.Config(t, tt.changes), Args: []string{"true"}}), tt.words...)
		})
	}
	t.Run("too many vCPUs by ctr's flag", func(t *testing.T) {
		wantError(t, c.Run(t, harness.Run{Flags: []string{"--cpus", "40"}, Args: []string{"true"}}), "40", "vCPU", "32")
	})
	t.Run("no configuration", func(t *testing.T) {
		wantError(t, c.Run(t, harness.Run{Config: absent, Args: []string{"true"}}), absent, "no such file")
	})
	t.Run("unreadable configuration", func(t *testing.T) {
		// Root can read any file, but not a folder.
		wantError(t, c.Run(t, harness.Run{Config: dir, Args: []string{"true"}}), dir, "is a directory")
	})
	t.Run("configuration is no TOML", func(t *testing.T) {
		wantError(t, c.Run(t, harness.Run{Config: text, Args: []string{"true"}}), text)
	})
}

// TestBadSpec gives ctr a spec that lacks what it needs.
func TestBadSpec(t *testing.T) {
	c := containerd(t)
	root := t.TempDir()
	for _, tt := range []struct {
		name   string
		change func(*oci.Spec)
		words  []string
	}{
		{"no process", func(s *oci.Spec) { s.Process = nil }, []string{"process"}},
		{"no arguments", func(s *oci.Spec) { s.Process.Args = nil }, []string{"args"}},
		{"relative cwd", func(s *oci.Spec) { s.Process.Cwd = "tmp" }, []string{"wd"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			id := c.ID(t)
			var s oci.Spec
			if err := json.Unmarshal([]byte(defaultSpec), &s); err != nil {
				t.Fatal(err)
			}
			s.Root = &specs.Root{Path: root}
			s.Linux.CgroupsPath = "/" + harness.Namespace + "/" + id
			tt.change(&s)
			path := filepath.Join(t.TempDir(), "spec.json")
			writeJSON(t, path, s)
			args := append(append([]string{"run", "--rm"}, c.RuntimeFlags("")...), "--config", path, id)
			wantError(t, c.Ctr(t, args...), tt.words...)
		})
	}
}

const defaultSpec = `{
  "ociVersion": "1.2.0",
  "process": {"user": {"uid": 0, "gid": 0}, "args": ["true"], "cwd": "/"},
  "mounts": [{"destination": "/proc", "type": "proc", "source": "proc"}],
  "linux": {"namespaces": [{"type": "pid"}, {"type": "mount"}, {"type": "ipc"}, {"type": "uts"}, {"type": "network"}]}
}`

// TestNoKVM starts a containerd for which there is no /dev/kvm.
func TestNoKVM(t *testing.T) {
	env := harness.Need(t)
	if !env.FC() {
		t.Skipf("%s needs no KVM", env.Runtime)
	}
	// In a mount namespace of its own, with a /dev that holds what containerd needs.
	const hide = `
set -e
mount -t tmpfs dev /dev.hidden
for d in null zero full random urandom tty fuse ptmx; do [ ! -e /dev/$d ] || { touch /dev.hidden/$d; mount --bind /dev/$d /dev.hidden/$d; }; done
mount --rbind /dev.hidden /dev
exec "$@"`
	dir := t.TempDir()
	script := strings.ReplaceAll(hide, "/dev.hidden", dir)
	c, err := harness.Start(env, harness.Options{Wrap: []string{"unshare", "--mount", "sh", "-c", script, "sh"}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Stop(); err != nil {
			t.Error(err)
		}
	})
	c.NoLeaks(t)
	if _, err := os.Stat("/dev/kvm"); err != nil {
		t.Fatalf("hidden from the tests, too: %v", err)
	}
	wantError(t, c.Run(t, harness.Run{Args: []string{"true"}}), "/dev/kvm", "no such file")
}
