// Command testbed is what integration/kvmhost runs: the KVM test machine.
//
//	kvmhost CMD [ARG…]
//
// runs CMD where there is a working /dev/kvm and exits with CMD's status. On a host with real KVM it runs CMD directly.
// Elsewhere it starts a throw-away QEMU machine that emulates an AMD CPU with SVM; Debian's kernel drives that with the
// real kvm_amd. The machine's root is the host's root (virtio-fs, read-only) below an overlay in memory, so that every
// program and file of the host is there under the same path and nothing that CMD writes remains. Standard input is empty;
// standard output and error are CMD's own, byte for byte.
//
// In both cases CMD sees FC_SCRATCH, the path of an empty folder on a file system that can hold overlayfs' upper layers
// and that is gone afterwards, and FC_KVMHOST, "direct" or "nested".
//
// Variables:
//
//	KVMHOST=direct|nested   forces the choice
//	KVMHOST_TIMEOUT=1800    seconds until CMD and the machine are killed (status 124)
//	KVMHOST_ENV="A B"       more variables to hand on; FC_*, GO*, HOME, PATH, CI, LANG and TERM always are
//	KVMHOST_LOG=FILE        where to keep the machine's console
//	KVMHOST_OUT=DIR         a folder of the host that CMD may write to, under the same path
//	KVMHOST_QEMU=FILE       another qemu-system-x86_64
//	KVMHOST_THREADS=single  QEMU's CPUs on a thread each, or all on a single one
//	KVMHOST_KVM_AMD=npt=0   parameters of the machine's kvm_amd
//	ICOUNT=1                counted time: the clock advances 1 ns an instruction, whichever CPU does it, so that figures repeat
//	MEM=6G CPUS=2           the machine's size; CPUS=1 with ICOUNT=1
//
// Statuses of its own: 124 time limit, 125 the machine died or could not be had, 126 wrong use.
//
// It must never decide by the device node alone (some hosts have a /dev/kvm that runs paravirtualised kernels only), and
// must leave neither process nor file behind, however it ends; what a SIGKILL left is removed by the next run.
package main
