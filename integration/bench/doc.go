// Package bench holds the benchmarks that need a machine with KVM: Go benchmarks that start containers through containerd, and
// virtual machines through fc-vmm, beside their peers: runc for what containers do, QEMU's microvm machine, with the same kernel
// and image, for what virtual machines do.
//
// Every benchmark's last path element is who is measured (fc, runc, qemu, …), so a figure has a name such as Run/fc, and a unit.
// Times are counted time where the machine counts (integration/testbed, ICOUNT=1): 1 ns an instruction, of host and guest together.
// integration/bench/report runs them, holds them against SPECIFICATION.md's limits, and draws.
//
// A benchmark must never decide anything by a figure: the limits are in one place.
package bench
