package boot

import "encoding/binary"

// A builder for the little AML that a DSDT of ours needs (ACPI 6.5 §20). Each function gives the bytes of one term.

func concat(parts ...[]byte) []byte {
	var out []byte
	for _, p := range parts {
		out = append(out, p...)
	}
	return out
}

// amlPackage prefixes a body with its PkgLength, which counts itself (§20.2.4). Bodies stay below 2^20 bytes.
func amlPackage(body []byte) []byte {
	n := len(body) + 1
	switch {
	case n < 1<<6:
		return append([]byte{byte(n)}, body...)
	case n+1 < 1<<12:
		n++
		return append([]byte{1<<6 | byte(n&0xf), byte(n >> 4)}, body...)
	default:
		n += 2
		return append([]byte{2<<6 | byte(n&0xf), byte(n >> 4), byte(n >> 12)}, body...)
	}
}

// amlScope opens the named scope, whose name is "\\" and one segment of four characters.
func amlScope(name string, terms ...[]byte) []byte {
	return append([]byte{0x10}, amlPackage(concat(append([][]byte{[]byte(name)}, terms...)...))...)
}

// amlDevice makes a device; its name has four characters.
func amlDevice(name string, terms ...[]byte) []byte {
	return append([]byte{0x5b, 0x82}, amlPackage(concat(append([][]byte{[]byte(name)}, terms...)...))...)
}

// amlMethod makes a serialised method with n arguments; its name has four characters.
func amlMethod(name string, n byte, terms ...[]byte) []byte {
	const serialised = 1 << 3
	return append([]byte{0x14}, amlPackage(concat([]byte(name), []byte{n | serialised}, concat(terms...)))...)
}

// amlIfArg0 carries out terms if the method's first argument is v.
func amlIfArg0(v uint64, terms ...[]byte) []byte {
	return append([]byte{0xa0}, amlPackage(concat([]byte{0x93, 0x68}, amlInt(v), concat(terms...)))...)
}

// amlNotify tells the driver of a device in \_SB, whose name has four characters, that something has happened.
func amlNotify(device string, v uint64) []byte {
	return concat([]byte{0x86, '\\', 0x2e}, []byte("_SB_"), []byte(device), amlInt(v))
}

// amlName names an object; the name has four characters.
func amlName(name string, object []byte) []byte {
	return concat([]byte{0x08}, []byte(name), object)
}

func amlInt(v uint64) []byte {
	le := binary.LittleEndian
	switch {
	case v == 0:
		return []byte{0x00}
	case v == 1:
		return []byte{0x01}
	case v < 1<<8:
		return []byte{0x0a, byte(v)}
	case v < 1<<16:
		return le.AppendUint16([]byte{0x0b}, uint16(v))
	case v < 1<<32:
		return le.AppendUint32([]byte{0x0c}, uint32(v))
	default:
		return le.AppendUint64([]byte{0x0e}, v)
	}
}

func amlString(s string) []byte { return concat([]byte{0x0d}, []byte(s), []byte{0}) }

// amlEISAID packs an identifier such as PNP0501 (§19.3.4). It has three capital letters and four hexadecimal digits.
func amlEISAID(id string) []byte {
	hex := func(c byte) uint32 {
		if c >= 'A' {
			return uint32(c-'A') + 10
		}
		return uint32(c - '0')
	}
	v := uint32(id[0]-0x40)<<26 | uint32(id[1]-0x40)<<21 | uint32(id[2]-0x40)<<16 |
		hex(id[3])<<12 | hex(id[4])<<8 | hex(id[5])<<4 | hex(id[6])
	return binary.BigEndian.AppendUint32([]byte{0x0c}, v)
}

// amlList is a Package of objects.
func amlList(objects ...[]byte) []byte {
	return append([]byte{0x12}, amlPackage(append([]byte{byte(len(objects))}, concat(objects...)...))...)
}

// amlResources is a ResourceTemplate: a buffer of resource descriptors (§6.4) and an end tag.
func amlResources(descriptors ...[]byte) []byte {
	body := append(concat(descriptors...), 0x79, 0x00)
	return append([]byte{0x11}, amlPackage(concat(amlInt(uint64(len(body))), body))...)
}

// resMemory32 is a Memory32Fixed descriptor, read and write (§6.4.3.4).
func resMemory32(base, size uint32) []byte {
	le := binary.LittleEndian
	return le.AppendUint32(le.AppendUint32([]byte{0x86, 9, 0, 1}, base), size)
}

// resIO is an I/O port descriptor with 16 address lines (§6.4.2.5).
func resIO(port uint16, n byte) []byte {
	return []byte{0x47, 1, byte(port), byte(port >> 8), byte(port), byte(port >> 8), 1, n}
}

// resInterrupt is an Extended Interrupt descriptor: edge-triggered, active high, not shared, which is how the VMM raises its
// lines (§6.4.3.6).
func resInterrupt(gsi uint32) []byte {
	const consumer, edge = 1 << 0, 1 << 1
	return binary.LittleEndian.AppendUint32([]byte{0x89, 6, 0, consumer | edge, 1}, gsi)
}
