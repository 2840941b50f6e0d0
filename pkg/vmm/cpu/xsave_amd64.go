package cpu

import (
	"slices"

	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/kvm"
)

// Bits of CPUID for what XSAVE saves.
const (
	leaf1ECXXSAVE   = 1 << 26
	leaf1ECXAVX     = 1 << 28
	leaf7EBXMPX     = 1 << 14
	leaf7EBXAVX512F = 1 << 16
	leaf7ECXPKU     = 1 << 3
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

// consistentXSAVE drops state components from leaf 0xd whose feature bit the guest does not see, and makes the area's largest
// size match. A kernel compares the two and distrusts XSAVE when they differ.
func consistentXSAVE(in leaves) leaves {
	var l1, l7 kvm.CPUID
	if e := in.find(1, 0); e != nil {
		l1 = *e
	}
	if e := in.find(7, 0); e != nil {
		l7 = *e
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
