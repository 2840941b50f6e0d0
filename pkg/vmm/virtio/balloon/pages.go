package balloon

import (
	"encoding/binary"
	"slices"

	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/virtio/queue"
)

const (
	// listSize is how many page numbers are taken at once: Linux sends up to 256 at a time.
	listSize = 1024
	// maxPiece bounds what is given back in one system call, in bytes, so that a reset does not wait long for it.
	maxPiece = 64 << 20
)

// stopper says that a device's work is not wanted any more: a virtqueue.
type stopper interface{ Stopped() bool }

// pageList reads the driver's lists of pages (virtio 1.2 §5.5.6): numbers of 32 bits, little-endian, in units of pageSize.
// The zero value is ready. One goroutine may use it.
type pageList struct {
	raw   [4 * listSize]byte
	pages [listSize]uint32
}

// discard calls give for the pages that bufs list, which are copied once: a batch of them after the other, each as runs of
// neighbours, without duplicates. Bytes at the end that are no whole number are left out. The error is queue.ErrStopped once that
// is so; a list may be as long as the driver likes.
func (l *pageList) discard(bufs [][]byte, q stopper, give func(addr, n uint64)) error {
	fill := 0
	for _, b := range bufs {
		for len(b) > 0 {
			n := copy(l.raw[fill:], b)
			fill, b = fill+n, b[n:]
			if fill < len(l.raw) {
				continue
			}
			if q.Stopped() {
				return queue.ErrStopped
			}
			l.batch(fill/4, q, give)
			fill = 0
		}
	}
	l.batch(fill/4, q, give)
	if q.Stopped() {
		return queue.ErrStopped
	}
	return nil
}

// batch gives back the first n pages of raw.
func (l *pageList) batch(n int, q stopper, give func(addr, n uint64)) {
	pages := l.pages[:n]
	for i := range pages {
		pages[i] = binary.LittleEndian.Uint32(l.raw[4*i:])
	}
	// Guests allocate pages one by one, and those that are neighbours come in any order.
	slices.Sort(pages)
	for i := 0; i < n && !q.Stopped(); {
		first := uint64(pages[i])
		next := first + 1
		for i++; i < n && uint64(pages[i]) <= next; i++ {
			next = uint64(pages[i]) + 1
		}
		give(first*pageSize, (next-first)*pageSize)
	}
}

// eachPiece calls give for pieces of bufs, until q is stopped; then the error is queue.ErrStopped.
func eachPiece(bufs [][]byte, q stopper, give func(p []byte)) error {
	for _, b := range bufs {
		for len(b) > 0 {
			if q.Stopped() {
				return queue.ErrStopped
			}
			p := b[:min(len(b), maxPiece)]
			give(p)
			b = b[len(p):]
		}
	}
	return nil
}
