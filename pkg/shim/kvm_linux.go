package shim

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// From the KVM API, sections 4.1 and 4.4.
const (
	kvmGetAPIVersion  = 0xAE00
	kvmCheckExtension = 0xAE03
	kvmCapNrVCPUs     = 9
	kvmCapMaxVCPUs    = 66
	kvmAPIVersion     = 12
)

// probeKVM opens /dev/kvm and asks for its bounds; it creates no VM.
func probeKVM() (int, error) {
	f, err := os.OpenFile("/dev/kvm", os.O_RDWR, 0)
	if err != nil {
		return 0, fmt.Errorf("/dev/kvm: %w (load kvm_amd or kvm_intel, enable virtualisation in the firmware, or allow access)", reason(err))
	}
	defer f.Close()
	if v, err := ioctl(f, kvmGetAPIVersion, 0); err != nil || v != kvmAPIVersion {
		return 0, fmt.Errorf("/dev/kvm answers API version %d, %d is needed", v, kvmAPIVersion)
	}
	n, err := ioctl(f, kvmCheckExtension, kvmCapMaxVCPUs)
	if err != nil || n == 0 {
		// Section 4.4: without the capability, KVM_CAP_NR_VCPUS is the bound, and without that, 4.
		if n, err = ioctl(f, kvmCheckExtension, kvmCapNrVCPUs); err != nil || n == 0 {
			n = 4
		}
	}
	return n, nil
}

// ioctl is for requests whose argument is a number, never a pointer.
func ioctl(f *os.File, request, arg uintptr) (int, error) {
	v, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), request, arg)
	if errno != 0 {
		return 0, errno
	}
	return int(v), nil
}
