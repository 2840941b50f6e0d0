package cpu

import (
	"errors"
	"fmt"
	"slices"

	"github.com/containerd/errdefs"

	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/config"
	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/kvm"
)

// Template is a CPU template that this host can be asked to apply. The zero value changes nothing.
type Template struct {
	config.CPUConfig
	// source is what of the VM's description it comes from, for errors.
	source string
}

// templateError is of the class errdefs.ErrInvalidArgument: the template asks for what the host has not.
type templateError struct {
	source string
	err    error
}

func (e *templateError) Error() string   { return e.source + ": " + e.err.Error() }
func (e *templateError) Unwrap() []error { return []error{e.err, errdefs.ErrInvalidArgument} }

// NewTemplate gives the template that a VM's description asks for: custom, or a named one, which is refused on a host that it was
// not made for. supported is what KVM supports. Errors are of the class errdefs.ErrInvalidArgument.
func NewTemplate(name string, custom *config.CPUConfig, supported []kvm.CPUID) (*Template, error) {
	if custom != nil {
		return &Template{CPUConfig: *custom, source: "cpu-config"}, nil
	}
	if name == "" || name == config.CPUTemplateNone {
		return &Template{}, nil
	}
	return namedTemplate(name, supported)
}

// CPUID applies the template to what KVM supports, which stays as it is. An error names the modifier of a leaf that is not there.
func (t *Template) CPUID(supported []kvm.CPUID) ([]kvm.CPUID, error) {
	out := leaves(slices.Clone(supported))
	for i, m := range t.CPUIDModifiers {
		e := out.find(uint32(m.Leaf), uint32(m.Subleaf))
		if e == nil {
			return nil, &config.FieldError{Field: fmt.Sprintf("%s/cpuid_modifiers[%d]", t.source, i),
				Value: fmt.Sprintf("for leaf %#x, subleaf %#x", uint32(m.Leaf), uint32(m.Subleaf)), Want: "a leaf of CPUID that this host's KVM supports"}
		}
		e.Flags = m.Flags
		for _, r := range m.Modifiers {
			p := register(e, r.Register)
			*p = r.Bitmap.Apply(*p)
		}
	}
	return out, nil
}

// register finds one by its name, which has been validated.
func register(e *kvm.CPUID, name string) *uint32 {
	switch name {
	case "eax":
		return &e.EAX
	case "ebx":
		return &e.EBX
	case "ecx":
		return &e.ECX
	default:
		return &e.EDX
	}
}

// msrs is what a vCPU's registers need of a virtual CPU.
type msrs interface {
	MSRs([]kvm.MSR) error
	SetMSRs([]kvm.MSR) error
}

// applyMSRs changes a vCPU's registers: it reads them, which makes sense once the vCPU has its CPUID, and writes them. An error names
// the register that KVM has not, or whose value it refuses.
func (t *Template) applyMSRs(v msrs) error {
	if len(t.MSRModifiers) == 0 {
		return nil
	}
	var list []kvm.MSR
	at := make(map[config.Number]int, len(t.MSRModifiers))
	for _, m := range t.MSRModifiers {
		if _, ok := at[m.Addr]; !ok {
			at[m.Addr] = len(list)
			list = append(list, kvm.MSR{Index: uint32(m.Addr)})
		}
	}
	if err := v.MSRs(list); err != nil {
		return t.msrError(err)
	}
	for _, m := range t.MSRModifiers {
		p := &list[at[m.Addr]].Data
		*p = m.Bitmap.Apply(*p)
	}
	return t.msrError(v.SetMSRs(list))
}

func (t *Template) msrError(err error) error {
	if err == nil || !errors.Is(err, kvm.ErrNoMSR) && !errors.Is(err, kvm.ErrMSRValue) {
		return err
	}
	return &templateError{source: t.source + "/msr_modifiers", err: err}
}
