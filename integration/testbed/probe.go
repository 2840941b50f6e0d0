package main

import (
	"bytes"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// KVM API §4.2: _IO(KVMIO, 0x01).
const kvmCreateVM = 0xae01

// probeKVM says why this host cannot run unmodified guest kernels at hardware speed; nil if it can.
// /dev/kvm must make a VM and the CPU must show virtualisation: a KVM for paravirtualised kernels only has the device
// without the CPU flag.
func probeKVM() error {
	info, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		return err
	}
	if !hasVirtFlag(info) {
		return fmt.Errorf("/proc/cpuinfo shows neither svm nor vmx")
	}
	kvm, err := unix.Open("/dev/kvm", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("/dev/kvm: %w", err)
	}
	defer unix.Close(kvm)
	vm, err := unix.IoctlRetInt(kvm, kvmCreateVM)
	for err == unix.EINTR { // Go's own signals interrupt it
		vm, err = unix.IoctlRetInt(kvm, kvmCreateVM)
	}
	if err != nil {
		return fmt.Errorf("KVM_CREATE_VM: %w", err)
	}
	return unix.Close(vm)
}

// hasVirtFlag reports whether the first flags line of a cpuinfo names svm or vmx.
func hasVirtFlag(cpuinfo []byte) bool {
	for line := range bytes.Lines(cpuinfo) {
		if !bytes.HasPrefix(line, []byte("flags")) {
			continue
		}
		for _, f := range bytes.Fields(line) {
			if string(f) == "svm" || string(f) == "vmx" {
				return true
			}
		}
		return false
	}
	return false
}
