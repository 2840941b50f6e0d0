package vsock

import (
	"sync"

	"golang.org/x/sys/unix"

	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/virtio/iov"
	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/virtio/queue"
)

const (
	// batch bounds the guest's buffers that one read fills: 64 KiB of Linux's buffers of 4 KiB.
	batch = 16
	// maxRefusals bounds the answers to packets without a connection; more are dropped, and the guest's own time limits
	// take their place.
	maxRefusals = 256
)

// rx is the way to the guest. Whoever has the turn may use the queue: the goroutine of a connection with data, that of
// the tx queue for its answers if the turn is free, and rx.serve for all other packets without data. Turns are given in
// the order in which they were asked for, and packets without data go first.
type rx struct {
	s *session
	q *queue.Queue
	// turn holds one token; channels serve their receivers in order.
	turn chan struct{}
	wake chan struct{}
	stop chan struct{}

	// What belongs to the turn: the guest's free buffers that have been taken off the queue, oldest first.
	held     [batch]queue.Chain
	room     [batch]int // payload that each takes, in bytes
	use      [batch]int
	first, n int
	vec      iov.Vec
	scratch  [headerSize]byte

	mu             sync.Mutex
	head, tail     *conn // connections with something pending
	refusals       [maxRefusals]refusal
	refused, nRefs int
}

type refusal struct {
	key key
	typ uint16
}

func (r *rx) init(s *session, q *queue.Queue) {
	r.s, r.q = s, q
	r.turn, r.wake, r.stop = make(chan struct{}, 1), make(chan struct{}, 1), make(chan struct{})
	r.turn <- struct{}{}
}

// serve sends what is pending, whenever somebody calls kick.
func (r *rx) serve() error {
	for {
		select {
		case <-r.wake:
		case <-r.stop:
			return queue.ErrStopped
		}
		<-r.turn
		err := r.flush(true)
		r.turn <- struct{}{}
		if err != nil {
			return err
		}
	}
}

// kick makes serve look for what is pending.
func (r *rx) kick() {
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

// answer sends what is pending, at once if nobody has the turn and the guest has buffers.
func (r *rx) answer() error {
	if !r.pending() {
		return nil
	}
	select {
	case <-r.turn:
		err := r.flush(false)
		r.turn <- struct{}{}
		if err != nil {
			return err
		}
		if r.pending() {
			r.kick()
		}
	default:
		r.kick()
	}
	return nil
}

// enqueue puts c on the list of connections with something pending; the caller holds c.mu.
func (r *rx) enqueue(c *conn) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if c.queued {
		return
	}
	c.queued = true
	if r.tail == nil {
		r.head = c
	} else {
		r.tail.next = c
	}
	r.tail = c
}

// listed says whether c still has something pending.
func (r *rx) listed(c *conn) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return c.queued
}

// drop forgets what is pending: nobody is going to send it.
func (r *rx) drop() {
	for {
		r.mu.Lock()
		c := r.unlist()
		r.mu.Unlock()
		if c == nil {
			return
		}
		c.mu.Lock()
		c.pends = 0
		c.unlisted()
		c.mu.Unlock()
	}
}

// unlist takes the first connection with something pending off the list, or returns nil. The caller holds r.mu.
func (r *rx) unlist() *conn {
	c := r.head
	if c == nil {
		return nil
	}
	if r.head = c.next; r.head == nil {
		r.tail = nil
	}
	c.next, c.queued = nil, false
	return c
}

func (r *rx) refuse(k key, typ uint16) {
	r.mu.Lock()
	if r.nRefs < maxRefusals {
		r.refusals[(r.refused+r.nRefs)%maxRefusals] = refusal{k, typ}
		r.nRefs++
	}
	r.mu.Unlock()
}

func (r *rx) pending() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.head != nil || r.nRefs > 0
}

// next takes the next packet without data; it returns false when what was pending has lapsed.
func (r *rx) next(h *header) bool {
	r.mu.Lock()
	c := r.unlist()
	if c == nil {
		defer r.mu.Unlock()
		if r.nRefs == 0 {
			return false
		}
		o := r.refusals[r.refused]
		r.refused, r.nRefs = (r.refused+1)%maxRefusals, r.nRefs-1
		*h = header{srcCID: hostCID, dstCID: uint64(r.s.cid), srcPort: o.key.host, dstPort: o.key.guest, typ: o.typ, op: opRST}
		return true
	}
	r.mu.Unlock()
	return c.control(h)
}

