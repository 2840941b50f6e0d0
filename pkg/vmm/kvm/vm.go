package kvm

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// VM is a virtual machine's file descriptor.
type VM struct {
	fd      int
	runSize int
}

// Close closes the VM. KVM destroys it once its vCPUs are closed too. A second Close does nothing.
func (vm *VM) Close() error {
	if vm.fd < 0 {
		return nil
	}
	err := unix.Close(vm.fd)
	vm.fd = -1
	return err
}

// Dup gives another descriptor of the VM, which the caller closes. KVM does not destroy the VM as long as it is open.
func (vm *VM) Dup() (int, error) { return unix.FcntlInt(uintptr(vm.fd), unix.F_DUPFD_CLOEXEC, 0) }

// SetMemory makes the len(mem) bytes of this process at mem guest RAM at guest-physical address gpa (KVM API 4.35,
// KVM_SET_USER_MEMORY_REGION). Both are page-aligned. mem must stay mapped, and must not be in the Go heap, until the VM
// and its vCPUs are closed.
func (vm *VM) SetMemory(slot uint32, gpa uint64, mem []byte) error {
	return setMemory(vm.fd, slot, gpa, mem)
}

// SetTSSAddr and SetIdentityMapAddr place four pages that KVM needs on Intel's CPUs: the three of a TSS, and an
// identity-map page table. They must lie below 4 GiB, outside guest RAM and MMIO (KVM API 4.42, 4.41).
func (vm *VM) SetTSSAddr(addr uint64) error {
	_, err := ioctl(vm.fd, "KVM_SET_TSS_ADDR", kvmSetTSSAddr, uintptr(addr))
	return err
}

// SetIdentityMapAddr: see SetTSSAddr. It must come before the first vCPU.
func (vm *VM) SetIdentityMapAddr(addr uint64) error {
	return ioctlPtr(vm.fd, "KVM_SET_IDENTITY_MAP_ADDR", kvmSetIdentityMapAddr, &addr)
}

// CreateIrqchip makes the PIC, the IOAPIC and, for each later vCPU, a local APIC in the kernel (KVM API 4.24).
func (vm *VM) CreateIrqchip() error {
	_, err := ioctl(vm.fd, "KVM_CREATE_IRQCHIP", kvmCreateIrqchip, 0)
	return err
}

// CreatePIT2 makes an i8254 in the kernel, with a dummy speaker port 0x61 (KVM API 4.71).
func (vm *VM) CreatePIT2() error {
	cfg := pitConfig{Flags: pitSpeakerDummy}
	return ioctlPtr(vm.fd, "KVM_CREATE_PIT2", kvmCreatePIT2, &cfg)
}

// IRQLevel is a line's state for SetIRQLine. It has the layout of struct kvm_irq_level.
type IRQLevel struct {
	GSI, Level uint32
}

// SetIRQLine sets the level of a line into the in-kernel interrupt controllers (KVM API 4.25). It does not allocate.
func (vm *VM) SetIRQLine(l *IRQLevel) error {
	return ioctlPtr(vm.fd, "KVM_IRQ_LINE", kvmIRQLine, l)
}

// Ioeventfd makes a guest's four-byte write of value to guest-physical address addr signal the eventfd, without an exit to
// user space (KVM API 4.59).
func (vm *VM) Ioeventfd(event *os.File, addr uint64, value uint32) error {
	return withFD(event, func(fd uintptr) error {
		a := ioeventfd{Datamatch: uint64(value), Addr: addr, Len: 4, FD: int32(fd), Flags: ioeventfdDatamatch}
		return ioctlPtr(vm.fd, "KVM_IOEVENTFD", kvmIoeventfd, &a)
	})
}

// withFD runs f with the descriptor and leaves the file non-blocking, which os.File.Fd would not.
func withFD(file *os.File, f func(fd uintptr) error) error {
	rc, err := file.SyscallConn()
	if err != nil {
		return err
	}
	var ferr error
	if err := rc.Control(func(fd uintptr) { ferr = f(fd) }); err != nil {
		return err
	}
	return ferr
}

// CreateVCPU makes the vCPU with the given id, which is also its local APIC's id (KVM API 4.7). Close it before the memory
// given to SetMemory is unmapped.
func (vm *VM) CreateVCPU(id int) (*VCPU, error) {
	fd, err := ioctl(vm.fd, "KVM_CREATE_VCPU", kvmCreateVCPU, uintptr(id))
	if err != nil {
		return nil, fmt.Errorf("vCPU %d: %w", id, err)
	}
	run, err := unix.Mmap(int(fd), 0, vm.runSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("vCPU %d: mmap of kvm_run: %w", id, err), unix.Close(int(fd)))
	}
	return &VCPU{fd: int(fd), run: run}, nil
}
