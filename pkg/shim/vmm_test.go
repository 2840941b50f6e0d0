package shim

import (
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/containerd/errdefs"

	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm"
)

// A process that SIGKILL does not end, for it is stuck in the kernel, must not hold the shim for ever.
func TestKillIsBounded(t *testing.T) {
	cmd := exec.Command("sleep", "100")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = cmd.Wait() }()
	synctest.Test(t, func(t *testing.T) { // in which 5 s are no time
		p := &child{cmd: cmd, done: make(chan struct{})} // nobody reaps it
		if err := kill(p); !errdefs.IsUnavailable(err) || !strings.Contains(err.Error(), "within 5s of its SIGKILL") {
			t.Errorf("kill: %v", err)
		}
		close(p.done)
		if err := kill(p); err != nil {
			t.Errorf("kill of what has ended: %v", err)
		}
	})
}

// What the VMM's library gives as a status is what the shim puts into words.
func TestExitStatuses(t *testing.T) {
	for reason, want := range map[vmm.Reason]string{
		vmm.Stopped:    "the guest has ended (reset)",
		vmm.Rebooted:   "the guest has ended (reset)",
		vmm.PoweredOff: "the guest has ended (power off)",
		vmm.Panicked:   "the guest's kernel has panicked",
		vmm.Fault:      "the VM has broken down (triple fault or an error of KVM): last words",
	} {
		cmd := exec.Command("sh", "-c", "exit "+strconv.Itoa(reason.Status()))
		err := cmd.Run()
		if got := (&child{name: "fc-vmm", words: vmmWords()}).exitReason(cmd.ProcessState, err, "last words"); got.Error() != want {
			t.Errorf("%v: %q, want %q", reason, got, want)
		}
	}
}
