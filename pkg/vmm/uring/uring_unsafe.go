package uring

import (
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

// setup is io_uring_setup(2). CLOEXEC is the call's own.
func setup(entries uint32, p *[paramsSize]byte) (int, error) {
	fd, _, errno := unix.Syscall(unix.SYS_IO_URING_SETUP, uintptr(entries), uintptr(unsafe.Pointer(p)), 0)
	if errno != 0 {
		return -1, errno
	}
	return int(fd), nil
}

// register is io_uring_register(2) with one descriptor.
func register(fd int, op uintptr, arg int32) error {
	if _, _, errno := unix.Syscall6(unix.SYS_IO_URING_REGISTER, uintptr(fd), op, uintptr(unsafe.Pointer(&arg)), 1, 0, 0); errno != 0 {
		return errno
	}
	return nil
}

// enter is io_uring_enter(2), to submit n entries and to wait for none.
func enter(fd int, n uint32) (uint32, error) {
	r, _, errno := unix.Syscall6(unix.SYS_IO_URING_ENTER, uintptr(fd), uintptr(n), 0, 0, 0, 0)
	if errno != 0 {
		return 0, errno
	}
	return uint32(r), nil
}

// word is the 32-bit word at b[off], which the kernel shares.
//
// Precondition: b is a mapping of the kernel's ring, and off the offset of a word that it told.
func word(b []byte, off uint32) *atomic.Uint32 {
	return (*atomic.Uint32)(unsafe.Pointer(&b[off : off+4][0]))
}

// Readv prepares preadv2(2).
//
// Precondition: iov is on the heap and lasts until Submit has returned, and the buffers that it names are no Go memory and stay mapped until the result
// has been taken.
func (r *Ring) Readv(fd int, iov []unix.Iovec, off int64, id uint64) {
	r.prepare(opReadv, fd, uint64(uintptr(unsafe.Pointer(unsafe.SliceData(iov)))), uint64(off), uint32(len(iov)), 0, id)
}

// Writev prepares pwritev2(2) with RWF_ flags.
//
// Precondition: Readv's.
func (r *Ring) Writev(fd int, iov []unix.Iovec, off int64, flags uint32, id uint64) {
	r.prepare(opWritev, fd, uint64(uintptr(unsafe.Pointer(unsafe.SliceData(iov)))), uint64(off), uint32(len(iov)), flags, id)
}
