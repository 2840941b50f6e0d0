// Package legacy is the handful of old devices that a PC kernel expects or that this machine needs to be told of its end: a
// serial port, the keyboard controller, ACPI's sleep registers, pvpanic and Firecracker's boot timer. Each answers accesses at
// once and never blocks: what is slow goes to a goroutine. None knows KVM, guest RAM, or where its ports or page are.
package legacy

// IRQ raises a device's interrupt line as an edge. Trigger never blocks.
type IRQ interface{ Trigger() }

// NoData is what an I/O port that nobody answers reads as.
const NoData = 0xff
