package cpu

import "github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/kvm"

// bootMSRs is the state of the model-specific registers that a kernel expects from firmware; all others keep KVM's reset
// values. A system call before the kernel has set its entry points lands nowhere.
func bootMSRs() []kvm.MSR {
	const (
		tsc           = 0x10
		sysenterCS    = 0x174
		sysenterESP   = 0x175
		sysenterEIP   = 0x176
		miscEnable    = 0x1a0
		mtrrDefType   = 0x2ff
		star          = 0xc0000081
		lstar         = 0xc0000082
		cstar         = 0xc0000083
		syscallMask   = 0xc0000084
		kernelGSBase  = 0xc0000102
		fastStrings   = 1
		mtrrEnabled   = 1 << 11
		mtrrWriteBack = 6
	)
	return []kvm.MSR{
		{Index: sysenterCS}, {Index: sysenterESP}, {Index: sysenterEIP},
		{Index: star}, {Index: cstar}, {Index: kernelGSBase}, {Index: syscallMask}, {Index: lstar},
		{Index: tsc},
		{Index: miscEnable, Data: fastStrings},
		{Index: mtrrDefType, Data: mtrrEnabled | mtrrWriteBack},
	}
}
