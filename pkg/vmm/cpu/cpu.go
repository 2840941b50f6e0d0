// Package cpu says what a virtual CPU is: its CPUID, its model-specific registers and the state it starts with. It turns
// what KVM supports, a CPU template and the VMM's own needs into what a guest of this project sees, and a boot.Entry into
// registers. It must never offer a guest what KVM does not support, unless a template asks for it by name.
package cpu

import "math/bits"

// Topology is a vCPU's place among its siblings, all of one socket.
type Topology struct {
	// ID counts from 0 and is the APIC id.
	ID int
	// Count is the number of vCPUs, 1 to 255.
	Count int
	// SMT: two vCPUs, of IDs 2n and 2n+1, are threads of one core. Count is even then, or 1, which has a core for itself.
	SMT bool
}

// threads is the number of threads of each core.
func (t Topology) threads() uint32 {
	if t.SMT && t.Count > 1 {
		return 2
	}
	return 1
}

// cores is the number of cores of the socket.
func (t Topology) cores() uint32 { return uint32(t.Count) / t.threads() }

// core is the number of the vCPU's core.
func (t Topology) core() uint32 { return uint32(t.ID) / t.threads() }

// threadBits is how many of an APIC id's low bits tell a core's threads apart, and idBits how many tell all vCPUs apart.
func (t Topology) threadBits() uint32 { return t.threads() - 1 }
func (t Topology) idBits() uint32     { return uint32(bits.Len(uint(t.Count - 1))) }
