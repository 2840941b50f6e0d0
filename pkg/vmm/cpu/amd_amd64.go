package cpu

import "github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/kvm"

// Leaves and bits of CPUID on AMD's CPUs (APM 3 appendix E).
const (
	leafAMDMax      = 0x80000000
	leafAMDFeatures = 0x80000001
	leafAMDSizes    = 0x80000008
	leafAMDCaches   = 0x8000001d
	leafAMDTopology = 0x8000001e

	// KVM offers Intel's MSR of that name in any case.
	leaf7EDXArchCapabilities = 1 << 29
	leafAMDECXTopologyExt    = 1 << 22

	// amdBrand is Firecracker's: the host's would tell a guest's snapshot where it was made.
	amdBrand = "AMD EPYC"

	// maxCaches bounds the host's list of caches; a CPU has four or five.
	maxCaches = 16
)

// amd makes what is the same for all vCPUs of an AMD CPU.
func (m *Model) amd(host Host) {
	if e := m.leaves.find(7, 0); e != nil {
		e.EDX &^= leaf7EDXArchCapabilities
	}
	m.leaves.setBrand(amdBrand)
	if host.CPUID(leafAMDMax, 0).EAX < leafAMDTopology {
		return // no topology extensions on this host
	}
	if e := m.leaves.find(leafAMDFeatures, 0); e != nil {
		e.ECX |= leafAMDECXTopologyExt
	}
	m.leaves.drop(leafAMDTopology)
	m.leaves = append(m.leaves, kvm.CPUID{Function: leafAMDTopology, EDX: host.CPUID(leafAMDTopology, 0).EDX})
	m.leaves.drop(leafAMDCaches)
	for i := range uint32(maxCaches) {
		e := host.CPUID(leafAMDCaches, i)
		e.Flags = kvm.CPUIDSignificantIndex
		if cacheType(e.EAX) == 0 {
			break
		}
		m.leaves = append(m.leaves, e)
	}
}

// amdTopology makes what differs.
func amdTopology(l leaves, t Topology) {
	if e := l.find(leafAMDSizes, 0); e != nil {
		// How many bits of an APIC id, and threads less one.
		e.ECX = e.ECX&^0xf0ff | t.idBits()<<12 | uint32(t.Count-1)
	}
	l.each(leafAMDCaches, func(e *kvm.CPUID) { e.EAX = shareCache(e.EAX, t) })
	if e := l.find(leafAMDTopology, 0); e != nil {
		// The core's number and its threads less one; one node, of number 0.
		e.EAX, e.EBX, e.ECX = uint32(t.ID), t.core()|(t.threads()-1)<<8, 0
	}
}
