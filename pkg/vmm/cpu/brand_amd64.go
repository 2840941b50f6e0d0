package cpu

import (
	"encoding/binary"
	"strings"
)

// The brand string is 48 bytes in three leaves.
const (
	leafBrand  = 0x80000002
	brandLen   = 48
	brandParts = 3
)

// hostBrand is the host's brand string, without the zeros behind it.
func hostBrand(host Host) string {
	var b []byte
	for i := range uint32(brandParts) {
		e := host.CPUID(leafBrand+i, 0)
		for _, r := range []uint32{e.EAX, e.EBX, e.ECX, e.EDX} {
			b = binary.LittleEndian.AppendUint32(b, r)
		}
	}
	for i, c := range b {
		if c == 0 {
			return string(b[:i])
		}
	}
	return string(b)
}

// setBrand writes a brand string of at most brandLen bytes; where the CPU has no such leaves, nothing.
func (l leaves) setBrand(s string) {
	var b [brandLen]byte
	copy(b[:], s)
	le := binary.LittleEndian
	for i := range uint32(brandParts) {
		if e := l.find(leafBrand+i, 0); e != nil {
			p := b[16*i:]
			e.EAX, e.EBX, e.ECX, e.EDX = le.Uint32(p), le.Uint32(p[4:]), le.Uint32(p[8:]), le.Uint32(p[12:])
		}
	}
}

// intelBrand is Firecracker's for a host's: what a guest's programs may look for, the frequency, is left of it.
func intelBrand(host string) string {
	const name, maxFrequency = "Intel(R) Xeon(R) Processor", 16
	for _, unit := range []string{"GHz", "MHz", "THz"} {
		before, _, found := strings.Cut(host, unit)
		if f := before[strings.LastIndexByte(before, ' ')+1:]; found && f != "" && len(f) <= maxFrequency && strings.Trim(f, "0123456789.") == "" {
			return name + " @ " + f + unit
		}
	}
	return name
}
