package hostile

// RAMSize is the guest's, in bytes.
const RAMSize = 64 << 20

// CPUs is how many vCPUs the guest has.
const CPUs = 2

// Guest-physical addresses of the guest's own program, which devices must be kept from. All other RAM is the arena.
const (
	programAddr = 48 << 20
	programEnd  = programAddr + 1<<20

	controlAddr = programAddr + 0x2000 // one control block each vCPU
	controlSize = 64
	controlGo   = 0 // the number of the script to run: offsets in a control block
	controlDone = 4 // the last script that has been run
	controlAt   = 8 // where scripts start

	scriptAddr = programAddr + 0x10000
	scriptSize = 0x10000 // of each vCPU

	// What an honest driver works with.
	driverAddr = programAddr + 0x40000
	driverSize = 0xc0000

	// trampolineAddr is where the second vCPU starts, in real mode: below 1 MiB, on a page.
	trampolineAddr = 0x30000
)

// The machine's memory-mapped devices, as Firecracker has them: the boot timer's page, then one for each virtio device.
const (
	bootTimerAddr = 0xc0000000
	virtioAddr    = 0xc0001000
	windowSize    = 0x1000
	// windows is one more than there can be: GSIs 5 to 23.
	windows = 20

	lapicAddr = 0xfee00000
)
