package net

import (
	"encoding/binary"
	"errors"
	"io"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/virtio/iov"
	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/virtio/queue"
)

// rx is the way to the guest. One goroutine uses it: it takes buffers off the queue, oldest first, then waits for a frame to
// read into them. While the guest has no buffers the TAP's queue holds the frames, and drops what it cannot.
type rx struct {
	s *session
	q *queue.Queue
	// mergeable: a frame may take several chains.
	mergeable bool
	// noCSUM: the driver knows no flags.
	noCSUM bool
	// want is how much room a read is given, in bytes, if the guest has that much.
	want int

	// A ring of the chains that have been taken off the queue: all of the queue's, if need be.
	held     []queue.Chain
	room     []int // bytes that each takes
	first, n int
	have     int // their sum

	vec    iov.Vec
	spill  [][]byte // one part of the device's scratch
	readFn func(fd uintptr) bool
	got    int // by the last read
	err    error
	unsaid int // frames since the driver was told
	buf    [2]byte
}

func (r *rx) init(s *session, q *queue.Queue, accepted uint64) {
	r.s, r.q = s, q
	r.mergeable = accepted&featureMrgRxbuf != 0
	r.noCSUM = accepted&featureGuestCSUM == 0
	switch {
	case accepted&featuresGuestGSO != 0:
		r.want = headerSize + MaxFrame
	case s.d.mtu != 0:
		r.want = headerSize + 18 + s.d.mtu
	default:
		r.want = headerSize + 18 + 1500
	}
	n := 1
	if r.mergeable {
		n = q.Size()
	}
	r.held, r.room = make([]queue.Chain, n), make([]int, n)
	r.spill = [][]byte{s.d.scratch[spillAt:scratchSize]}
	r.readFn = r.tryRead
}

// serve hands the TAP's frames to the guest. Each is charged for when it has been read, as the guest can see it from then on, also
// one that a reset takes from it; and whoever owes for a frame reads no other.
func (r *rx) serve() error {
	if err := r.s.d.rxLimiter.Settle(r); err != nil {
		return err
	}
	for {
		if err := r.await(1); err != nil {
			return err
		}
		n, direct, err := r.frame()
		if err != nil {
			if errors.Is(err, os.ErrDeadlineExceeded) || errors.Is(err, queue.ErrStopped) {
				return err
			}
			r.s.d.counts.TAPReadFails.Inc()
			r.s.lost(err)
			return queue.ErrStopped
		}
		r.s.d.rxLimiter.Charge(uint64(max(n-headerSize, 0)))
		if n < headerSize || n > headerSize+MaxFrame {
			r.s.d.counts.RxFails.Inc()
			continue // no frame, or one of an unheard-of size: lost
		}
		if err := r.s.d.rxLimiter.Settle(r); err != nil {
			return err
		}
		if err := r.deliver(n, direct); err != nil {
			return err
		}
		if r.unsaid++; r.unsaid >= batch {
			r.interrupt()
		}
	}
}

// hold takes chains off the queue until they take want bytes, or none is left, or as many are held as can be.
func (r *rx) hold(want int) error {
	for r.have < want && r.n < len(r.held) {
		i := (r.first + r.n) % len(r.held)
		ok, err := r.q.Pop(&r.held[i])
		if err != nil || !ok {
			return err
		}
		// Each buffer must take a header at least (virtio 1.2 §5.1.6.3.1).
		if r.room[i] = r.held[i].WritableLen(); r.room[i] < headerSize {
			if err := r.q.Push(r.held[i].Head, 0); err != nil {
				return err
			}
			continue
		}
		r.have += r.room[i]
		r.n++
	}
	return nil
}

// await waits until least bytes are held, or as many chains as can be; it takes more if there are.
func (r *rx) await(least int) error {
	for {
		if err := r.hold(max(least, r.want)); err != nil {
			return err
		}
		if r.have >= least || r.n == len(r.held) {
			return nil
		}
		r.interrupt()
		r.s.d.counts.NoRxAvailBuffer.Inc()
		if err := r.q.Wait(); err != nil {
			return err
		}
		r.s.d.counts.RxQueueEvents.Inc()
	}
}

