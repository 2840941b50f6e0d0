package cpu

import (
	"errors"
	"fmt"
	"reflect"
	"strings"
	"testing"

	"github.com/containerd/errdefs"

	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/config"
	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/kvm"
)

// custom makes a template from bitmaps as in JSON.
func custom(t *testing.T, leaf, subleaf uint32, flags uint32, registers ...string) config.CPUIDModifier {
	t.Helper()
	m := config.CPUIDModifier{Leaf: config.Number(leaf), Subleaf: config.Number(subleaf), Flags: flags}
	for i := 0; i < len(registers); i += 2 {
		r := config.RegisterModifier{Register: registers[i]}
		if err := r.Bitmap.UnmarshalText([]byte(registers[i+1])); err != nil {
			t.Fatal(err)
		}
		m.Modifiers = append(m.Modifiers, r)
	}
	return m
}

func TestCustomTemplateCPUID(t *testing.T) {
	supported, host := recorded(t, "intel")
	before := fmt.Sprint(supported)
	template, err := NewTemplate("T2", &config.CPUConfig{CPUIDModifiers: []config.CPUIDModifier{
		custom(t, 7, 0, 1, "ebx", "0b0xxxx", "edx", "0b0"+strings.Repeat("x", 31), "ebx", "0b1xx"),
		custom(t, 0x80000006, 0, 0, "eax", "0b"+strings.Repeat("10", 16), "ecx", "0b"+strings.Repeat("0", 32)),
		custom(t, 1, 0, 0, "ecx", "0b0"+strings.Repeat("x", 31), "edx", "0bxx"),
		custom(t, 0, 0, 0, "ebx", "0b"+strings.Repeat("1", 32)),
	}}, supported)
	if err != nil {
		t.Fatal(err)
	}
	l, err := template.CPUID(supported)
	if err != nil {
		t.Fatal(err)
	}
	if e := find(t, l, 7, 0); e.EBX != 0xd19f0faf&^0x10 || e.EDX != 0x2c000400 || e.Flags != 1 {
		t.Errorf("leaf 7: %x", e)
	}
	if e := find(t, l, 0x80000006, 0); e.EAX != 0xaaaaaaaa {
		t.Errorf("leaf 0x80000006: %x", e)
	}
	if e := find(t, l, 1, 0); e.ECX != 0x76fab223 || e.EDX != 0x0f8bfbff {
		t.Errorf("leaf 1: %x", e)
	}
	if fmt.Sprint(supported) != before {
		t.Error("the list of what KVM supports was changed")
	}
	// What the VMM sets, it sets after the template: the caches, the maker, the bit of a hypervisor.
	l = NewModel(l, host).VCPU(Topology{Count: 1})
	if e := find(t, l, 0x80000006, 0); e.EAX != 0 || e.ECX != 0x01006040 {
		t.Errorf("leaf 0x80000006: %x", e)
	}
	if e := find(t, l, 1, 0); e.ECX&leaf1ECXHypervisor == 0 {
		t.Errorf("leaf 1: %x", e)
	}
	if v := vendor(find(t, l, 0, 0)); v != vendorIntel {
		t.Errorf("made by %q", v)
	}
	if e := find(t, l, 7, 0); e.EDX != 0x2c000400 || e.EBX&(1<<4) != 0 {
		t.Errorf("leaf 7: %x", e)
	}
}

func TestTemplateWithoutLeaf(t *testing.T) {
	supported, _ := recorded(t, "amd")
	for _, m := range []config.CPUIDModifier{custom(t, 0x14, 0, 0), custom(t, 7, 1, 1, "eax", "0b1"), custom(t, 0xffffffff, 0xffffffff, 0)} {
		template, err := NewTemplate("", &config.CPUConfig{CPUIDModifiers: []config.CPUIDModifier{custom(t, 1, 0, 0), m}}, supported)
		if err != nil {
			t.Fatal(err)
		}
		want := fmt.Sprintf("cpu-config/cpuid_modifiers[1] is for leaf %#x, subleaf %#x: want a leaf of CPUID that this host's KVM supports", uint32(m.Leaf), uint32(m.Subleaf))
		if _, err := template.CPUID(supported); !errdefs.IsInvalidArgument(err) || err.Error() != want {
			t.Errorf("got %v, want %s", err, want)
		}
	}
}

// fakeMSRs has the registers below 0x1000, each of the value of its index, and writes those that are not odd.
type fakeMSRs struct {
	log []string
}

