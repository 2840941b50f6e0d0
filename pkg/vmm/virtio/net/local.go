package net

import (
	"errors"
	"os"
	"time"

	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/metrics"
	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/virtio/queue"
)

// Responder answers some of the guest's frames in the network's place. Its methods may be called at the same time.
type Responder interface {
	// Wants says of a frame's first bytes, localHead if it has so many, whether the responder takes it: then the TAP never sees it.
	Wants(head []byte) bool
	// Receive takes such a frame, of up to maxLocal bytes; it must not keep it. It says whether Next may have something now.
	Receive(frame []byte) bool
	// Next makes a frame for the guest in p, and returns its size; or 0, and the time after which there may be one, 0 if that takes a
	// call of Receive.
	Next(p []byte) (n int, wait time.Duration)
	// Reset forgets all that was said with the last driver.
	Reset()
}

const (
	// localHead is what decides who takes a frame: Ethernet's header, and an ARP packet or the header of IPv4.
	localHead = 14 + 28
	// maxLocal bounds the frames that a Responder is given, in bytes. It has no use for larger ones, which are lost.
	maxLocal = 8 << 10
)

// local is a Responder beside the TAP. The receiving goroutine sleeps in a read of the TAP, whose deadline is its only timer: for
// what the responder has to send later, and in the past to wake it at once.
type local struct {
	r      Responder
	counts *metrics.MMDS
	news   chan struct{} // holds one: look at the responder before you sleep
	// buf is a copy of a frame from the guest, behind its header, for the sending goroutine.
	buf []byte
	// taps says whose turn it is: after a frame of the responder's the TAP's, so that neither has the other wait for ever.
	taps bool
}

// Answer has r answer frames that are for it; those that are given to it and that come of it are counted in counts. It must be called
// before the device is first activated.
func (d *Device) Answer(r Responder, counts *metrics.MMDS) {
	d.local = &local{r: r, counts: counts, news: make(chan struct{}, 1), buf: make([]byte, headerSize+maxLocal)}
}

// begin forgets what the last driver has left behind.
func (l *local) begin() {
	l.r.Reset()
	l.taps = false
	select {
	case <-l.news:
	default:
	}
}

// detour gives the chain's frame to the responder, if it is for that. The guest may change the frame meanwhile, and have it go
// elsewhere than it looked: what goes to the TAP is no more trusted than other frames, and the responder looks at its copy only.
// Frames for the responder are not the network's and thus not charged for, as with Firecracker.
func (t *tx) detour(l *local) bool {
	n := gather(l.buf[:headerSize+localHead], t.chain.Readable)
	if n < headerSize || !l.r.Wants(l.buf[headerSize:n]) {
		return false
	}
	l.counts.RxAccepted.Inc()
	if t.chain.ReadableLen() > len(l.buf) {
		l.counts.RxAcceptedErr.Inc()
		return true
	}
	n = gather(l.buf, t.chain.Readable)
	if l.r.Receive(l.buf[headerSize:n]) {
		t.s.d.wake()
	}
	return true
}

// wake has the receiving goroutine look at the responder.
func (d *Device) wake() {
	select {
	case d.local.news <- struct{}{}:
	default:
	}
	// Fails only where the TAP has gone.
	_ = d.file.SetReadDeadline(time.Unix(1, 0))
}

// frame waits for a frame for the guest. It returns the frame's size, and how much of it is in the guest's buffers already: of one of
// the responder's nothing, as that lies where the rest of others does.
func (r *rx) frame() (n, direct int, err error) {
	l := r.s.d.local
	if l == nil {
		direct = r.offer()
		n, err = r.read()
		return n, direct, err
	}
	for {
		if l.taps {
			l.taps = false
			if n, direct := r.poll(); n > 0 {
				return n, direct, nil
			}
		}
		select {
		case <-l.news:
		default:
		}
		size, wait := l.r.Next(r.spill[0][headerSize:])
		if size > 0 {
			l.taps = true
			l.counts.TxFrames.Inc()
			l.counts.TxBytes.Add(uint64(size))
			clear(r.spill[0][:headerSize])
			return headerSize + size, 0, nil
		}
		if err := r.alarm(l, wait); err != nil {
			return 0, 0, err
		}
		direct = r.offer()
		n, err = r.read()
		if !errors.Is(err, os.ErrDeadlineExceeded) || r.q.Stopped() {
			return n, direct, err
		}
	}
}

// poll reads a frame if there is one.
func (r *rx) poll() (n, direct int) {
	direct = r.offer()
	r.got, r.err = 0, nil
	_ = r.s.d.raw.Control(func(fd uintptr) { r.got, r.err = r.vec.Readv(int(fd)) })
	if r.err != nil {
		return 0, 0 // none yet; if it is worse, the next read says so
	}
	return r.got, direct
}

// alarm ends the next read after a time; 0 is for ever. It may come after what stop and detour do to the deadline, and undo that, so it
// looks afterwards.
func (r *rx) alarm(l *local, after time.Duration) error {
	var at time.Time
	if after > 0 {
		at = time.Now().Add(after)
	}
	err := r.s.d.file.SetReadDeadline(at)
	if r.q.Stopped() {
		return queue.ErrStopped
	}
	if err != nil {
		return err
	}
	if len(l.news) > 0 {
		return r.s.d.file.SetReadDeadline(time.Unix(1, 0))
	}
	return nil
}
