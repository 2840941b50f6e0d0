package kvm

import (
	"strings"
	"testing"
	"unsafe"
)

// Each capability is asked for, and named where it is missing.
func TestMissingCapabilityIsNamed(t *testing.T) {
	if err := checkRequired(func(Capability) (int, error) { return 1, nil }, nil); err != nil {
		t.Errorf("with all of them: %v", err)
	}
	want := map[Capability]string{
		0: "KVM_CAP_IRQCHIP", 3: "KVM_CAP_USER_MEMORY", 4: "KVM_CAP_SET_TSS_ADDR", 7: "KVM_CAP_EXT_CPUID",
		33: "KVM_CAP_PIT2", 36: "KVM_CAP_IOEVENTFD", 37: "KVM_CAP_SET_IDENTITY_MAP_ADDR", 76: "KVM_CAP_KVMCLOCK_CTRL",
		136: "KVM_CAP_IMMEDIATE_EXIT",
	}
	for missing, name := range want {
		check := func(c Capability) (int, error) {
			if c == missing {
				return 0, nil
			}
			return 1, nil
		}
		err := checkRequired(check, nil)
		if err == nil || !strings.Contains(err.Error(), name+": missing") {
			t.Errorf("without %s (%d): %v", name, missing, err)
		}
		if err := checkRequired(check, []Capability{1000, missing}); err != nil {
			t.Errorf("without %s (%d), which is not to be checked: %v", name, missing, err)
		}
	}
}

// The kernel encodes each structure's size in its ioctl's number.
func TestStructureSizes(t *testing.T) {
	for _, c := range []struct {
		name string
		req  uintptr
		size uintptr
	}{
		{"kvm_userspace_memory_region", kvmSetUserMemory, unsafe.Sizeof(memoryRegion{})},
		{"kvm_irq_level", kvmIRQLine, unsafe.Sizeof(IRQLevel{})},
		{"kvm_ioeventfd", kvmIoeventfd, unsafe.Sizeof(ioeventfd{})},
		{"kvm_pit_config", kvmCreatePIT2, unsafe.Sizeof(pitConfig{})},
		{"kvm_regs", kvmSetRegs, unsafe.Sizeof(Regs{})},
		{"kvm_sregs", kvmSetSregs, unsafe.Sizeof(Sregs{})},
		{"kvm_fpu", kvmSetFPU, unsafe.Sizeof(FPU{})},
		{"kvm_lapic_state", kvmSetLAPIC, unsafe.Sizeof(LAPIC{})},
		{"kvm_cpuid2", kvmSetCPUID2, unsafe.Offsetof(cpuidList{}.Entries)},
		{"kvm_msrs, read", kvmGetMSRs, unsafe.Offsetof(msrList{}.Entries)},
		{"kvm_msrs", kvmSetMSRs, unsafe.Offsetof(msrList{}.Entries)},
	} {
		if want := c.req >> 16 & 0x3fff; c.size != want {
			t.Errorf("%s: %d bytes, want %d", c.name, c.size, want)
		}
	}
	if s := unsafe.Sizeof(CPUID{}); s != 40 {
		t.Errorf("kvm_cpuid_entry2: %d bytes, want 40", s)
	}
}

func TestExitDecodingIsBounded(t *testing.T) {
	v := &VCPU{run: make([]byte, runMinSize)}
	u := v.run[runUnion:]
	u[0], u[1], u[4], u[9] = 1, 4, 2, 0x0f // two accesses of four bytes at 0xf00
	io, err := v.IO()
	if err != nil || len(io.Data) != 8 || !io.Write {
		t.Fatalf("IO() = %+v, %v", io, err)
	}
	u[5] = 0xff
	if _, err := v.IO(); err == nil {
		t.Fatal("IO() accepted data outside kvm_run")
	}
	u[16] = 9
	if _, err := v.MMIO(); err == nil {
		t.Fatal("MMIO() accepted nine bytes")
	}
}

// A list is cut into calls of at most 64 registers, and what each has read is put where it belongs.
func TestMSRBatches(t *testing.T) {
	for _, n := range []int{0, 1, 64, 65, 200} {
		msrs := make([]MSR, n)
		for i := range msrs {
			msrs[i].Index = uint32(i)
		}
		calls := 0
		err := inBatches(msrs, func(l *msrList, batch []MSR) error {
			calls++
			if int(l.N) != len(batch) || l.N > maxMSRs {
				t.Errorf("of %d: a call with %d for %d", n, l.N, len(batch))
			}
			for i := range batch {
				l.Entries[i].Data = uint64(l.Entries[i].Index) * 3
			}
			copy(batch, l.Entries[:])
			return nil
		})
		if err != nil || calls != (n+63)/64 {
			t.Errorf("%d in %d calls: %v", n, calls, err)
		}
		for i, m := range msrs {
			if m.Index != uint32(i) || m.Data != uint64(i)*3 {
				t.Errorf("of %d: register %d is %+v", n, i, m)
			}
		}
	}
}