// offer makes the list of buffers for a read: the guest's, then the spill. It returns how many bytes the guest's take.
func (r *rx) offer() int {
	r.vec.Clear()
	pieces := 0
	for k := 0; k < r.n && r.vec.Len() < r.want; k++ {
		bufs := r.held[(r.first+k)%len(r.held)].Writable
		if pieces += len(bufs); pieces >= iov.Max {
			break
		}
		r.vec.Append(bufs, 0, r.want-r.vec.Len())
	}
	direct := r.vec.Len()
	r.vec.Append(r.spill, 0, len(r.spill[0]))
	return direct
}

// read waits for a frame. Its error is os.ErrDeadlineExceeded at a reset, else the TAP's end.
func (r *rx) read() (int, error) {
	for {
		err := r.s.d.raw.Read(r.readFn)
		if err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
			// The poller's word for a TAP that has gone; the TAP's own is better.
			_ = r.s.d.raw.Control(func(fd uintptr) { r.tryRead(fd) })
			if r.err != nil && r.err != unix.EAGAIN {
				err = r.err
			}
		}
		switch {
		case err != nil:
			return 0, err
		case r.err == unix.EINVAL:
			continue // a frame that no header describes: the kernel has dropped it
		case r.err != nil:
			return 0, r.err
		case r.got == 0:
			return 0, io.EOF
		}
		return r.got, nil
	}
}

func (r *rx) tryRead(fd uintptr) bool {
	if r.got, r.err = r.vec.Readv(int(fd)); r.err == unix.EAGAIN {
		r.interrupt()
		return false
	}
	r.s.d.counts.RxTAPEvents.Inc()
	return true
}

// deliver gives a frame of n bytes to the guest, header included; what is behind the first direct bytes is in the spill. A
// frame that does not fit into one chain, or for want of mergeable buffers into the whole queue, is lost.
func (r *rx) deliver(n, direct int) error {
	if r.have < n {
		if r.mergeable {
			if err := r.await(n); err != nil {
				return err
			}
		}
		if r.have < n {
			r.s.d.counts.RxFails.Inc()
			return nil
		}
	}
	if n > direct {
		r.unspill(direct, r.spill[0][:n-direct])
	}
	count := 0
	for left := n; left > 0; count++ {
		i := (r.first + count) % len(r.held)
		used := min(r.room[i], left)
		left -= used
		if err := r.q.Stage(r.held[i].Head, uint32(used)); err != nil {
			return err
		}
	}
	head := r.held[r.first].Writable
	binary.LittleEndian.PutUint16(r.buf[:], uint16(count))
	scatter(head, hdrBuffers, r.buf[:])
	if r.noCSUM {
		r.buf[0] = 0
		scatter(head, hdrFlags, r.buf[:1])
	}
	r.s.d.counts.Rx.Inc()
	r.s.d.counts.RxPackets.Inc()
	r.s.d.counts.RxBytes.Add(uint64(n - headerSize))
	r.q.Publish()
	for range count {
		r.have -= r.room[r.first]
		r.first, r.n = (r.first+1)%len(r.held), r.n-1
	}
	return nil
}

// unspill copies p to the held chains, behind their first skip bytes.
func (r *rx) unspill(skip int, p []byte) {
	for k := 0; k < r.n && len(p) > 0; k++ {
		i := (r.first + k) % len(r.held)
		if skip >= r.room[i] {
			skip -= r.room[i]
			continue
		}
		p = p[scatter(r.held[i].Writable, skip, p):]
		skip = 0
	}
}

// Sleep tells the driver of what has come, before the frame in hand waits for the rate limiter.
func (r *rx) Sleep(d time.Duration) error {
	r.interrupt()
	return r.q.Sleep(d)
}

// Wake ends a Sleep.
func (r *rx) Wake() { r.q.Wake() }

func (r *rx) interrupt() {
	r.unsaid = 0
	if r.q.NeedsInterrupt() {
		r.s.irq.Queue()
	}
}
