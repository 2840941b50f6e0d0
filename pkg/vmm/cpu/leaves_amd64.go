package cpu

import (
	"encoding/binary"
	"slices"

	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/kvm"
)

// leaves is a CPU's CPUID.
type leaves []kvm.CPUID

// find gives a leaf to read or change, or nil.
func (l leaves) find(function, index uint32) *kvm.CPUID {
	for i := range l {
		if l[i].Function == function && l[i].Index == index {
			return &l[i]
		}
	}
	return nil
}

// each calls f for all subleaves of a leaf.
func (l leaves) each(function uint32, f func(*kvm.CPUID)) {
	for i := range l {
		if l[i].Function == function {
			f(&l[i])
		}
	}
}

// drop takes a leaf out, all subleaves of it, and says whether there was one.
func (l *leaves) drop(function uint32) bool {
	n := len(*l)
	*l = slices.DeleteFunc(*l, func(e kvm.CPUID) bool { return e.Function == function })
	return len(*l) < n
}

// vendor is the maker's name of twelve letters, as leaf 0 has it.
func vendor(leaf0 kvm.CPUID) string {
	var b []byte
	for _, r := range []uint32{leaf0.EBX, leaf0.EDX, leaf0.ECX} {
		b = binary.LittleEndian.AppendUint32(b, r)
	}
	return string(b)
}

// The makers whose CPUs KVM runs on.
const (
	vendorIntel = "GenuineIntel"
	vendorAMD   = "AuthenticAMD"
	vendorHygon = "HygonGenuine" // AMD's design
)
