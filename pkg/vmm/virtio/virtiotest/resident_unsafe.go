package virtiotest

import (
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/memory"
)

// Resident says how many pages of guest RAM take memory of the host (mincore(2)).
//
// Precondition: mem has not been closed.
func Resident(tb testing.TB, mem *memory.Memory) (pages int) {
	tb.Helper()
	for _, r := range mem.Regions() {
		in := make([]byte, len(r.Mem)/memory.PageSize)
		_, _, errno := unix.Syscall(unix.SYS_MINCORE, uintptr(unsafe.Pointer(&r.Mem[0])), uintptr(len(r.Mem)), uintptr(unsafe.Pointer(&in[0])))
		if errno != 0 {
			tb.Fatalf("mincore: %v", errno)
		}
		for _, b := range in {
			pages += int(b & 1)
		}
	}
	return pages
}
