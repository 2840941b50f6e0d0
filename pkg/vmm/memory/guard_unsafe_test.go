package memory

import (
	"errors"
	"os"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Whoever runs out of guest RAM must find nothing there.
func TestGuards(t *testing.T) {
	m, err := New(GapStart+1<<20, HostPages) // two regions
	if err != nil {
		t.Fatal(err)
	}
	if len(m.Regions()) != 2 {
		t.Fatalf("%d regions, want 2", len(m.Regions()))
	}
	zero, err := os.Open("/dev/zero")
	if err != nil {
		t.Fatal(err)
	}
	defer zero.Close()
	// The kernel reads into each byte around, so that a fault is an error and not a signal.
	read := func(p unsafe.Pointer) error {
		iov := unix.Iovec{Base: (*byte)(p), Len: 1}
		_, _, errno := unix.Syscall(unix.SYS_READV, zero.Fd(), uintptr(unsafe.Pointer(&iov)), 1)
		if errno != 0 {
			return errno
		}
		return nil
	}
	for i, r := range m.Regions() {
		first := unsafe.Pointer(&r.Mem[0])
		if uintptr(first)%HugePageSize != 0 {
			t.Errorf("region %d is at %p: want a multiple of a huge page", i, first)
		}
		for _, off := range []int{0, len(r.Mem) - 1} {
			if err := read(unsafe.Add(first, off)); err != nil {
				t.Errorf("region %d, offset %d: %v", i, off, err)
			}
		}
		for _, off := range []int{-guard, -PageSize, -1, len(r.Mem), len(r.Mem) + guard - 1} {
			if err := read(unsafe.Add(first, off)); !errors.Is(err, unix.EFAULT) {
				t.Errorf("region %d, offset %d: %v, want %v", i, off, err, unix.EFAULT)
			}
		}
	}
	if err := m.Close(); err != nil {
		t.Error(err)
	}
	if err := m.Close(); !errors.Is(err, os.ErrClosed) {
		t.Errorf("second close: %v", err)
	}
}
