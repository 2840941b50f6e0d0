package passthrough

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// appendIovec appends to iov what n bytes take that start at byte skip of bufs, at most maxVec pieces, and returns how
// many of the n bytes these are.
//
// Precondition: the iovecs are used only while bufs' memory is mapped, and cleared before it may go.
func appendIovec(iov []unix.Iovec, bufs [][]byte, skip, n int) ([]unix.Iovec, int) {
	have := 0
	for _, b := range bufs {
		if skip >= len(b) {
			skip -= len(b)
			continue
		}
		b = b[skip:]
		skip = 0
		if len(b) > n-have {
			b = b[:n-have]
		}
		if len(b) == 0 || len(iov) == maxVec {
			break
		}
		iov = append(iov, unix.Iovec{Base: unsafe.SliceData(b), Len: uint64(len(b))})
		have += len(b)
	}
	return iov, have
}

// skipIovec drops the first n bytes, and with them each piece that was all used.
//
// Precondition: iov holds n bytes or more.
func skipIovec(iov []unix.Iovec, n int) []unix.Iovec {
	for len(iov) > 0 && uint64(n) >= iov[0].Len {
		n -= int(iov[0].Len)
		iov = iov[1:]
	}
	if n > 0 {
		iov[0].Base = (*byte)(unsafe.Add(unsafe.Pointer(iov[0].Base), n))
		iov[0].Len -= uint64(n)
	}
	return iov
}

// clearIovec forgets all pointers.
//
// Precondition: no call that uses them is under way.
func clearIovec(iov []unix.Iovec) []unix.Iovec {
	clear(iov)
	return iov[:0]
}

// vectorIO is preadv2 or pwritev2.
//
// Precondition: call is one of the two; iov, not empty, describes mapped memory, which the kernel writes to or reads from.
func vectorIO(call uintptr, fd int, iov []unix.Iovec, offset int64, how uintptr) (int, unix.Errno) {
	n, _, errno := unix.Syscall6(call, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(iov))), uintptr(len(iov)),
		uintptr(offset), 0, how)
	if errno != 0 {
		return 0, errno
	}
	return int(n), 0
}
