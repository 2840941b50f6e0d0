package block

import (
	"fmt"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// blockDeviceSize is the size of a block device in bytes.
//
// Precondition: f is an open device; BLKGETSIZE64 writes eight bytes to where its argument points, or fails.
func blockDeviceSize(f *os.File) (uint64, error) {
	var size uint64
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), unix.BLKGETSIZE64, uintptr(unsafe.Pointer(&size))); errno != 0 {
		return 0, fmt.Errorf("size of block device: %w", errno)
	}
	return size, nil
}
