package cpu

import (
	"fmt"
	"os"
	"reflect"
	"strings"
	"testing"

	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/kvm"
)

// recorded gives what KVM supports on a CPU of testdata, and that CPU.
func recorded(t *testing.T, name string) ([]kvm.CPUID, Host) {
	t.Helper()
	text, err := os.ReadFile("testdata/" + name + ".txt")
	if err != nil {
		t.Fatal(err)
	}
	lists := make(map[string]leaves)
	for line := range strings.Lines(string(text)) {
		if strings.HasPrefix(line, "#") {
			continue
		}
		var of string
		var e kvm.CPUID
		if _, err := fmt.Sscanf(line, "%s %x %x %x %x %x %x %x\n", &of, &e.Function, &e.Index, &e.Flags, &e.EAX, &e.EBX, &e.ECX, &e.EDX); err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		lists[of] = append(lists[of], e)
	}
	return lists["kvm"], Host{TSCDeadline: true, CPUID: func(function, index uint32) kvm.CPUID {
		if e := lists["host"].find(function, index); e != nil {
			return *e
		}
		return kvm.CPUID{Function: function, Index: index}
	}}
}

func find(t *testing.T, l []kvm.CPUID, function, index uint32) kvm.CPUID {
	t.Helper()
	e := leaves(l).find(function, index)
	if e == nil {
		t.Fatalf("no leaf %#x.%d", function, index)
	}
	return *e
}

// Every vCPU sees itself at its place in one socket, in all the ways in which a kernel asks.
func TestTopology(t *testing.T) {
	for _, cpu := range []struct {
		name  string
		cache uint32 // the leaf of caches
	}{{"intel", 4}, {"amd", leafAMDCaches}} {
		supported, host := recorded(t, cpu.name)
		before := fmt.Sprint(supported)
		m := NewModel(supported, host)
		for _, c := range []struct {
			count              int
			smt                bool
			threads, idBits    uint32
			slots, cacheSharer uint32 // leaf 1's count of ids, and who shares L1, less one
		}{
			{1, false, 1, 0, 1, 0},
			{1, true, 1, 0, 1, 0},
			{2, false, 1, 1, 2, 0},
			{2, true, 2, 1, 2, 1},
			{3, false, 1, 2, 4, 0},
			{4, false, 1, 2, 4, 0},
			{4, true, 2, 2, 4, 1},
			{32, false, 1, 5, 32, 0},
			{32, true, 2, 5, 32, 1},
		} {
			for _, id := range []int{0, c.count / 2, c.count - 1} {
				t.Run(fmt.Sprintf("%s, %d of %d, smt=%v", cpu.name, id, c.count, c.smt), func(t *testing.T) {
					l := m.VCPU(Topology{ID: id, Count: c.count, SMT: c.smt})
					apic, count, core := uint32(id), uint32(c.count), uint32(id)/c.threads
					if e := find(t, l, 1, 0); e.EBX>>8 != apic<<16|c.slots<<8|8 || (e.EDX&leaf1EDXHTT != 0) != (count > 1) {
						t.Errorf("leaf 1: ebx %#x, edx %#x", e.EBX, e.EDX)
					}
					if e := find(t, l, 0xb, 0); e.EAX != c.threads-1 || e.EBX != c.threads || e.ECX != 0x100 || e.EDX != apic {
						t.Errorf("leaf 0xb.0: %x", e)
					}
					if e := find(t, l, 0xb, 1); e.EAX != c.idBits || e.EBX != count || e.ECX != 0x201 || e.EDX != apic {
						t.Errorf("leaf 0xb.1: %x", e)
					}
					if core != apic>>find(t, l, 0xb, 0).EAX || apic>>find(t, l, 0xb, 1).EAX != 0 {
						t.Errorf("by its APIC id it is of core %d", apic>>find(t, l, 0xb, 0).EAX)
					}
					for i, want := range []uint32{c.cacheSharer, c.cacheSharer, c.cacheSharer, count - 1} {
						if e := find(t, l, cpu.cache, uint32(i)); e.EAX>>14&0xfff != want {
							t.Errorf("cache %d is shared by %d and one, want %d", i, e.EAX>>14&0xfff, want)
						}
					}
					if cpu.name == "intel" {
						if e := find(t, l, 4, 3); e.EAX>>26 != count/c.threads-1 {
							t.Errorf("leaf 4: %d cores and one", e.EAX>>26)
						}
						return
					}
					if e := find(t, l, 0x80000008, 0); e.ECX != c.idBits<<12|count-1 {
						t.Errorf("leaf 0x80000008: ecx %#x", e.ECX)
					}
					if e := find(t, l, leafAMDTopology, 0); e.EAX != apic || e.EBX != (c.threads-1)<<8|core || e.ECX != 0 {
						t.Errorf("leaf 0x8000001e: %x", e)
					}
				})
			}
		}
		if fmt.Sprint(supported) != before {
			t.Error("the list of what KVM supports was changed")
		}
	}
}