func (f *fakeMSRs) MSRs(l []kvm.MSR) error {
	for i := range l {
		if l[i].Index >= 0x1000 {
			return fmt.Errorf("MSR %#x: %w", l[i].Index, kvm.ErrNoMSR)
		}
		l[i].Data = uint64(l[i].Index)
		f.log = append(f.log, fmt.Sprintf("read %#x", l[i].Index))
	}
	return nil
}

func (f *fakeMSRs) SetMSRs(l []kvm.MSR) error {
	for _, m := range l {
		if m.Index%2 == 1 {
			return fmt.Errorf("MSR %#x: %w", m.Index, kvm.ErrMSRValue)
		}
		f.log = append(f.log, fmt.Sprintf("write %#x = %#x", m.Index, m.Data))
	}
	return nil
}

func TestTemplateMSRs(t *testing.T) {
	modifier := func(addr config.Number, bitmap string) config.MSRModifier {
		m := config.MSRModifier{Addr: addr}
		if err := m.Bitmap.UnmarshalText([]byte(bitmap)); err != nil {
			t.Fatal(err)
		}
		return m
	}
	for _, c := range []struct {
		name      string
		modifiers []config.MSRModifier
		log       []string
		fault     string
	}{
		{"none", nil, nil, ""},
		{"three of two", []config.MSRModifier{modifier(0x10a, "0b1xxx0"), modifier(0x20, "0b"+strings.Repeat("0", 64)), modifier(0x10a, "0b1")},
			[]string{"read 0x10a", "read 0x20", "write 0x10a = 0x11b", "write 0x20 = 0x0"}, ""},
		{"one that is not there", []config.MSRModifier{modifier(2, "0bx"), modifier(0x1000, "0bx")}, []string{"read 0x2"},
			"cpu-config/msr_modifiers: MSR 0x1000: this host's KVM has no such register"},
		{"one that is not written", []config.MSRModifier{modifier(3, "0b0")}, []string{"read 0x3"}, "cpu-config/msr_modifiers: MSR 0x3: this host's KVM refuses it"},
	} {
		t.Run(c.name, func(t *testing.T) {
			template, err := NewTemplate("", &config.CPUConfig{MSRModifiers: c.modifiers}, nil)
			if err != nil {
				t.Fatal(err)
			}
			var f fakeMSRs
			err = template.applyMSRs(&f)
			if c.fault == "" && err != nil || c.fault != "" && (err == nil || err.Error() != c.fault || !errdefs.IsInvalidArgument(err)) {
				t.Errorf("got %v, want %q", err, c.fault)
			}
			if !reflect.DeepEqual(f.log, c.log) {
				t.Errorf("got %q, want %q", f.log, c.log)
			}
		})
	}
	// Trouble of KVM's own is nobody's wrong argument.
	broken := errors.New("broken")
	if err := (&Template{}).msrError(broken); err != broken {
		t.Errorf("got %v", err)
	}
}

func TestNamedTemplateHosts(t *testing.T) {
	intel, _ := recorded(t, "intel")
	amd, _ := recorded(t, "amd")
	host := func(of []kvm.CPUID, signature uint32) []kvm.CPUID {
		l := append(leaves(nil), of...)
		l.find(1, 0).EAX = signature
		return l
	}
	hosts := map[string][]kvm.CPUID{
		"Skylake": host(intel, 0x50654), "Cascade Lake": host(intel, 0x50657), "Ice Lake": host(intel, 0x606a6), "Sapphire Rapids": host(intel, 0x806f8),
		"Milan": host(amd, 0xa00f11), "Genoa": host(amd, 0xa10f11), "Intel's with Milan's number": host(intel, 0xa00f11), "nothing": nil,
	}
	for name, fits := range map[string][]string{
		"T2": {"Skylake", "Cascade Lake", "Ice Lake"}, "C3": {"Skylake", "Cascade Lake", "Ice Lake"}, "T2S": {"Skylake", "Cascade Lake"},
		"T2CL": {"Cascade Lake", "Ice Lake"}, "T2A": {"Milan"},
		"None": {"Skylake", "Cascade Lake", "Ice Lake", "Sapphire Rapids", "Milan", "Genoa", "Intel's with Milan's number", "nothing"},
	} {
		for on, supported := range hosts {
			template, err := NewTemplate(name, nil, supported)
			want := strings.Contains(strings.Join(fits, ","), on)
			if (err == nil) != want || err != nil && !errdefs.IsInvalidArgument(err) {
				t.Errorf("%s on %s: %v", name, on, err)
			}
			if err != nil && template != nil {
				t.Errorf("%s on %s: a template and an error", name, on)
			}
		}
	}
	_, err := NewTemplate("T2S", nil, hosts["Genoa"])
	if want := `cpu_template is "T2S" on a host of AuthenticAMD, family 25, model 17, stepping 1: ` +
		`want a host of Intel Skylake (family 6, model 85, stepping 4) or Intel Cascade Lake (family 6, model 85, stepping 7)`; err == nil || err.Error() != want {
		t.Errorf("got %v, want %s", err, want)
	}
}

