package vmm

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// nameThread names the calling thread for ps and debuggers. Precondition: the goroutine is locked to its thread. A name
// that the kernel refuses is no error: it has no effect on the machine. The first thread keeps its name, which is the
// process's: by it ps and pgrep know fc-vmm.
func nameThread(name string) {
	if unix.Gettid() == unix.Getpid() {
		return
	}
	if p, err := unix.BytePtrFromString(name); err == nil {
		_ = unix.Prctl(unix.PR_SET_NAME, uintptr(unsafe.Pointer(p)), 0, 0, 0)
	}
}
