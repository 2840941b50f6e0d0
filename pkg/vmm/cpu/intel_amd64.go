package cpu

import "github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/kvm"

// Bits of CPUID on Intel's CPUs (SDM 2A).
const (
	leaf6EAXTurbo = 1 << 1
	leaf6ECXEPB   = 1 << 3 // energy-performance bias

	// Both say what has become of the x87's old state; KVM leaves them out, and they hold for all CPUs since Haswell.
	leaf7EBXFDPExceptionOnly = 1 << 6
	leaf7EBXNoFPUCSDS        = 1 << 13
	// UMWAIT and TPAUSE would take the host's CPU to sleep, as MWAIT does.
	leaf7ECXWaitPKG = 1 << 5
)

// intel makes what is the same for all vCPUs of an Intel CPU.
func (m *Model) intel(host Host) {
	if e := m.leaves.find(6, 0); e != nil {
		e.EAX &^= leaf6EAXTurbo
		e.ECX &^= leaf6ECXEPB
	}
	if e := m.leaves.find(7, 0); e != nil {
		e.EBX |= leaf7EBXFDPExceptionOnly | leaf7EBXNoFPUCSDS
		e.ECX &^= leaf7ECXWaitPKG
	}
	m.leaves.setBrand(intelBrand(hostBrand(host)))
}

// intelTopology makes what differs: leaf 4, whose upper field counts cores.
func intelTopology(l leaves, t Topology) {
	l.each(4, func(e *kvm.CPUID) {
		if cacheType(e.EAX) != 0 {
			e.EAX = shareCache(e.EAX, t) | min(t.cores()-1, 63)<<26
		}
	})
}
