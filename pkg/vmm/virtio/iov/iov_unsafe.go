// Package iov moves bytes between files and guest memory by the kernel's vectored calls, without a copy and without an
// allocation. It must be given memory outside the Go heap only.
package iov

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// Max is the largest number of buffers in one call (UIO_MAXIOV).
const Max = 1024

// Vec is a reusable list of buffers that shrinks as it is worked off. The zero value is empty.
type Vec struct {
	iov  []unix.Iovec
	rest []unix.Iovec
	n    int
}

// Set points v at the first max bytes of bufs behind skip; bufs beyond Max are left out.
//
// Precondition: Append's.
func (v *Vec) Set(bufs [][]byte, skip, max int) {
	v.Clear()
	v.Append(bufs, skip, max)
}

// Clear leaves out everything, and keeps no pointer to it.
func (v *Vec) Clear() {
	clear(v.iov)
	v.iov, v.rest, v.n = v.iov[:0], nil, 0
}

// Append adds up to max bytes of bufs behind skip and returns how many; bufs beyond Max are left out. It must not follow
// Advance without a Clear between.
//
// Precondition: bufs' memory, the guest's (mapped outside the Go heap) but for tests, stays mapped while v is used.
func (v *Vec) Append(bufs [][]byte, skip, max int) int {
	n := 0
	for _, b := range bufs {
		if skip >= len(b) {
			skip -= len(b)
			continue
		}
		b, skip = b[skip:], 0
		b = b[:min(len(b), max-n)]
		if len(b) == 0 || len(v.iov) == Max {
			break
		}
		v.iov = append(v.iov, unix.Iovec{Base: &b[0], Len: uint64(len(b))})
		n += len(b)
	}
	v.rest = v.iov
	v.n += n
	return n
}

// Len is the number of bytes left.
func (v *Vec) Len() int { return v.n }

// Rest is what is left, for a system call that v does not know. It is v's.
func (v *Vec) Rest() []unix.Iovec { return v.rest }

// Advance leaves out the next n bytes, at most Len.
func (v *Vec) Advance(n int) {
	v.n -= n
	for n > 0 {
		e := &v.rest[0]
		if uint64(n) < e.Len {
			// Precondition of Set: not Go memory; and n < Len, so the sum stays inside the buffer.
			e.Base = (*byte)(unsafe.Add(unsafe.Pointer(e.Base), n))
			e.Len -= uint64(n)
			return
		}
		n -= int(e.Len)
		v.rest = v.rest[1:]
	}
}

// Preadv fills the buffers from offset off of a file and returns the number of bytes.
func (v *Vec) Preadv(fd int, off int64) (int, error) {
	return v.call(unix.SYS_PREADV, fd, off, 0)
}

// Pwritev writes the buffers at offset off of a file and returns the number of bytes.
func (v *Vec) Pwritev(fd int, off int64) (int, error) {
	return v.call(unix.SYS_PWRITEV, fd, off, 0)
}

// Pwritev2 is Pwritev with RWF_ flags.
func (v *Vec) Pwritev2(fd int, off int64, flags int) (int, error) {
	return v.call(unix.SYS_PWRITEV2, fd, off, flags)
}

// Readv fills the buffers from a file or socket and returns the number of bytes.
func (v *Vec) Readv(fd int) (int, error) { return v.call(unix.SYS_READV, fd, 0, 0) }

// Writev writes the buffers to a file or socket and returns the number of bytes.
func (v *Vec) Writev(fd int) (int, error) { return v.call(unix.SYS_WRITEV, fd, 0, 0) }

// call repeats a vectored system call that a signal interrupted. Calls without an offset, or without flags, ignore theirs.
//
// Precondition: v was made by Set or Append, whose precondition still holds.
func (v *Vec) call(trap uintptr, fd int, off int64, flags int) (int, error) {
	if len(v.rest) == 0 {
		return 0, nil
	}
	for {
		n, _, errno := unix.Syscall6(trap, uintptr(fd), uintptr(unsafe.Pointer(&v.rest[0])), uintptr(len(v.rest)), uintptr(off), 0, uintptr(flags))
		switch errno {
		case 0:
			return int(n), nil
		case unix.EINTR:
		default:
			return 0, errno
		}
	}
}
