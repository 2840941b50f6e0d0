package setup

import (
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fcshim/containerd-shim-fc-v2/pkg/agent"
)

// WriteBack has all file systems write what is dirty. The wait is bounded, for one may be served by a host that has gone; then it is
// os.ErrDeadlineExceeded.
func WriteBack() error {
	synced := make(chan struct{})
	go func() { unix.Sync(); close(synced) }()
	select {
	case <-synced:
		return nil
	case <-time.After(agent.SyncTimeout):
		return fmt.Errorf("dirty pages are not written back after %v: %w", agent.SyncTimeout, os.ErrDeadlineExceeded)
	}
}

// PowerOff writes dirty pages back and turns the VM off. It returns only if the kernel refuses.
func PowerOff() error {
	if WriteBack() == nil {
		// What is busy, or is not mounted, stays: its pages are written already.
		unix.Unmount(agent.SharedDir, unix.MNT_DETACH)
	}
	return unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
}
