package setup

import (
	"time"

	"golang.org/x/sys/unix"

	"github.com/fcshim/containerd-shim-fc-v2/pkg/agent"
)

// PowerOff writes dirty pages back and turns the VM off. It returns only if the kernel refuses. The wait for the pages is
// bounded: their file system may be served by a host that has gone.
func PowerOff() error {
	synced := make(chan struct{})
	go func() { unix.Sync(); close(synced) }()
	select {
	case <-synced:
		// What is busy, or is not mounted, stays: its pages are written already.
		unix.Unmount(agent.SharedDir, unix.MNT_DETACH)
	case <-time.After(agent.SyncTimeout):
	}
	return unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
}
