package cpu

import "github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/kvm"

// Host is what a guest's CPUs take from the host's, besides what KVM says that it supports.
type Host struct {
	// CPUID is the instruction. KVM leaves out of its answer what it takes for the host's own: the caches, the brand.
	CPUID func(function, index uint32) kvm.CPUID
	// TSCDeadline: KVM has the TSC deadline timer, which it does not tell in CPUID.
	TSCDeadline bool
}

// cpuid executes CPUID on the host's CPU. Every 64-bit CPU has the instruction, and any leaf may be asked for.
func cpuid(function, index uint32) (eax, ebx, ecx, edx uint32)

// HostCPUID is Host.CPUID for the CPU that this runs on.
func HostCPUID(function, index uint32) kvm.CPUID {
	e := kvm.CPUID{Function: function, Index: index}
	e.EAX, e.EBX, e.ECX, e.EDX = cpuid(function, index)
	return e
}
