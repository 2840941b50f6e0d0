package shim

import (
	"os/exec"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/containerd/errdefs"
)

// A process that SIGKILL does not end, for it is stuck in the kernel, must not hold the shim for ever.
func TestKillIsBounded(t *testing.T) {
	cmd := exec.Command("sleep", "100")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = cmd.Wait() }()
	synctest.Test(t, func(t *testing.T) { // in which 5 s are no time
		p := &vmmProcess{cmd: cmd, done: make(chan struct{})} // nobody reaps it
		if err := p.kill(); !errdefs.IsUnavailable(err) || !strings.Contains(err.Error(), "within 5s of its SIGKILL") {
			t.Errorf("kill: %v", err)
		}
		close(p.done)
		if err := p.kill(); err != nil {
			t.Errorf("kill of what has ended: %v", err)
		}
	})
}