// What each template clears and sets, by leaf, register and bits: of each register the bits shown as 0, then those shown as 1.
func TestNamedTemplates(t *testing.T) {
	const t2 = `1.0 eax 0ffc390d 000306f2
1.0 ecx 0004cdfc 00000000
1.0 edx e8640000 00001080
7.0 ebx ffefd814 00000200
7.0 ecx 40415f5e 00000000
7.0 edx 0000011c 00000000
d.0 eax 000002f8 00000000
d.1 eax 0000000e 00000000
`
	const extended = `80000001.0 ecx 20000100 00000000
80000001.0 edx 04000000 00000000
80000008.0 ebx 00000200 00000000
`
	tests := map[string]struct {
		signature uint32
		want      string
	}{
		"T2":  {0x50654, t2 + extended},
		"T2S": {0x50657, t2 + extended + "msr 10a fffffffff3f5f3b3 000000000c0a0c4c\n"},
		"T2CL": {0x606a6, t2 + `80000001.0 ecx 200001c0 00000000
80000001.0 edx 07c00000 00000000
80000008.0 ebx 00000200 00000000
msr 10a ffffffffe2f51e00 0000000000000000
`},
		"T2A": {0xa00f11, t2 + `80000001.0 ecx 200001c4 00000000
80000001.0 edx 06400000 00000000
80000008.0 ebx 00000201 001c0004
`},
		"C3": {0x606a6, `1.0 eax 0ffc391b 000306e4
1.0 ecx 0040dd3c 00000000
1.0 edx a8640000 00001080
7.0 ebx ffafdd3c 00000000
7.0 ecx 4041481e 00000000
7.0 edx 0000000c 00000000
d.0 eax 000002f8 00000000
d.1 eax 0000000e 00000000
80000001.0 ecx 00000120 00000000
80000001.0 edx 04000000 00000000
`},
	}
	for _, name := range config.CPUTemplates()[1:] {
		t.Run(name, func(t *testing.T) {
			c, ok := tests[name]
			if !ok {
				t.Fatal("no test of this template")
			}
			supported, host := recorded(t, map[bool]string{false: "intel", true: "amd"}[name == "T2A"])
			leaves(supported).find(1, 0).EAX = c.signature
			template, err := NewTemplate(name, nil, supported)
			if err != nil {
				t.Fatal(err)
			}
			got := ""
			for _, m := range template.CPUIDModifiers {
				if significant := m.Leaf == 7 || m.Leaf == 0xd; (m.Flags == kvm.CPUIDSignificantIndex) != significant {
					t.Errorf("leaf %#x: flags %d", uint32(m.Leaf), m.Flags)
				}
				for _, r := range m.Modifiers {
					got += fmt.Sprintf("%x.%x %s %08x %08x\n", uint32(m.Leaf), uint32(m.Subleaf), r.Register, r.Bitmap.Mask&^r.Bitmap.Value, r.Bitmap.Value)
				}
			}
			for _, m := range template.MSRModifiers {
				got += fmt.Sprintf("msr %x %016x %016x\n", uint32(m.Addr), m.Bitmap.Mask&^m.Bitmap.Value, m.Bitmap.Value)
			}
			if got != c.want {
				t.Errorf("got\n%swant\n%s", got, c.want)
			}
			if name == "T2A" {
				return // the recorded one has no XSAVE
			}
			l, err := template.CPUID(supported)
			if err != nil {
				t.Fatal(err)
			}
			// What XSAVE saves is what is left: x87, SSE and AVX.
			l = NewModel(l, host).VCPU(Topology{Count: 1})
			if e := find(t, l, 0xd, 0); e.EAX != 7 || e.ECX != 832 {
				t.Errorf("leaf 0xd: %x", e)
			}
		})
	}
}
