package cpu

import (
	"math/bits"
	"slices"

	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/kvm"
)

// Bits of CPUID (Intel SDM 2A, AMD APM 3 appendix E).
const (
	leaf1ECXMonitor     = 1 << 3
	leaf1ECXTSCDeadline = 1 << 24
	leaf1ECXXSAVE       = 1 << 26
	leaf1ECXAVX         = 1 << 28
	leaf1ECXHypervisor  = 1 << 31
	leaf1EDXHTT         = 1 << 28

	leaf7EBXMPX     = 1 << 14
	leaf7EBXAVX512F = 1 << 16
	leaf7ECXPKU     = 1 << 3
	leaf7ECXOSPKE   = 1 << 4
	leaf7EDXAMX     = 1<<22 | 1<<24 | 1<<25

	clflushQuadwords = 8
	noIndex          = 0
)

// XSAVE components (Intel SDM 1 §13.1).
const (
	xcr0Legacy = 1<<0 | 1<<1
	xcr0AVX    = 1 << 2
	xcr0MPX    = 1<<3 | 1<<4
	xcr0AVX512 = 1<<5 | 1<<6 | 1<<7
	xcr0PKRU   = 1 << 9
	xcr0AMX    = 1<<17 | 1<<18

	xsaveHeaderEnd = 576
)

// CPUID makes a vCPU's CPUID from what KVM supports, in an order that the guest does not depend on. tscDeadline says that KVM
// has the TSC deadline timer, which it does not tell in CPUID.
func CPUID(supported []kvm.CPUID, t Topology, tscDeadline bool) []kvm.CPUID {
	out := slices.Clone(supported)
	coreBits := uint32(bits.Len(uint(t.Count - 1)))
	id, last := uint32(t.ID), uint32(t.Count-1)
	for i := range out {
		e := &out[i]
		switch e.Function {
		case 0x1:
			e.EBX = e.EBX&0xff | clflushQuadwords<<8 | uint32(t.Count)<<16 | id<<24
			e.ECX = e.ECX&^leaf1ECXMonitor | leaf1ECXHypervisor
			if tscDeadline {
				e.ECX |= leaf1ECXTSCDeadline
			}
			e.EDX &^= leaf1EDXHTT
			if t.Count > 1 {
				e.EDX |= leaf1EDXHTT
			}
		case 0x4, 0x8000001d:
			// Caches: the third level is shared by all, the others by nobody. The upper field of leaf 4 counts cores.
			const typeMask, levelShift, levelMask = 0x1f, 5, 7
			if e.EAX&typeMask == 0 {
				continue
			}
			e.EAX &= 0x3fff
			if e.EAX>>levelShift&levelMask == 3 {
				e.EAX |= last << 14
			}
			if e.Function == 0x4 {
				e.EAX |= min(last, 63) << 26
			}
		case 0x6, 0xa:
			// Power management and performance counters are the host's.
			e.EAX, e.EBX, e.ECX, e.EDX = 0, 0, 0, 0
		case 0x7:
			if e.Index == 0 {
				e.EDX &^= leaf7EDXAMX   // the kernel was not asked for the permission to use it
				e.ECX &^= leaf7ECXOSPKE // the guest's CR4 decides it
			}
		case 0x80000008:
			e.ECX = e.ECX&^0xf0ff | coreBits<<12 | last
		case 0x8000001e:
			e.EAX, e.EBX, e.ECX = id, id, 0
		}
	}
	out = slices.DeleteFunc(out, func(e kvm.CPUID) bool { return e.Function == 0xb || e.Function == 0x1f })
	out = append(out, topologyLeaf(0, 0, 1, 1, id), topologyLeaf(1, coreBits, uint32(t.Count), 2, id))
	return consistentXSAVE(out)
}

// topologyLeaf is a subleaf of 0xb: shift is how many bits of the APIC id lie below the next level, kind 1 is threads of a
// core and 2 is cores of a package.
func topologyLeaf(index, shift, count, kind, id uint32) kvm.CPUID {
	return kvm.CPUID{Function: 0xb, Index: index, Flags: kvm.CPUIDSignificantIndex, EAX: shift, EBX: count, ECX: kind<<8 | index, EDX: id}
}

// consistentXSAVE drops state components from leaf 0xd whose feature bit the guest does not see, and makes the area's largest
// size match. A kernel compares the two and distrusts XSAVE when they differ.
func consistentXSAVE(in []kvm.CPUID) []kvm.CPUID {
	var l1, l7 kvm.CPUID
	for _, e := range in {
		switch {
		case e.Function == 0x1:
			l1 = e
		case e.Function == 0x7 && e.Index == noIndex:
			l7 = e
		}
	}
	mask := ^uint64(0)
	for _, c := range []struct {
		has   bool
		state uint64
	}{
		{l1.ECX&leaf1ECXAVX != 0, xcr0AVX},
		{l7.EBX&leaf7EBXMPX != 0, xcr0MPX},
		{l7.EBX&leaf7EBXAVX512F != 0, xcr0AVX512},
		{l7.ECX&leaf7ECXPKU != 0, xcr0PKRU},
		{false, xcr0AMX},
	} {
		if !c.has {
			mask &^= c.state
		}
	}
	var xcr0 uint64
	area := uint32(xsaveHeaderEnd)
	out := slices.DeleteFunc(in, func(e kvm.CPUID) bool {
		if e.Function != 0xd {
			return false
		}
		switch e.Index {
		case 0:
			xcr0 = (uint64(e.EDX)<<32 | uint64(e.EAX)) & (mask | xcr0Legacy)
			return l1.ECX&leaf1ECXXSAVE == 0
		case 1:
			return l1.ECX&leaf1ECXXSAVE == 0
		}
		return e.Index < 64 && mask>>e.Index&1 == 0
	})
	for _, e := range out {
		if e.Function == 0xd && e.Index >= 2 && e.Index < 64 && xcr0>>e.Index&1 != 0 {
			area = max(area, e.EAX+e.EBX) // size and offset
		}
	}
	for i := range out {
		if e := &out[i]; e.Function == 0xd && e.Index == 0 {
			e.EAX, e.EDX, e.ECX = uint32(xcr0), uint32(xcr0>>32), area
			e.EBX = xsaveHeaderEnd // KVM keeps it in step with XCR0
		}
	}
	return out
}
