package config

import (
	"fmt"
	"math/bits"
	"slices"
	"strconv"
	"strings"
)

// Named CPU templates, deprecated in Firecracker and still accepted: each makes several generations of CPUs look alike to a guest.
const (
	CPUTemplateNone = "None"
	CPUTemplateC3   = "C3"
	CPUTemplateT2   = "T2"
	CPUTemplateT2A  = "T2A"
	CPUTemplateT2CL = "T2CL"
	CPUTemplateT2S  = "T2S"
)

// CPUTemplates lists the values of Machine.CPUTemplate.
func CPUTemplates() []string {
	return []string{CPUTemplateNone, CPUTemplateC3, CPUTemplateT2, CPUTemplateT2A, CPUTemplateT2CL, CPUTemplateT2S}
}

// CPUConfig is a custom CPU template: what of the host's CPU a guest is shown differently. Modifiers are applied in order. What the
// VMM itself sets, such as the topology, it sets after them. A template is no protection: a guest may execute what it is not shown.
type CPUConfig struct {
	// KVMCapabilities change the list of what the host's KVM is checked for.
	KVMCapabilities []KVMCapability `json:"kvm_capabilities,omitempty"`
	CPUIDModifiers  []CPUIDModifier `json:"cpuid_modifiers,omitempty"`
	MSRModifiers    []MSRModifier   `json:"msr_modifiers,omitempty"`
}

// CPUIDModifier changes one leaf of CPUID, which the host must have.
type CPUIDModifier struct {
	Leaf    Number `json:"leaf"`
	Subleaf Number `json:"subleaf"`
	// Flags are KVM's for the leaf, 0 to 7 (KVM API 4.46): 1 where subleaves differ.
	Flags uint32 `json:"flags"`
	// Modifiers change its registers.
	Modifiers []RegisterModifier `json:"modifiers"`
}

// RegisterModifier changes one of a leaf's registers.
type RegisterModifier struct {
	// Register is "eax", "ebx", "ecx" or "edx".
	Register string         `json:"register"`
	Bitmap   Bitmap[uint32] `json:"bitmap"`
}

// MSRModifier changes a model-specific register's value at the start, which KVM must have. Whether the guest may read or write it is
// KVM's affair.
type MSRModifier struct {
	Addr   Number         `json:"addr"`
	Bitmap Bitmap[uint64] `json:"bitmap"`
}

// Validate checks what can be checked without the host.
func (c *CPUConfig) Validate() error {
	for i := range c.CPUIDModifiers {
		m := &c.CPUIDModifiers[i]
		at := fmt.Sprintf("cpu-config/cpuid_modifiers[%d]/", i)
		if m.Flags > 7 {
			return bad(at+"flags", m.Flags, "0 to 7, flags of KVM's for a leaf")
		}
		for j, r := range m.Modifiers {
			if !slices.Contains([]string{"eax", "ebx", "ecx", "edx"}, r.Register) {
				return BadString(fmt.Sprintf("%smodifiers[%d]/register", at, j), r.Register, `"eax", "ebx", "ecx" or "edx"`)
			}
		}
	}
	return nil
}

// clone is a copy that shares nothing with c.
func (c *CPUConfig) clone() *CPUConfig {
	if c == nil {
		return nil
	}
	n := CPUConfig{KVMCapabilities: slices.Clone(c.KVMCapabilities), CPUIDModifiers: slices.Clone(c.CPUIDModifiers), MSRModifiers: slices.Clone(c.MSRModifiers)}
	for i := range n.CPUIDModifiers {
		n.CPUIDModifiers[i].Modifiers = slices.Clone(n.CPUIDModifiers[i].Modifiers)
	}
	return &n
}

// KVMCapability is one line of the list of capabilities that the host's KVM must have. In JSON it is a string: the number, with an
// exclamation mark before it to take it off the list.
type KVMCapability struct {
	// Number is KVM's (linux/kvm.h).
	Number uint32
	// Remove: the VMM does not check for it.
	Remove bool
}

