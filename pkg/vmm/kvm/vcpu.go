package kvm

import (
	"encoding/binary"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// VCPU is a virtual CPU's file descriptor and its shared kvm_run page. All ioctls must come from the thread that runs the
// vCPU, or while that thread is outside Run; SetImmediateExit may be called from anywhere.
type VCPU struct {
	fd  int
	run []byte
}

// ExitReason says why Run came back (KVM API 5).
type ExitReason uint32

// The exit reasons that a machine with an in-kernel irqchip can meet.
const (
	ExitUnknown       ExitReason = 0
	ExitException     ExitReason = 1
	ExitIO            ExitReason = 2
	ExitHypercall     ExitReason = 3
	ExitDebug         ExitReason = 4
	ExitHLT           ExitReason = 5
	ExitMMIO          ExitReason = 6
	ExitIRQWindowOpen ExitReason = 7
	ExitShutdown      ExitReason = 8
	ExitFailEntry     ExitReason = 9
	ExitIntr          ExitReason = 10
	ExitInternalError ExitReason = 17
	ExitSystemEvent   ExitReason = 24
)

var exitNames = [...]string{
	ExitUnknown: "UNKNOWN", ExitException: "EXCEPTION", ExitIO: "IO", ExitHypercall: "HYPERCALL", ExitDebug: "DEBUG",
	ExitHLT: "HLT", ExitMMIO: "MMIO", ExitIRQWindowOpen: "IRQ_WINDOW_OPEN", ExitShutdown: "SHUTDOWN",
	ExitFailEntry: "FAIL_ENTRY", ExitIntr: "INTR", ExitInternalError: "INTERNAL_ERROR", ExitSystemEvent: "SYSTEM_EVENT",
}

// String is the reason's name in the KVM API without its KVM_EXIT_.
func (r ExitReason) String() string {
	if int(r) < len(exitNames) && exitNames[r] != "" {
		return exitNames[r]
	}
	return fmt.Sprintf("reason %d", uint32(r))
}

// Offsets in struct kvm_run (linux/kvm.h).
const (
	runImmediateExit = 1
	runExitReason    = 8
	runUnion         = 32
	runMinSize       = 4096
)

// Run enters the guest until something needs user space (KVM API 4.10). It returns unix.EINTR, unwrapped, when a signal
// came or SetImmediateExit(true) is in force: the caller looks at its mailbox then. It does not allocate.
func (v *VCPU) Run() (ExitReason, error) {
	// Not RawSyscall: a spinning guest would keep its P, and every collection of garbage would wait for it.
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(v.fd), kvmRun, 0); errno != 0 {
		if errno == unix.EINTR || errno == unix.EAGAIN {
			return ExitIntr, unix.EINTR
		}
		return 0, fmt.Errorf("KVM_RUN: %w", errno)
	}
	return ExitReason(binary.NativeEndian.Uint32(v.run[runExitReason:])), nil
}

// IO is a port I/O exit: Count accesses of Size bytes each to Port (a string instruction has more than one).
type IO struct {
	Port uint16
	Size int
	// Data is Count*Size bytes in the kvm_run page: what the guest wrote, or where the answer goes.
	Data  []byte
	Write bool
}

// IO decodes an ExitIO.
func (v *VCPU) IO() (IO, error) {
	u := v.run[runUnion:]
	size, count := int(u[1]), uint64(binary.NativeEndian.Uint32(u[4:]))
	off := binary.NativeEndian.Uint64(u[8:])
	n := uint64(size) * count
	if size == 0 || off > uint64(len(v.run)) || n > uint64(len(v.run))-off {
		return IO{}, fmt.Errorf("KVM_EXIT_IO: %d accesses of %d bytes at offset %#x: outside kvm_run", count, size, off)
	}
	return IO{Port: binary.NativeEndian.Uint16(u[2:]), Size: size, Data: v.run[off : off+n], Write: u[0] == 1}, nil
}

// MMIO is a memory access to where no RAM is.
type MMIO struct {
	Addr uint64
	// Data is 1 to 8 bytes in the kvm_run page: what the guest wrote, or where the answer goes.
	Data  []byte
	Write bool
}

// MMIO decodes an ExitMMIO.
func (v *VCPU) MMIO() (MMIO, error) {
	u := v.run[runUnion:]
	n := binary.NativeEndian.Uint32(u[16:])
	if n > 8 {
		return MMIO{}, fmt.Errorf("KVM_EXIT_MMIO: %d bytes: want at most 8", n)
	}
	return MMIO{Addr: binary.NativeEndian.Uint64(u), Data: u[8 : 8+n], Write: u[20] != 0}, nil
}

// System event types of an ExitSystemEvent.
const (
	SystemEventShutdown = 1
	SystemEventReset    = 2
	SystemEventCrash    = 3
)

// SystemEvent gives the type of an ExitSystemEvent.
func (v *VCPU) SystemEvent() uint32 { return binary.NativeEndian.Uint32(v.run[runUnion:]) }

// ExitError describes an exit that ends a machine, with what KVM tells about its cause.
func (v *VCPU) ExitError(r ExitReason) error {
	u := v.run[runUnion:]
	switch r {
	case ExitFailEntry:
		return fmt.Errorf("KVM_EXIT_FAIL_ENTRY: hardware reason %#x on host CPU %d", binary.NativeEndian.Uint64(u), binary.NativeEndian.Uint32(u[8:]))
	case ExitInternalError:
		n := min(binary.NativeEndian.Uint32(u[4:]), 16)
		data := make([]uint64, n)
		for i := range data {
			data[i] = binary.NativeEndian.Uint64(u[8+8*i:])
		}
		return fmt.Errorf("KVM_EXIT_INTERNAL_ERROR: suberror %d, data %#x", binary.NativeEndian.Uint32(u), data)
	default:
		return fmt.Errorf("KVM_EXIT_%s", r)
	}
}

// SetImmediateExit makes the next Run, or with a signal the one under way, come back with EINTR before the guest executes
// anything more; a finished I/O access is completed first (KVM API 5, immediate_exit).
func (v *VCPU) SetImmediateExit(on bool) { setImmediateExit(v.run, on) }

// Close unmaps kvm_run and closes the vCPU. A second Close does nothing.
func (v *VCPU) Close() error {
	if v.fd < 0 {
		return nil
	}
	err := errors.Join(unix.Munmap(v.run), unix.Close(v.fd))
	v.fd, v.run = -1, nil
	return err
}