// flush sends all that is pending. It stops early when the guest has no buffers, unless it is to wait for them. The caller
// has the turn.
func (r *rx) flush(wait bool) error {
	sent := false
	for r.pending() {
		have, err := r.hold(1)
		if err != nil {
			return err
		}
		if have == 0 {
			if !wait {
				break
			}
			if err := r.await(); err != nil {
				return err
			}
		}
		var h header
		if r.next(&h) {
			if err := r.emit(&h); err != nil {
				return err
			}
			sent = true
		}
	}
	if sent {
		r.interrupt()
	}
	return nil
}

// hold takes buffers off the queue until they take want bytes, or none is left, or there are batch of them. It returns how
// much they take.
func (r *rx) hold(want int) (int, error) {
	have := 0
	for i := range r.n {
		have += r.room[(r.first+i)%batch]
	}
	for have < want && r.n < batch {
		i := (r.first + r.n) % batch
		ok, err := r.q.Pop(&r.held[i])
		if err != nil {
			return 0, err
		}
		if !ok {
			break
		}
		if r.room[i] = r.held[i].WritableLen() - headerSize; r.room[i] <= 0 {
			// Of no use, not even for a header and one byte.
			if err := r.q.Push(r.held[i].Head, 0); err != nil {
				return 0, err
			}
			continue
		}
		have += r.room[i]
		r.n++
	}
	return have, nil
}

// await waits until at least one buffer is held.
func (r *rx) await() error {
	for {
		have, err := r.hold(1)
		if err != nil || have > 0 {
			return err
		}
		// Buffers of no use may have been given back.
		r.interrupt()
		if err := r.q.Wait(); err != nil {
			return err
		}
		r.s.counts.RxQueueEvents.Inc()
	}
}

// emit gives the oldest held buffer to the guest, with a header and the payload that it already has.
func (r *rx) emit(h *header) error {
	c := &r.held[r.first]
	h.format(c.Writable, &r.scratch)
	r.first, r.n = (r.first+1)%batch, r.n-1
	r.s.counts.RxPackets.Inc()
	r.s.counts.RxBytes.Add(uint64(h.len))
	return r.q.Push(c.Head, headerSize+h.len)
}

func (r *rx) interrupt() {
	if r.q.NeedsInterrupt() {
		r.s.irq.Queue()
	}
}

// fill reads from c's socket into the guest's buffers as much as there is, the guest's credit allows, and the buffers
// take; it waits for its turn and for a buffer. It returns how much that was, and whether there may be more. No bytes
// and no error mean the end of the stream, errNoCredit that the guest takes nothing now.
func (r *rx) fill(c *conn) (n int, more bool, err error) {
	<-r.turn
	defer func() { r.turn <- struct{}{} }()
	if err := r.flush(true); err != nil {
		return 0, false, fatal{err}
	}
	if err := r.await(); err != nil {
		return 0, false, fatal{err}
	}
	credit := c.credit()
	if credit == 0 {
		return 0, false, errNoCredit
	}
	want := min(credit, maxPacket)
	if _, err := r.hold(want); err != nil {
		return 0, false, fatal{err}
	}
	r.vec.Clear()
	used := 0
	for used < r.n && r.vec.Len() < want {
		i := (r.first + used) % batch
		k := r.vec.Append(r.held[i].Writable, headerSize, want-r.vec.Len())
		if k == 0 {
			break // more pieces than one call takes
		}
		r.use[used] = k
		used++
		if k < r.room[i] {
			break
		}
	}
	asked := r.vec.Len()
	if n, err = r.vec.Readv(c.fd); n == 0 || err != nil {
		if err != nil && err != unix.EAGAIN {
			r.s.counts.RxReadFails.Inc()
		}
		return 0, false, err
	}
	var h header
	if !c.deliver(n, &h) {
		return 0, false, unix.ECONNRESET
	}
	for i, left := 0, n; left > 0; i++ {
		h.len = uint32(min(r.use[i], left))
		left -= int(h.len)
		if err := r.emit(&h); err != nil {
			return 0, false, fatal{err}
		}
	}
	r.interrupt()
	return n, n == asked, nil
}