// MarshalText gives the form in JSON.
func (k KVMCapability) MarshalText() ([]byte, error) {
	var b []byte
	if k.Remove {
		b = append(b, '!')
	}
	return strconv.AppendUint(b, uint64(k.Number), 10), nil
}

// UnmarshalText reads the form in JSON.
func (k *KVMCapability) UnmarshalText(text []byte) error {
	digits, remove := strings.CutPrefix(string(text), "!")
	n, err := strconv.ParseUint(digits, 10, 32)
	if err != nil {
		return &wantError{`a number of a KVM capability, as in "171", or "!171" to leave it unchecked`}
	}
	*k = KVMCapability{Number: uint32(n), Remove: remove}
	return nil
}

// Number is a leaf's, a subleaf's or a register's number. In JSON it is a string, as Firecracker writes it: "0x80000008", "0b11" or "7".
type Number uint32

// MarshalText gives the hexadecimal form.
func (n Number) MarshalText() ([]byte, error) { return fmt.Appendf(nil, "%#x", uint32(n)), nil }

// UnmarshalText reads a number in one of the three forms.
func (n *Number) UnmarshalText(text []byte) error {
	s, base := string(text), 10
	for prefix, b := range map[string]int{"0x": 16, "0b": 2} {
		if rest, ok := strings.CutPrefix(s, prefix); ok {
			s, base = rest, b
		}
	}
	v, err := strconv.ParseUint(s, base, 32)
	if err != nil {
		return &wantError{`an integer of at most 32 bits, as in "0x1a", "0b11" or "26"`}
	}
	*n = Number(v)
	return nil
}

// Bitmap says what becomes of a register's bits: those in Mask get Value's, the others stay as they are. In JSON it is a string, "0b" and
// for each bit, the highest first, 0, 1 or x for one that stays. What a shorter one leaves out stays, and underscores may separate digits.
type Bitmap[T uint32 | uint64] struct {
	// Mask are the bits that are set or cleared.
	Mask T
	// Value has no bit that Mask has not.
	Value T
}

// Apply gives the register's new value.
func (b Bitmap[T]) Apply(v T) T { return v&^b.Mask | b.Value }

// MarshalText gives the form in JSON, all bits of it.
func (b Bitmap[T]) MarshalText() ([]byte, error) {
	text := []byte("0b")
	for bit := b.width() - 1; bit >= 0; bit-- {
		switch {
		case b.Mask>>bit&1 == 0:
			text = append(text, 'x')
		case b.Value>>bit&1 == 0:
			text = append(text, '0')
		default:
			text = append(text, '1')
		}
	}
	return text, nil
}

// UnmarshalText reads the form in JSON. The prefix may be missing, as Firecracker has it.
func (b *Bitmap[T]) UnmarshalText(text []byte) error {
	var n Bitmap[T]
	want := &wantError{fmt.Sprintf(`"0b" and up to %d of 0, 1 and x, for a bit that stays as it is; _ may separate them`, b.width())}
	digits := 0
	for _, c := range []byte(strings.TrimPrefix(string(text), "0b")) {
		if c == '_' {
			continue
		}
		if digits++; digits > b.width() {
			return want
		}
		n.Mask, n.Value = n.Mask<<1, n.Value<<1
		switch c {
		case 'x':
		case '0':
			n.Mask |= 1
		case '1':
			n.Mask, n.Value = n.Mask|1, n.Value|1
		default:
			return want
		}
	}
	if digits == 0 {
		return want
	}
	*b = n
	return nil
}

// width is the number of bits of a T.
func (b Bitmap[T]) width() int { return bits.Len64(uint64(^T(0))) }

// wantError says what a text should have been; whoever has read the text names its field and its value.
type wantError struct{ want string }

func (e *wantError) Error() string { return "want " + e.want }
