package setup

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// bootTimerDone is what the boot timer wants to be told.
const bootTimerDone = 123

// TellBoot tells the VMM's boot timer, a page of Firecracker's machine, that user space runs. Where the VMM has none, nothing
// happens. It needs a kernel with CONFIG_DEVMEM, and a /dev: the kernel mounts that (CONFIG_DEVTMPFS_MOUNT). To be called in a
// guest only: on any other machine, something else may be at that address.
func TellBoot() error {
	// Through a mapping, as write(2) reaches RAM only.
	fd, err := unix.Open("/dev/mem", unix.O_RDWR|unix.O_SYNC|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open /dev/mem: %w", err)
	}
	defer unix.Close(fd)
	page, err := unix.Mmap(fd, bootTimerAddr, os.Getpagesize(), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return fmt.Errorf("map /dev/mem at %#x: %w", bootTimerAddr, err)
	}
	page[0] = bootTimerDone
	return unix.Munmap(page)
}
