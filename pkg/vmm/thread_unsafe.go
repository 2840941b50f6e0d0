package vmm

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// nameThread names the calling thread for ps and debuggers. Precondition: the goroutine is locked to its thread. A name
// that the kernel refuses is no error: it has no effect on the machine.
func nameThread(name string) {
	if p, err := unix.BytePtrFromString(name); err == nil {
		_ = unix.Prctl(unix.PR_SET_NAME, uintptr(unsafe.Pointer(p)), 0, 0, 0)
	}
}