// Of all that KVM supports, only this becomes another for a vCPU that is one of four, with two threads a core.
func TestWhatChanges(t *testing.T) {
	for name, want := range map[string]string{
		"intel": `
00000001.0 00050657 00400800 76fab223 0f8bfbff -> 00050657 03040800 f7fa3223 1f8bfbff
00000004.0 7c004121 01c0003f 0000003f 00000000 -> 04004121 01c0003f 0000003f 00000000
00000004.1 7c004122 01c0003f 0000003f 00000000 -> 04004122 01c0003f 0000003f 00000000
00000004.2 7c004143 03c0003f 000003ff 00000000 -> 04004143 03c0003f 000003ff 00000000
00000004.3 7c0fc163 0280003f 0000cfff 00000004 -> 0400c163 0280003f 0000cfff 00000004
00000006.0 00000077 00000002 00000009 00000000 -> 00000075 00000002 00000001 00000000
00000007.0 00000000 d19f0fab 0000082c ac000400 -> 00000000 d19f2feb 0000080c ac000400
0000000a.0 07300404 00000000 00000000 00000603 -> 00000000 00000000 00000000 00000000
0000000b.0 00000001 00000002 00000100 00000000 -> 00000001 00000002 00000100 00000003
0000000b.1 00000006 00000030 00000201 00000000 -> 00000002 00000004 00000201 00000003
0000000d.0 000002ff 00000a88 00000a88 00000000 -> 000002e7 00000240 00000a88 00000000
0000000d.3 00000040 000003c0 00000000 00000000 -> gone
0000000d.4 00000040 00000400 00000000 00000000 -> gone
80000002.0 00000000 00000000 00000000 00000000 -> 65746e49 2952286c 6f655820 2952286e
80000003.0 00000000 00000000 00000000 00000000 -> 6f725020 73736563 4020726f 352e3220
80000004.0 00000000 00000000 00000000 00000000 -> 7a484730 00000000 00000000 00000000
80000006.0 00000000 00000000 00000000 00000000 -> 00000000 00000000 01006040 00000000
`,
		"amd": `
00000001.0 00a00f11 00020800 72f83203 078bfbfd -> 00a00f11 03040800 f3f83203 178bfbfd
00000007.0 00000000 219c03ab 0040000c 20000010 -> 00000000 219c03ab 0040000c 00000010
0000000d.0 00000000 00000240 00000240 00000000 -> gone
80000001.0 00a00f11 00000000 00000177 2dd3fbfd -> 00a00f11 00000000 00400177 2dd3fbfd
80000002.0 00000000 00000000 00000000 00000000 -> 20444d41 43595045 00000000 00000000
80000005.0 00000000 00000000 00000000 00000000 -> 01ff01ff 01ff01ff 20080140 20080140
80000008.0 00003028 00000204 00001001 00000000 -> 00003028 00000204 00002003 00000000
8000001d.0 00000121 01c0003f 0000003f 00000001 -> 00004121 01c0003f 0000003f 00000001
8000001d.1 00000122 01c0003f 0000003f 00000001 -> 00004122 01c0003f 0000003f 00000001
8000001d.2 00000043 01c0003f 000003ff 00000000 -> 00004043 01c0003f 000003ff 00000000
8000001d.3 00004163 03c0003f 00007fff 00000002 -> 0000c163 03c0003f 00007fff 00000002
8000001e.0 00000000 00000000 00000000 00000000 -> 00000003 00000101 00000000 00000000
`,
	} {
		t.Run(name, func(t *testing.T) {
			supported, host := recorded(t, name)
			l := leaves(NewModel(supported, host).VCPU(Topology{ID: 3, Count: 4, SMT: true}))
			got := "\n"
			show := func(e kvm.CPUID) string { return fmt.Sprintf("%08x %08x %08x %08x", e.EAX, e.EBX, e.ECX, e.EDX) }
			for _, e := range supported {
				is := "gone"
				if now := l.find(e.Function, e.Index); now != nil {
					is = show(*now)
				}
				if is != show(e) {
					got += fmt.Sprintf("%08x.%d %s -> %s\n", e.Function, e.Index, show(e), is)
				}
			}
			if got != want {
				t.Errorf("got%swant%s", got, want)
			}
			seen := make(map[[2]uint32]bool)
			for _, e := range l {
				if key := [2]uint32{e.Function, e.Index}; seen[key] {
					t.Errorf("leaf %#x.%d twice", e.Function, e.Index)
				} else {
					seen[key] = true
				}
			}
		})
	}
}

