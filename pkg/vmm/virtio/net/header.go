package net

import "encoding/binary"

// struct virtio_net_hdr, flags and types (virtio 1.2 §5.1.6).
const (
	headerSize = 12
	hdrFlags   = 0 // offsets of its fields; each but the first two has 16 bits
	hdrGSOType = 1
	hdrHdrLen  = 2
	hdrGSOSize = 4
	hdrStart   = 6
	hdrOffset  = 8
	hdrBuffers = 10

	flagNeedsCSUM = 1

	gsoNone  = 0
	gsoTCPv4 = 1
	gsoUDP   = 3
	gsoTCPv6 = 4
	gsoECN   = 0x80
)

// sanitize makes the header of a frame of size bytes from the guest fit for the host's kernel: bits that mean nothing from a
// driver are cleared. It returns false if the header asks for what was not negotiated, or makes no sense; the kernel would
// find most of that too, but has been wrong before.
func sanitize(h []byte, size int, accepted uint64) bool {
	le := binary.LittleEndian
	h[hdrFlags] &= flagNeedsCSUM
	le.PutUint16(h[hdrBuffers:], 0)
	csum := h[hdrFlags] != 0
	if csum {
		end := int(le.Uint16(h[hdrStart:])) + int(le.Uint16(h[hdrOffset:])) + 2
		if accepted&featureCSUM == 0 || end > size {
			return false
		}
	}
	gso, ecn := h[hdrGSOType]&^gsoECN, h[hdrGSOType]&gsoECN != 0
	var need uint64
	switch gso {
	case gsoNone:
		return !ecn
	case gsoTCPv4:
		need = featureHostTSO4
	case gsoTCPv6:
		need = featureHostTSO6
	case gsoUDP:
		need = featureHostUFO
	default:
		return false
	}
	if ecn {
		if gso == gsoUDP {
			return false
		}
		need |= featureHostECN
	}
	return accepted&need == need && csum && le.Uint16(h[hdrGSOSize:]) != 0 && int(le.Uint16(h[hdrHdrLen:])) <= size
}

// gather copies the first bytes of bufs to p and returns how many.
func gather(p []byte, bufs [][]byte) int {
	n := 0
	for _, b := range bufs {
		if n += copy(p[n:], b); n == len(p) {
			break
		}
	}
	return n
}

// scatter copies p to bufs, from offset skip on, and returns how much of it had room.
func scatter(bufs [][]byte, skip int, p []byte) int {
	n := 0
	for _, b := range bufs {
		if skip >= len(b) {
			skip -= len(b)
			continue
		}
		n += copy(b[skip:], p[n:])
		if skip = 0; n == len(p) {
			break
		}
	}
	return n
}
