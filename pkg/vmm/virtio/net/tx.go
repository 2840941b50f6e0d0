package net

import (
	"errors"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/virtio/iov"
	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/virtio/queue"
)

// minFrame is Ethernet's header, without which the kernel takes no frame.
const minFrame = 14

// tx is the way from the guest. One goroutine uses it.
type tx struct {
	s        *session
	q        *queue.Queue
	accepted uint64

	chain   queue.Chain
	vec     iov.Vec
	header  [][]byte // one part of the device's scratch
	writeFn func(fd uintptr) bool
	err     error // of the last write
}

func (t *tx) init(s *session, q *queue.Queue, accepted uint64) {
	t.s, t.q, t.accepted = s, q, accepted
	t.header = [][]byte{s.d.scratch[:headerSize]}
	t.writeFn = t.tryWrite
}

// serve sends the guest's frames.
func (t *tx) serve() error {
	for {
		if err := t.q.Wait(); err != nil {
			return err
		}
		t.s.d.counts.TxQueueEvents.Inc()
		for n := 1; ; n++ {
			ok, err := t.q.Pop(&t.chain)
			if err != nil {
				return err
			}
			if !ok {
				if n == 1 {
					t.s.d.counts.NoTxAvailBuffer.Inc()
				}
				break
			}
			if err := t.carry(); err != nil {
				return err
			}
			if err := t.q.Push(t.chain.Head, 0); err != nil {
				return err
			}
			if n%batch == 0 {
				t.interrupt()
			}
		}
		t.interrupt()
	}
}

// carry brings the chain's frame to where it belongs. An error is the end of the session.
func (t *tx) carry() error {
	if l := t.s.d.local; l != nil && t.detour(l) {
		return nil
	}
	if err := t.s.d.txLimiter.Await(t, uint64(max(t.chain.ReadableLen()-headerSize, 0))); err != nil {
		return err
	}
	return t.send()
}

// load gathers the frame of the chain. It returns false for what is none.
func (t *tx) load() bool {
	size := t.chain.ReadableLen() - headerSize
	if size < minFrame || size > MaxFrame {
		return false
	}
	gather(t.header[0], t.chain.Readable)
	if !sanitize(t.header[0], size, t.accepted) {
		return false
	}
	t.vec.Set(t.header, 0, headerSize)
	return t.vec.Append(t.chain.Readable, headerSize, size) == size
}

// send writes a frame to the TAP. A network may lose frames: what is no frame, what the kernel refuses, and what is sent while
// the TAP is down is lost. It waits while the TAP takes nothing. An error is the end of the session.
func (t *tx) send() error {
	counts := &t.s.d.counts
	switch {
	case t.s.d.dead.Load():
		counts.TxFails.Inc()
		return nil
	case !t.load():
		counts.TxMalformedFrames.Inc()
		return nil
	}
	timer := counts.TAPWriteAgg.Start(t.s.d.timed)
	err := t.s.d.raw.Write(t.writeFn)
	timer.Stop()
	switch {
	case errors.Is(err, os.ErrDeadlineExceeded):
		return err
	case err != nil:
		t.s.lost(err)
	case t.err == unix.EBADFD || t.err == unix.EPIPE:
		t.s.lost(t.err)
	case t.err == nil:
		counts.Tx.Inc()
		counts.TxPackets.Inc()
		counts.TxBytes.Add(uint64(t.chain.ReadableLen() - headerSize))
		return nil
	}
	counts.TAPWriteFails.Inc()
	counts.TxFails.Inc()
	return nil
}

func (t *tx) tryWrite(fd uintptr) bool {
	if _, t.err = t.vec.Writev(int(fd)); t.err == unix.EAGAIN {
		t.interrupt()
		return false
	}
	return true
}

// Sleep has the driver take back what has been sent, before the frame in hand waits for the rate limiter.
func (t *tx) Sleep(d time.Duration) error {
	t.interrupt()
	return t.q.Sleep(d)
}

// Wake ends a Sleep.
func (t *tx) Wake() { t.q.Wake() }

func (t *tx) interrupt() {
	if t.q.NeedsInterrupt() {
		t.s.irq.Queue()
	}
}
