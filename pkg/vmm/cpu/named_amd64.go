package cpu

import (
	"fmt"
	"strings"

	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/config"
	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/kvm"
)

// named is what a named template does: the host's CPUs that it is for, and the bits that it clears and sets.
type named struct {
	vendor string
	models []model
	cpuid  []change
	// archCapabilities is the register of that name; mask 0: as KVM has it.
	archCapabilities config.Bitmap[uint64]
}

// model is a CPU by its signature, leaf 1's eax without the reserved bits.
type model struct {
	signature uint32
	name      string
}

// change is one of a register's: bits that the guest sees as 0, and as 1.
type change struct {
	leaf, subleaf uint32
	register      string
	clear, set    uint32
}

// Signatures of the CPUs that the templates are for, by family, model and stepping.
func skylake() model     { return model{0x50654, "Intel Skylake"} }
func cascadeLake() model { return model{0x50657, "Intel Cascade Lake"} }
func iceLake() model     { return model{0x606a6, "Intel Ice Lake"} }
func milan() model       { return model{0xa00f11, "AMD Milan"} }

const (
	// signatureMask leaves the reserved bits and the type out.
	signatureMask = 0x0fff0fff
	// writableSignature is signatureMask with the type: what a template sets.
	writableSignature = 0x0fff3fff

	msrArchCapabilities = 0x10a
)

func (m model) String() string { return m.name + " (" + signatureText(m.signature) + ")" }

// signatureText is a signature in the words of /proc/cpuinfo.
func signatureText(s uint32) string {
	family, number := s>>8&0xf, s>>4&0xf
	if family == 6 || family == 15 {
		number |= s >> 16 & 0xf << 4
	}
	if family == 15 {
		family += s >> 20 & 0xff
	}
	return fmt.Sprintf("family %d, model %d, stepping %d", family, number, s&0xf)
}

// namedTemplate gives the template of a name that config knows, if the host is one that it is for.
func namedTemplate(name string, supported []kvm.CPUID) (*Template, error) {
	n, ok := namedTemplates()[name]
	if !ok {
		return nil, fmt.Errorf("no CPU template %q", name) // which config.Validate refuses before
	}
	var host struct {
		vendor    string
		signature uint32
	}
	if e := leaves(supported).find(0, 0); e != nil {
		host.vendor = vendor(*e)
	}
	if e := leaves(supported).find(1, 0); e != nil {
		host.signature = e.EAX & signatureMask
	}
	fits := false
	var want []string
	for _, m := range n.models {
		fits = fits || host.vendor == n.vendor && host.signature == m.signature
		want = append(want, m.String())
	}
	if !fits {
		return nil, &config.FieldError{Field: "cpu_template", Value: fmt.Sprintf("%q on a host of %s, %s", name, host.vendor, signatureText(host.signature)),
			Want: "a host of " + strings.Join(want, " or ")}
	}
	t := &Template{source: "cpu_template " + name}
	for _, c := range n.cpuid {
		m := config.CPUIDModifier{Leaf: config.Number(c.leaf), Subleaf: config.Number(c.subleaf),
			Modifiers: []config.RegisterModifier{{Register: c.register, Bitmap: config.Bitmap[uint32]{Mask: c.clear | c.set, Value: c.set}}}}
		if c.leaf == 7 || c.leaf == 0xd {
			m.Flags = kvm.CPUIDSignificantIndex
		}
		t.CPUIDModifiers = append(t.CPUIDModifiers, m)
	}
	if n.archCapabilities.Mask != 0 {
		t.MSRModifiers = []config.MSRModifier{{Addr: msrArchCapabilities, Bitmap: n.archCapabilities}}
	}
	return t, nil
}
