package boot

// Guest-physical addresses below the kernel. They are Firecracker's, so that kernels and tools meet what they know.
const (
	gdtAddr         = 0x500
	idtAddr         = 0x520
	pvhInfoAddr     = 0x6000
	pvhModulesAddr  = 0x6040
	pvhMemmapAddr   = 0x7000
	zeroPageAddr    = 0x7000 // another protocol's than the PVH map
	bootStack       = 0x8ff0
	pml4Addr        = 0x9000
	pdptAddr        = 0xa000
	pdAddr          = 0xb000
	commandLineAddr = 0x20000

	// lowRAMEnd is where the kernel's conventional memory ends, and what was once the BIOS' begins.
	lowRAMEnd = 0x9fc00
	// acpiAddr to kernelAddr holds the ACPI tables, the RSDP first.
	acpiAddr   = 0xe0000
	kernelAddr = 0x100000

	// identityMapped is how much of the guest's memory the boot page tables map, in bytes.
	identityMapped = 1 << 30
)

// MaxCommandLine is the longest kernel command line in bytes, its final NUL not counted.
const MaxCommandLine = 2047

// What the firmware keeps from the kernel for the VMM to tell of a copy of the machine (ACPI.GenerationGSI).
const (
	// GenerationAddr is where the guest finds the VM's generation id, of GenerationSize bytes: a multiple of 8, and not where a kernel looks
	// for an adapter's ROM, at each 2 KiB.
	GenerationAddr = acpiAddr - GenerationSize
	GenerationSize = 16
	// ClockAddr is a page for VMClock (linux/vmclock-abi.h).
	ClockAddr = acpiAddr - 2*ClockSize
	ClockSize = 4096
)

// Addresses of the interrupt controllers and of KVM's own pages.
const (
	IOAPICAddr      = 0xfec00000
	LAPICAddr       = 0xfee00000
	IdentityMapAddr = 0xfffbc000
	TSSAddr         = 0xfffbd000
)
