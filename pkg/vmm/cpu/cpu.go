// Package cpu says what a virtual CPU is: its CPUID, its model-specific registers and the state it starts with. It turns
// what KVM supports into what a guest of this project sees, and a boot.Entry into registers. It must never offer a guest
// what KVM does not support.
package cpu

// Topology is a vCPU's place among its siblings: one socket, one thread a core.
type Topology struct {
	// ID counts from 0 and is the APIC id.
	ID int
	// Count is the number of vCPUs, 1 to 255.
	Count int
}
