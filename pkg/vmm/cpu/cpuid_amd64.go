package cpu

import (
	"slices"

	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/kvm"
)

// Bits of CPUID that every CPU of ours has set or cleared, whatever a template says (Intel SDM 2A, AMD APM 3 appendix E).
const (
	leaf1ECXMonitor     = 1 << 3
	leaf1ECXPDCM        = 1 << 15
	leaf1ECXTSCDeadline = 1 << 24
	leaf1ECXHypervisor  = 1 << 31
	leaf1EDXHTT         = 1 << 28

	leaf7ECXOSPKE = 1 << 4
	leaf7EDXAMX   = 1<<22 | 1<<24 | 1<<25

	clflushQuadwords = 8
)

// Model is a machine's CPU: what its vCPUs' CPUIDs have in common. It does not change once it is made.
type Model struct {
	leaves leaves
	vendor string
}

// NewModel makes a CPU from what KVM supports, changed by a template or not. supported stays as it is.
func NewModel(supported []kvm.CPUID, host Host) *Model {
	m := &Model{leaves: slices.Clone(supported)}
	leaf0 := host.CPUID(0, 0)
	m.vendor = vendor(leaf0)
	if e := m.leaves.find(0, 0); e != nil {
		e.EBX, e.ECX, e.EDX = leaf0.EBX, leaf0.ECX, leaf0.EDX
	}
	if e := m.leaves.find(1, 0); e != nil {
		e.EBX = e.EBX&^0xff00 | clflushQuadwords<<8
		e.ECX = e.ECX&^(leaf1ECXMonitor|leaf1ECXPDCM) | leaf1ECXHypervisor
		if host.TSCDeadline {
			e.ECX |= leaf1ECXTSCDeadline
		}
	}
	if e := m.leaves.find(7, 0); e != nil {
		e.EDX &^= leaf7EDXAMX   // the kernel was not asked for the permission to use it
		e.ECX &^= leaf7ECXOSPKE // the guest's CR4 decides it
	}
	m.leaves.each(0xa, func(e *kvm.CPUID) { e.EAX, e.EBX, e.ECX, e.EDX = 0, 0, 0, 0 }) // performance counters are the host's
	for _, f := range []uint32{0x80000005, 0x80000006} {
		if e := m.leaves.find(f, 0); e != nil {
			h := host.CPUID(f, 0)
			e.EAX, e.EBX, e.ECX, e.EDX = h.EAX, h.EBX, h.ECX, h.EDX
		}
	}
	switch m.vendor {
	case vendorIntel:
		m.intel(host)
	case vendorAMD, vendorHygon:
		m.amd(host)
	}
	m.leaves = consistentXSAVE(m.leaves)
	return m
}

// VCPU makes a vCPU's CPUID, in an order that the guest does not depend on.
func (m *Model) VCPU(t Topology) []kvm.CPUID {
	l := slices.Clone(m.leaves)
	id := uint32(t.ID)
	if e := l.find(1, 0); e != nil {
		// The second byte is for how many ids there is room, a power of two.
		e.EBX = e.EBX&0xffff | 1<<t.idBits()<<16 | id<<24
		e.EDX &^= leaf1EDXHTT
		if t.Count > 1 {
			e.EDX |= leaf1EDXHTT
		}
	}
	// Extended topology: a level's shift is how many bits of the APIC id lie below the next level, its count is that of the vCPUs in
	// one of the next level, and the kind is 1 for threads and 2 for cores.
	levels := [...]kvm.CPUID{
		{Index: 0, EAX: t.threadBits(), EBX: t.threads(), ECX: 1 << 8, EDX: id},
		{Index: 1, EAX: t.idBits(), EBX: uint32(t.Count), ECX: 2<<8 | 1, EDX: id},
	}
	l.drop(0xb)
	functions := []uint32{0xb}
	if l.drop(0x1f) && m.vendor == vendorIntel {
		functions = append(functions, 0x1f)
	}
	for _, f := range functions {
		for _, e := range levels {
			e.Function, e.Flags = f, kvm.CPUIDSignificantIndex
			l = append(l, e)
		}
	}
	switch m.vendor {
	case vendorIntel:
		intelTopology(l, t)
	case vendorAMD, vendorHygon:
		amdTopology(l, t)
	}
	return l
}

// shareCache says how many vCPUs share a cache: the threads of a core share the first and second level, all share the others. The
// leaf's register is eax of 4 or of 0x8000001d, whose lower fields are the same.
func shareCache(eax uint32, t Topology) uint32 {
	const levelShift, levelMask, sharingShift = 5, 7, 14
	eax &= 1<<sharingShift - 1
	if eax>>levelShift&levelMask <= 2 {
		return eax | (t.threads()-1)<<sharingShift
	}
	return eax | uint32(t.Count-1)<<sharingShift
}

// cacheType is the field of the same leaves that is 0 in the one behind the last.
func cacheType(eax uint32) uint32 { return eax & 0x1f }
