package cpu

import (
	"encoding/binary"
	"fmt"

	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/boot"
	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/kvm"
)

// Bits of the control registers (Intel SDM 3A §2.5).
const (
	cr0PE = 1 << 0
	cr0ET = 1 << 4
	cr0PG = 1 << 31
	cr4PA = 1 << 5
	efLME = 1 << 8
	efLMA = 1 << 10

	rflagsFixed = 1 << 1
	fcwReset    = 0x37f
	mxcsrReset  = 0x1f80
)

// Init gives a vCPU its CPUID, its MSRs and its local APIC. CPUID comes first: KVM answers MSRs by it. What a kernel expects from firmware
// comes after the template's MSRs.
func Init(v *kvm.VCPU, cpuid []kvm.CPUID, t *Template) error {
	if err := v.SetCPUID(cpuid); err != nil {
		return err
	}
	if err := t.applyMSRs(v); err != nil {
		return err
	}
	if err := v.SetMSRs(bootMSRs()); err != nil {
		return err
	}
	if err := v.SetFPU(&kvm.FPU{FCW: fcwReset, MXCSR: mxcsrReset}); err != nil {
		return err
	}
	return initLAPIC(v)
}

// initLAPIC connects the local interrupt pins as firmware does: LINT0 to the PIC, LINT1 to NMI.
func initLAPIC(v *kvm.VCPU) error {
	const (
		lvtLINT0, lvtLINT1 = 0x350, 0x360
		modeMask           = 7 << 8
		modeNMI            = 4 << 8
		modeExtINT         = 7 << 8
	)
	l, err := v.LAPIC()
	if err != nil {
		return err
	}
	for reg, mode := range map[int]uint32{lvtLINT0: modeExtINT, lvtLINT1: modeNMI} {
		p := l[reg : reg+4]
		binary.LittleEndian.PutUint32(p, binary.LittleEndian.Uint32(p)&^modeMask|mode)
	}
	return v.SetLAPIC(&l)
}

// Start puts the first vCPU at a kernel's entry point. The other vCPUs wait for their start-up interrupt.
func Start(v *kvm.VCPU, e boot.Entry) error {
	s, err := v.Sregs()
	if err != nil {
		return err
	}
	data := kvm.Segment{Limit: 0xffffffff, Selector: boot.SelectorData, Type: 3, Present: 1, S: 1, DB: 1, G: 1}
	s.CS = kvm.Segment{Limit: 0xffffffff, Selector: boot.SelectorCode, Type: 11, Present: 1, S: 1, DB: 1, G: 1}
	s.DS, s.ES, s.FS, s.GS, s.SS = data, data, data, data, data
	s.TR = kvm.Segment{Limit: 0x67, Selector: boot.SelectorTSS, Type: 11, Present: 1}
	s.GDT = kvm.DTable{Base: boot.GDTAddr, Limit: boot.GDTLimit}
	s.IDT = kvm.DTable{Base: boot.IDTAddr, Limit: boot.IDTLimit}
	s.CR0, s.CR3, s.CR4, s.EFER = cr0PE|cr0ET, 0, 0, 0
	r := kvm.Regs{RFLAGS: rflagsFixed, RIP: e.Addr}
	switch e.Protocol {
	case boot.ProtocolPVH:
		r.RBX = boot.PVHInfoAddr
	case boot.ProtocolLinux64:
		s.CS.L, s.CS.DB = 1, 0
		s.CR0 |= cr0PG
		s.CR3 = boot.PageTableAddr
		s.CR4 = cr4PA
		s.EFER = efLME | efLMA
		r.RSI = boot.ZeroPageAddr
		r.RSP, r.RBP = boot.StackAddr, boot.StackAddr
	default:
		return fmt.Errorf("boot protocol %d is unknown", e.Protocol)
	}
	if err := v.SetSregs(&s); err != nil {
		return err
	}
	return v.SetRegs(&r)
}
