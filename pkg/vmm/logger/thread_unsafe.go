package logger

import (
	"bytes"
	"unsafe"

	"golang.org/x/sys/unix"
)

// currentThread is the calling thread's name. Precondition: none; the kernel writes 16 bytes at most (PR_GET_NAME), and Go keeps the array
// where it is for as long as the call lasts.
func currentThread() string {
	var name [16]byte
	if _, _, errno := unix.Syscall(unix.SYS_PRCTL, unix.PR_GET_NAME, uintptr(unsafe.Pointer(&name)), 0); errno != 0 {
		return ""
	}
	n, _, _ := bytes.Cut(name[:], []byte{0})
	return string(n)
}
