package kvm

import (
	"fmt"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

// ioctl calls an ioctl whose argument is a number. Precondition: arg is not a pointer.
func ioctl(fd int, name string, req, arg uintptr) (uintptr, error) {
	r, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), req, arg)
	if errno != 0 {
		return 0, fmt.Errorf("%s: %w", name, errno)
	}
	return r, nil
}

// ioctlPtr calls an ioctl whose argument points to a T. Precondition: T has the layout and at least the size that the
// kernel reads and writes for req.
func ioctlPtr[T any](fd int, name string, req uintptr, arg *T) error {
	_, err := ioctlPtrValue(fd, name, req, arg)
	return err
}

// ioctlPtrValue is ioctlPtr for an ioctl that returns a number. Precondition: ioctlPtr's.
func ioctlPtrValue[T any](fd int, name string, req uintptr, arg *T) (uintptr, error) {
	r, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), req, uintptr(unsafe.Pointer(arg)))
	if errno != 0 {
		return 0, fmt.Errorf("%s: %w", name, errno)
	}
	return r, nil
}

// setMemory tells KVM an address of this process. Precondition: mem is mapped outside the Go heap and stays so while the VM
// lives; it is not empty.
func setMemory(fd int, slot uint32, gpa uint64, mem []byte) error {
	r := memoryRegion{Slot: slot, GuestPhysAddr: gpa, MemorySize: uint64(len(mem)), UserspaceAddr: uint64(uintptr(unsafe.Pointer(unsafe.SliceData(mem))))}
	if err := ioctlPtr(fd, "KVM_SET_USER_MEMORY_REGION", kvmSetUserMemory, &r); err != nil {
		return fmt.Errorf("slot %d, %d bytes at %#x: %w", slot, len(mem), gpa, err)
	}
	return nil
}

// setImmediateExit sets kvm_run.immediate_exit, the second byte of the first word, whose other bytes are unused with an
// in-kernel irqchip. Precondition: run is a mapped kvm_run page.
func setImmediateExit(run []byte, on bool) {
	var w uint32
	if on {
		b := (*[4]byte)(unsafe.Pointer(&w))
		b[runImmediateExit] = 1
	}
	atomic.StoreUint32((*uint32)(unsafe.Pointer(unsafe.SliceData(run))), w)
}
