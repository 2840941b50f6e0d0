package vsock

// bufferSize is what a connection buffers of the guest's data while the host's side does not read: the credit that the
// guest gets, in bytes.
const bufferSize = 64 << 10

// buffer is a ring of bytes.
type buffer struct {
	b        *[bufferSize]byte // nil when empty
	start, n int
}

// add appends the bytes of bufs behind skip, which the caller knows to fit, up to max.
func (r *buffer) add(bufs [][]byte, skip, max int) {
	for _, b := range bufs {
		if skip >= len(b) {
			skip -= len(b)
			continue
		}
		b, skip = b[skip:], 0
		b = b[:min(len(b), max)]
		max -= len(b)
		for len(b) > 0 {
			end := (r.start + r.n) % bufferSize
			k := copy(r.b[end:min(bufferSize, end+bufferSize-r.n)], b)
			b, r.n = b[k:], r.n+k
		}
	}
}

// head is the first contiguous piece.
func (r *buffer) head() []byte { return r.b[r.start:min(bufferSize, r.start+r.n)] }

// drop removes the first n bytes.
func (r *buffer) drop(n int) { r.start, r.n = (r.start+n)%bufferSize, r.n-n }
