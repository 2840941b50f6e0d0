package kvm

import "fmt"

// ioctl numbers (linux/kvm.h, x86).
const (
	kvmGetAPIVersion      = 0xae00
	kvmCreateVM           = 0xae01
	kvmCheckExtension     = 0xae03
	kvmGetVCPUMmapSize    = 0xae04
	kvmGetSupportedCPUID  = 0xc008ae05
	kvmCreateVCPU         = 0xae41
	kvmSetUserMemory      = 0x4020ae46
	kvmSetTSSAddr         = 0xae47
	kvmSetIdentityMapAddr = 0x4008ae48
	kvmCreateIrqchip      = 0xae60
	kvmIRQLine            = 0x4008ae61
	kvmCreatePIT2         = 0x4040ae77
	kvmIoeventfd          = 0x4040ae79
	kvmRun                = 0xae80
	kvmGetRegs            = 0x8090ae81
	kvmSetRegs            = 0x4090ae82
	kvmGetSregs           = 0x8138ae83
	kvmSetSregs           = 0x4138ae84
	kvmGetMSRs            = 0xc008ae88
	kvmSetMSRs            = 0x4008ae89
	kvmSetFPU             = 0x41a0ae8d
	kvmGetLAPIC           = 0x8400ae8e
	kvmSetLAPIC           = 0x4400ae8f
	kvmSetCPUID2          = 0x4008ae90
	kvmKVMClockCtrl       = 0xaead
)

// Capabilities of x86 that a machine needs; required lists them with those of any architecture.
const (
	CapSetTSSAddr     Capability = 4
	CapExtCPUID       Capability = 7
	CapPIT2           Capability = 33
	CapSetIdentityMap Capability = 37
	CapKVMClockCtrl   Capability = 76

	// CapTSCDeadlineTimer is one to ask about.
	CapTSCDeadlineTimer Capability = 72
)

// required is what Open insists on: what every machine uses, by the name in linux/kvm.h.
var required = [...]struct {
	cap  Capability
	name string
}{
	{CapIrqchip, "KVM_CAP_IRQCHIP"},
	{CapUserMemory, "KVM_CAP_USER_MEMORY"},
	{CapSetTSSAddr, "KVM_CAP_SET_TSS_ADDR"},
	{CapExtCPUID, "KVM_CAP_EXT_CPUID"},
	{CapPIT2, "KVM_CAP_PIT2"},
	{CapIoeventfd, "KVM_CAP_IOEVENTFD"},
	{CapSetIdentityMap, "KVM_CAP_SET_IDENTITY_MAP_ADDR"},
	{CapKVMClockCtrl, "KVM_CAP_KVMCLOCK_CTRL"},
	{CapImmediateExit, "KVM_CAP_IMMEDIATE_EXIT"},
}

const (
	pitSpeakerDummy    = 1
	ioeventfdDatamatch = 1
)

type memoryRegion struct {
	Slot, Flags               uint32
	GuestPhysAddr, MemorySize uint64
	UserspaceAddr             uint64
}

type pitConfig struct {
	Flags uint32
	_     [15]uint32
}

type ioeventfd struct {
	Datamatch, Addr uint64
	Len             uint32
	FD              int32
	Flags           uint32
	_               [36]byte
}

// Regs is struct kvm_regs.
type Regs struct {
	RAX, RBX, RCX, RDX, RSI, RDI, RSP, RBP uint64
	R8, R9, R10, R11, R12, R13, R14, R15   uint64
	RIP, RFLAGS                            uint64
}

// Segment is struct kvm_segment.
type Segment struct {
	Base                           uint64
	Limit                          uint32
	Selector                       uint16
	Type                           uint8
	Present, DPL, DB, S, L, G, AVL uint8
	Unusable                       uint8
	_                              uint8
}

// DTable is struct kvm_dtable.
type DTable struct {
	Base  uint64
	Limit uint16
	_     [3]uint16
}

// Sregs is struct kvm_sregs.
type Sregs struct {
	CS, DS, ES, FS, GS, SS  Segment
	TR, LDT                 Segment
	GDT, IDT                DTable
	CR0, CR2, CR3, CR4, CR8 uint64
	EFER                    uint64
	APICBase                uint64
	InterruptBitmap         [4]uint64
}

