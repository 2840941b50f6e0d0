package passthrough

import (
	"encoding/binary"

	"github.com/hanwen/go-fuse/v2/fuse"

	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/virtio/iov"
)

// keptBuffer is how large a Request's buffers may stay between two uses, in bytes.
const keptBuffer = 16 << 10

// Request is one FUSE request on its way through a Server. Use it as Serve does; Load, Direct and Store touch the guest's
// memory, Call does not. One Request serves one request at a time and should be used for many.
type Request struct {
	in, out [][]byte // the guest's

	op     uint32
	length int // of the request, in bytes, as its header says
	unique uint64

	body  []byte // private copy; of WRITE only the fixed part
	reply []byte
	n     int // bytes of reply that count

	vec       iov.Vec
	vin, vout [1][]byte
}

// Load copies the request out of guest memory and checks its header. It returns false for bytes that are no request at
// all: they get no answer.
func (r *Request) Load(in, out [][]byte) bool {
	r.in, r.out, r.n = in, out, 0
	r.body = grow(r.body, ioInSize)
	have := copyOut(r.body, in)
	if have < inHeaderSize {
		return false
	}
	r.op = binary.LittleEndian.Uint32(r.body[4:])
	r.unique = binary.LittleEndian.Uint64(r.body[8:])
	length := binary.LittleEndian.Uint32(r.body)
	if length < inHeaderSize || uint64(length) > total(in) {
		return false
	}
	r.length = int(length)
	if r.op == opWrite || r.length > maxRequest {
		r.body = r.body[:min(have, r.length)]
		return true
	}
	// The header may have changed meanwhile: only the first copy counts.
	var first [inHeaderSize]byte
	copy(first[:], r.body)
	r.body = grow(r.body, r.length)
	copyOut(r.body, in)
	copy(r.body, first[:])
	return true
}

// IsDirect says that the request moves file data: serve it with Direct, else with Call and Store.
func (r *Request) IsDirect() bool { return r.op == opRead || r.op == opWrite }

// fail makes the reply an error.
func (r *Request) fail(st fuse.Status) {
	r.n = 0
	if hasReply(r.op) {
		r.reply = grow(r.reply, outHeaderSize)
		putHeader(r.reply, outHeaderSize, st, r.unique)
		r.n = outHeaderSize
	}
}

// Store copies the reply into guest memory and returns its length. A reply that does not fit becomes EIO, one for which
// not even a header fits is dropped.
func (r *Request) Store() int {
	room := total(r.out)
	if uint64(r.n) > room {
		r.fail(fuse.EIO)
	}
	if uint64(r.n) > room {
		return 0
	}
	n := copyIn(r.out, r.reply[:r.n])
	r.release()
	return n
}

// release forgets the guest's buffers and gives large ones of its own away.
func (r *Request) release() {
	r.in, r.out = nil, nil
	if cap(r.body) > keptBuffer {
		r.body = nil
	}
	if cap(r.reply) > keptBuffer {
		r.reply = nil
	}
}

// grow returns a buffer of n bytes that starts with what b holds, b itself if it is large enough.
func grow(b []byte, n int) []byte {
	if cap(b) >= n {
		return b[:n]
	}
	g := make([]byte, max(n, 512))
	copy(g, b)
	return g[:n]
}

func total(bufs [][]byte) uint64 {
	var n uint64
	for _, b := range bufs {
		n += uint64(len(b))
	}
	return n
}

// copyOut fills dst from the front of bufs.
func copyOut(dst []byte, bufs [][]byte) int {
	n := 0
	for _, b := range bufs {
		if n == len(dst) {
			break
		}
		n += copy(dst[n:], b)
	}
	return n
}

// copyIn writes src to the front of bufs.
func copyIn(bufs [][]byte, src []byte) int {
	n := 0
	for _, b := range bufs {
		if n == len(src) {
			break
		}
		n += copy(b, src[n:])
	}
	return n
}
