package fs

import (
	"errors"
	"fmt"
	"sync"
	"sync/atomic"

	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/metrics"
	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/virtio"
	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/virtio/fs/passthrough"
	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/virtio/queue"
)

// session is the device between an Activate and the next Reset.
type session struct {
	tag string
	srv *passthrough.Server
	irq virtio.Interrupt
	// counts is the device's; set before start.
	counts *metrics.Filesystem

	// gate is held for reading by who touches guest memory, for a moment or for one read or write of a file; over says that
	// nobody may any more.
	gate sync.RWMutex
	over bool

	quit  chan struct{}
	lanes []*lane
}

func newSession(tag string, srv *passthrough.Server, irq virtio.Interrupt) *session {
	return &session{tag: tag, srv: srv, irq: irq, quit: make(chan struct{})}
}

// enter asks for guest memory; on true, leave it soon.
func (s *session) enter() bool {
	s.gate.RLock()
	if s.over {
		s.gate.RUnlock()
		return false
	}
	return true
}

func (s *session) leave() { s.gate.RUnlock() }

// start serves a queue with as many goroutines as there are slots, the first of them at once.
func (s *session) start(q *queue.Queue, slots chan struct{}) {
	l := &lane{s: s, q: q, slots: slots, n: 1}
	s.lanes = append(s.lanes, l)
	go l.work()
}

// stop ends the session: it returns when no goroutine touches guest memory.
func (s *session) stop() {
	close(s.quit)
	for _, l := range s.lanes {
		l.q.Stop()
		l.settle()
	}
	s.gate.Lock()
	defer s.gate.Unlock()
	s.over = true
}

// lane is a queue and its workers. They take turns to lead: the leader waits for a request, gives the lead away and
// serves it, so that no request waits for another and none is handed over.
type lane struct {
	s *session
	q *queue.Queue
	// slots are the device's: what hangs in the host since before a reset counts too.
	slots chan struct{}

	lead sync.Mutex   // the queue's available side
	n    int          // workers; guarded by lead
	idle atomic.Int32 // workers that wait for the lead or have it

	used sync.Mutex // the queue's used side
}

func (l *lane) work() {
	var (
		c queue.Chain
		r passthrough.Request
	)
	for l.take(&c) {
		l.serve(&c, &r)
	}
}

// take leads until there is a request. It returns false when the queue is at its end.
func (l *lane) take(c *queue.Chain) bool {
	l.idle.Add(1)
	l.lead.Lock()
	defer l.lead.Unlock()
	for {
		ok, err := l.q.Pop(c)
		if err == nil && !ok {
			err = l.q.Wait()
		}
		if err != nil {
			if !errors.Is(err, queue.ErrStopped) {
				l.s.counts.EventFails.Inc()
				l.s.irq.Broken(fmt.Errorf("filesystem %s: %w", l.s.tag, err))
			}
			return false
		}
		if !ok {
			continue
		}
		if l.idle.Add(-1) == 0 && l.n < cap(l.slots) {
			l.n++
			go l.work()
		}
		return true
	}
}

// settle waits for the leader of a stopped queue, which is awake, to leave it. Whoever comes next only learns that the queue
// has stopped.
func (l *lane) settle() {
	l.lead.Lock()
	defer l.lead.Unlock()
}

// serve answers one request. Only reads and writes of files run with guest memory in their hands.
func (l *lane) serve(c *queue.Chain, r *passthrough.Request) {
	s := l.s
	select {
	case l.slots <- struct{}{}:
	case <-s.quit:
		return
	}
	defer func() { <-l.slots }()
	if !s.enter() {
		return
	}
	n := 0
	s.counts.Requests.Inc()
	s.counts.TxBytes.Add(uint64(c.ReadableLen()))
	if r.Load(c.Readable, c.Writable) {
		if r.IsDirect() {
			n = s.srv.Direct(r)
		} else {
			s.leave()
			s.srv.Call(r)
			if !s.enter() {
				return
			}
			n = r.Store()
		}
	} else {
		s.counts.InvalidReqs.Inc()
	}
	s.counts.RxBytes.Add(uint64(n))
	l.push(c.Head, uint32(n))
	s.leave()
}

func (l *lane) push(head uint16, written uint32) {
	l.used.Lock()
	defer l.used.Unlock()
	// It fails for a head that Pop has not given.
	if err := l.q.Push(head, written); err == nil && l.q.NeedsInterrupt() {
		l.s.irq.Queue()
	}
}