// FPU is struct kvm_fpu.
type FPU struct {
	FPR        [8][16]byte
	FCW, FSW   uint16
	FTWX       uint8
	_          uint8
	LastOpcode uint16
	LastIP     uint64
	LastDP     uint64
	XMM        [16][16]byte
	MXCSR      uint32
	_          uint32
}

// LAPIC is struct kvm_lapic_state: the local APIC's register page.
type LAPIC [1024]byte

// CPUID is struct kvm_cpuid_entry2.
type CPUID struct {
	Function, Index, Flags uint32
	EAX, EBX, ECX, EDX     uint32
	_                      [3]uint32
}

// CPUIDSignificantIndex in CPUID.Flags: the entry is for one subleaf only.
const CPUIDSignificantIndex = 1

const maxCPUID = 256

type cpuidList struct {
	N, _    uint32
	Entries [maxCPUID]CPUID
}

// SupportedCPUID is what the host's CPU and KVM can offer a guest (KVM API 4.46).
func (s *System) SupportedCPUID() ([]CPUID, error) {
	l := cpuidList{N: maxCPUID}
	if err := ioctlPtr(int(s.f.Fd()), "KVM_GET_SUPPORTED_CPUID", kvmGetSupportedCPUID, &l); err != nil {
		return nil, err
	}
	return append([]CPUID(nil), l.Entries[:min(l.N, maxCPUID)]...), nil
}

// SetCPUID says what the vCPU's CPUID instruction answers; at most 256 entries. It comes before the first Run and before
// MSRs are read or written (KVM API 4.59, KVM_SET_CPUID2).
func (v *VCPU) SetCPUID(entries []CPUID) error {
	if len(entries) > maxCPUID {
		return fmt.Errorf("KVM_SET_CPUID2: %d entries: want at most %d", len(entries), maxCPUID)
	}
	l := cpuidList{N: uint32(len(entries))}
	copy(l.Entries[:], entries)
	return ioctlPtr(v.fd, "KVM_SET_CPUID2", kvmSetCPUID2, &l)
}

// Regs reads the general registers (KVM API 4.11).
func (v *VCPU) Regs() (r Regs, err error) {
	err = ioctlPtr(v.fd, "KVM_GET_REGS", kvmGetRegs, &r)
	return r, err
}

// SetRegs writes the general registers (KVM API 4.12).
func (v *VCPU) SetRegs(r *Regs) error { return ioctlPtr(v.fd, "KVM_SET_REGS", kvmSetRegs, r) }

// Sregs reads the segment, table and control registers (KVM API 4.13).
func (v *VCPU) Sregs() (s Sregs, err error) {
	err = ioctlPtr(v.fd, "KVM_GET_SREGS", kvmGetSregs, &s)
	return s, err
}

// SetSregs writes the segment, table and control registers (KVM API 4.14).
func (v *VCPU) SetSregs(s *Sregs) error { return ioctlPtr(v.fd, "KVM_SET_SREGS", kvmSetSregs, s) }

// SetFPU writes the x87 and SSE state (KVM API 4.23).
func (v *VCPU) SetFPU(f *FPU) error { return ioctlPtr(v.fd, "KVM_SET_FPU", kvmSetFPU, f) }

// LAPIC reads the local APIC's registers (KVM API 4.57).
func (v *VCPU) LAPIC() (l LAPIC, err error) {
	err = ioctlPtr(v.fd, "KVM_GET_LAPIC", kvmGetLAPIC, &l)
	return l, err
}

// SetLAPIC writes the local APIC's registers (KVM API 4.58).
func (v *VCPU) SetLAPIC(l *LAPIC) error { return ioctlPtr(v.fd, "KVM_SET_LAPIC", kvmSetLAPIC, l) }

// KVMClockCtrl tells the guest's watchdogs that it was stopped (KVM API 4.78). The error is unix.EINVAL, wrapped, as long as
// the guest does not use kvm-clock.
func (v *VCPU) KVMClockCtrl() error {
	_, err := ioctl(v.fd, "KVM_KVMCLOCK_CTRL", kvmKVMClockCtrl, 0)
	return err
}
