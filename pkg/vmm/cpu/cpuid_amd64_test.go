package cpu

import (
	"testing"

	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/kvm"
)

func find(t *testing.T, l []kvm.CPUID, function, index uint32) kvm.CPUID {
	t.Helper()
	for _, e := range l {
		if e.Function == function && e.Index == index {
			return e
		}
	}
	t.Fatalf("no leaf %#x.%d", function, index)
	return kvm.CPUID{}
}

func TestCPUIDTopology(t *testing.T) {
	in := []kvm.CPUID{{Function: 1, EBX: 0x12345678, EDX: leaf1EDXHTT}, {Function: 0xb, EAX: 9}, {Function: 0x80000008, ECX: 0xf0ff}}
	for _, c := range []struct {
		id, count int
		bits      uint32
	}{{0, 1, 0}, {1, 2, 1}, {2, 3, 2}, {31, 32, 5}} {
		l := CPUID(in, Topology{ID: c.id, Count: c.count}, true)
		l1 := find(t, l, 1, 0)
		if l1.EBX>>24 != uint32(c.id) || l1.EBX>>16&0xff != uint32(c.count) || l1.EBX>>8&0xff != 8 {
			t.Errorf("%+v: leaf 1 EBX = %#x", c, l1.EBX)
		}
		if l1.ECX&leaf1ECXHypervisor == 0 || l1.ECX&leaf1ECXTSCDeadline == 0 || (l1.EDX&leaf1EDXHTT != 0) != (c.count > 1) {
			t.Errorf("%+v: leaf 1 ECX = %#x, EDX = %#x", c, l1.ECX, l1.EDX)
		}
		if e := find(t, l, 0xb, 1); e.EAX != c.bits || e.EBX != uint32(c.count) || e.EDX != uint32(c.id) {
			t.Errorf("%+v: leaf 0xb.1 = %+v", c, e)
		}
		if e := find(t, l, 0x80000008, 0); e.ECX != c.bits<<12|uint32(c.count-1) {
			t.Errorf("%+v: leaf 0x80000008 ECX = %#x", c, e.ECX)
		}
	}
	if in[0].ECX != 0 {
		t.Error("the supported list was changed")
	}
}

func TestCPUIDLeafD(t *testing.T) {
	in := []kvm.CPUID{
		{Function: 1, ECX: leaf1ECXXSAVE | leaf1ECXAVX},
		{Function: 7},
		{Function: 0xd, Index: 0, EAX: 0x207, EBX: 2696, ECX: 2696},
		{Function: 0xd, Index: 1, EAX: 0xf},
		{Function: 0xd, Index: 2, EAX: 256, EBX: 576},
		{Function: 0xd, Index: 9, EAX: 8, EBX: 2688},
	}
	l := CPUID(in, Topology{Count: 1}, false)
	if e := find(t, l, 0xd, 0); e.EAX != 7 || e.ECX != 832 {
		t.Errorf("without PKU: leaf 0xd = %+v, want components 7 and 832 bytes", e)
	}
	for _, e := range l {
		if e.Function == 0xd && e.Index == 9 {
			t.Error("the component of protection keys is left")
		}
	}
	in[1].ECX = leaf7ECXPKU
	l = CPUID(in, Topology{Count: 1}, false)
	if e := find(t, l, 0xd, 0); e.EAX != 0x207 || e.ECX != 2696 {
		t.Errorf("with PKU: leaf 0xd = %+v", e)
	}
}