// Leaf 0x1f is 0xb's double where there is one, and the deadline timer is told of where KVM has it.
func TestOptional(t *testing.T) {
	supported, host := recorded(t, "intel")
	host.TSCDeadline = false
	l := NewModel(supported, host).VCPU(Topology{ID: 1, Count: 2})
	if leaves(l).find(0x1f, 0) != nil || find(t, l, 1, 0).ECX&leaf1ECXTSCDeadline != 0 {
		t.Error("a leaf 0x1f or a timer out of nowhere")
	}
	supported = append(supported, kvm.CPUID{Function: 0x1f, Flags: 1, EAX: 9}, kvm.CPUID{Function: 0x1f, Index: 5, Flags: 1, EAX: 9})
	l = NewModel(supported, host).VCPU(Topology{ID: 1, Count: 2})
	for i := range uint32(2) {
		b, f := find(t, l, 0xb, i), find(t, l, 0x1f, i)
		if b.Function = 0x1f; b != f {
			t.Errorf("0x1f.%d is %x, want %x", i, f, b)
		}
	}
	if leaves(l).find(0x1f, 5) != nil {
		t.Error("a level of the host's is left in leaf 0x1f")
	}
	// A CPU of another make, with next to no leaves.
	m := NewModel([]kvm.CPUID{{Function: 0, EAX: 1, EBX: 0x12345678}, {Function: 1}}, Host{CPUID: func(f, i uint32) kvm.CPUID { return kvm.CPUID{Function: f, Index: i} }})
	if l := m.VCPU(Topology{ID: 0, Count: 1}); find(t, l, 1, 0).ECX&leaf1ECXHypervisor == 0 || find(t, l, 0, 0).EBX != 0 {
		t.Errorf("got %x", l)
	}
	// An AMD CPU without topology extensions is given none.
	supported, host = recorded(t, "amd")
	old := host.CPUID
	host.CPUID = func(f, i uint32) kvm.CPUID {
		if f == leafAMDMax {
			return kvm.CPUID{EAX: leafAMDSizes}
		}
		return old(f, i)
	}
	if l := NewModel(supported, host).VCPU(Topology{Count: 1}); find(t, l, leafAMDFeatures, 0).ECX&leafAMDECXTopologyExt != 0 {
		t.Error("topology extensions that the host has not")
	}
}

func TestIntelBrand(t *testing.T) {
	const name = "Intel(R) Xeon(R) Processor"
	for host, want := range map[string]string{
		"Intel(R) Xeon(R) Platinum 8259CL CPU @ 2.50GHz": name + " @ 2.50GHz",
		"Genuine Intel(R) CPU 0000 @ 900MHz":             name + " @ 900MHz",
		"Intel(R) Xeon(R) Platinum 8488C":                name,
		"GHz":                                            name,
		"x @ fastGHz":                                    name,
		"x @ 1234567890123456789.5GHz":                   name,
		"":                                               name,
	} {
		if got := intelBrand(host); got != want {
			t.Errorf("%q becomes %q, want %q", host, got, want)
		}
	}
	_, host := recorded(t, "intel")
	if b := hostBrand(host); b != "Intel(R) Xeon(R) Platinum 8259CL CPU @ 2.50GHz" {
		t.Errorf("brand %q", b)
	}
}

func TestHostCPUID(t *testing.T) {
	e := HostCPUID(0, 0)
	if v := vendor(e); len(strings.Trim(v, "\x00")) == 0 || e.EAX == 0 {
		t.Errorf("vendor %q, %+v", v, e)
	}
	info, err := os.ReadFile("/proc/cpuinfo")
	if err != nil || !strings.Contains(string(info), vendor(e)) {
		t.Errorf("/proc/cpuinfo does not have %q (%v)", vendor(e), err)
	}
	if a, b := HostCPUID(0xb, 0), HostCPUID(0xb, 1); reflect.DeepEqual(a, b) && a.ECX != 0 {
		t.Errorf("the index is not heeded: %x, %x", a, b)
	}
}

func TestConsistentXSAVE(t *testing.T) {
	in := []kvm.CPUID{
		{Function: 1, ECX: leaf1ECXXSAVE | leaf1ECXAVX},
		{Function: 7},
		{Function: 0xd, Index: 0, EAX: 0x207, EBX: 2696, ECX: 2696},
		{Function: 0xd, Index: 1, EAX: 0xf},
		{Function: 0xd, Index: 2, EAX: 256, EBX: 576},
		{Function: 0xd, Index: 9, EAX: 8, EBX: 2688},
	}
	host := Host{CPUID: func(f, i uint32) kvm.CPUID { return kvm.CPUID{Function: f, Index: i} }}
	l := NewModel(in, host).VCPU(Topology{Count: 1})
	if e := find(t, l, 0xd, 0); e.EAX != 7 || e.ECX != 832 {
		t.Errorf("without PKU: leaf 0xd = %+v, want components 7 and 832 bytes", e)
	}
	if leaves(l).find(0xd, 9) != nil {
		t.Error("the component of protection keys is left")
	}
	in[1].ECX = leaf7ECXPKU
	l = NewModel(in, host).VCPU(Topology{Count: 1})
	if e := find(t, l, 0xd, 0); e.EAX != 0x207 || e.ECX != 2696 {
		t.Errorf("with PKU: leaf 0xd = %+v", e)
	}
}
