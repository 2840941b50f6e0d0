package setup

import (
	"time"

	"golang.org/x/sys/unix"

	"github.com/fcshim/containerd-shim-fc-v2/pkg/agent"
)

// syncBound is how long a power-off waits for dirty pages: their file system may be served by a host that has gone.
const syncBound = 5 * time.Second

// PowerOff writes dirty pages back and turns the VM off. It returns only if the kernel refuses.
func PowerOff() error {
	synced := make(chan struct{})
	go func() { unix.Sync(); close(synced) }()
	select {
	case <-synced:
		// What is busy, or is not mounted, stays: its pages are written already.
		unix.Unmount(agent.SharedDir, unix.MNT_DETACH)
	case <-time.After(syncBound):
	}
	return unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
}
