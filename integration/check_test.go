package integration

import (
	"bytes"
	"errors"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/fcshim/containerd-shim-fc-v2/integration/harness"
)

// TestCheck runs the shim's check of this host: as it is, and with things amiss.
func TestCheck(t *testing.T) {
	c := containerd(t)
	fcOnly(t, c)
	dead := filepath.Join(t.TempDir(), "dead.sock")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: dead, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	l.Close()
	text := filepath.Join(t.TempDir(), "text")
	write(t, text, strings.Repeat("no image\n", 1000))
	for _, tt := range []struct {
		name    string
		changes harness.Settings
		address string
		status  int
		words   []string
	}{
		{"good", nil, c.Address(), 0, []string{"ok    KVM: ", "ok    guest kernel: ", "ok    containerd: github.com/containerd/containerd/v2 v2.", "ok    shim: containerd finds it",
			"ok    tc ingress: ", "ok    boot: a guest with Linux ", "can work here"}},
		{"no kernel", harness.Settings{"kernel": "/no/such/kernel"}, c.Address(), 1, []string{"FAIL  guest kernel: /no/such/kernel: no such file", "set kernel in fc.toml", "boot: not tried"}},
		{"bad image and no containerd", harness.Settings{"image": text}, "/no/such/socket", 1, []string{"FAIL  guest image: " + text, "warn  containerd: /no/such/socket"}},
		{"misspelt key", harness.Settings{"kernal": "x"}, c.Address(), 1, []string{"FAIL  settings: ", `unknown key "kernal"`}},
		{"a guest that does not boot, and a dead containerd", harness.Settings{"kernel_args": "init=/no/such/init"}, dead, 1,
			[]string{"FAIL  containerd: " + dead + ": connect: connection refused", "FAIL  boot: the guest's kernel has panicked"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			cmd := exec.Command(filepath.Join(c.Bin, "containerd-shim-fc-v2"), "check", "--config", c.Config(t, tt.changes), "--address", tt.address)
			cmd.Env = append(os.Environ(), "TMPDIR="+t.TempDir())
			var out bytes.Buffer
			cmd.Stdout, cmd.Stderr = &out, &out
			err := cmd.Run()
			var exit *exec.ExitError
			if err != nil && !errors.As(err, &exit) {
				t.Fatal(err)
			}
			if got := cmd.ProcessState.ExitCode(); got != tt.status {
				t.Errorf("status %d, want %d", got, tt.status)
			}
			for _, w := range tt.words {
				if !strings.Contains(out.String(), w) {
					t.Errorf("it does not say %q", w)
				}
			}
			t.Log(out.String())
		})
	}
}
