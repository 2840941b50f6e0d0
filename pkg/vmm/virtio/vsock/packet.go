package vsock

import "encoding/binary"

// Limits and numbers of virtio-vsock (virtio 1.2 §5.10).
const (
	headerSize = 44
	hostCID    = 2
	typeStream = 1

	opRequest       = 1
	opResponse      = 2
	opRST           = 3
	opShutdown      = 4
	opRW            = 5
	opCreditUpdate  = 6
	opCreditRequest = 7

	// What the sender of opShutdown will not do any more.
	shutdownReceive = 1
	shutdownSend    = 2

	// maxPacket bounds a packet's payload, in bytes.
	maxPacket = 64 << 10
)

// header is struct virtio_vsock_hdr.
type header struct {
	srcCID, dstCID   uint64
	srcPort, dstPort uint32
	len              uint32
	typ, op          uint16
	flags            uint32
	bufAlloc, fwdCnt uint32
}

// parse copies a header out of guest memory; bufs may cut it anywhere. It returns false if bufs are too short for the
// header or for the payload that it announces.
func (h *header) parse(bufs [][]byte, scratch *[headerSize]byte) bool {
	n, total := 0, 0
	for _, b := range bufs {
		n += copy(scratch[n:], b)
		total += len(b)
	}
	if n < headerSize {
		return false
	}
	le, p := binary.LittleEndian, scratch[:]
	*h = header{
		srcCID:   le.Uint64(p),
		dstCID:   le.Uint64(p[8:]),
		srcPort:  le.Uint32(p[16:]),
		dstPort:  le.Uint32(p[20:]),
		len:      le.Uint32(p[24:]),
		typ:      le.Uint16(p[28:]),
		op:       le.Uint16(p[30:]),
		flags:    le.Uint32(p[32:]),
		bufAlloc: le.Uint32(p[36:]),
		fwdCnt:   le.Uint32(p[40:]),
	}
	return h.len <= maxPacket && int(h.len) <= total-headerSize
}

// format writes the header to bufs, which may cut it anywhere and take at least headerSize bytes.
func (h *header) format(bufs [][]byte, scratch *[headerSize]byte) {
	le, p := binary.LittleEndian, scratch[:]
	le.PutUint64(p, h.srcCID)
	le.PutUint64(p[8:], h.dstCID)
	le.PutUint32(p[16:], h.srcPort)
	le.PutUint32(p[20:], h.dstPort)
	le.PutUint32(p[24:], h.len)
	le.PutUint16(p[28:], h.typ)
	le.PutUint16(p[30:], h.op)
	le.PutUint32(p[32:], h.flags)
	le.PutUint32(p[36:], h.bufAlloc)
	le.PutUint32(p[40:], h.fwdCnt)
	for _, b := range bufs {
		if p = p[copy(b, p):]; len(p) == 0 {
			return
		}
	}
}
