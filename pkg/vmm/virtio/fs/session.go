package fs

import (
	"errors"
	"sync"
	"sync/atomic"
	"time"

	"github.com/containerd/log"

	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/virtio"
	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/virtio/fs/passthrough"
	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/virtio/queue"
)

// resetTimeout bounds how long a reset waits for file data on its way, which a host file system that hangs can hold up.
const resetTimeout = 10 * time.Second

// session is the device between an Activate and the next Reset.
type session struct {
	tag string
	srv *passthrough.Server
	irq virtio.Interrupt

	// gate is held for reading by who touches guest memory, for a moment or for one read or write of a file; over says that
	// nobody may any more.
	gate sync.RWMutex
	over bool

	lanes []*lane
}

func newSession(tag string, srv *passthrough.Server, irq virtio.Interrupt) *session {
	return &session{tag: tag, srv: srv, irq: irq}
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

// start serves a queue with up to workers goroutines, the first of them at once.
func (s *session) start(q *queue.Queue, workers int) {
	l := &lane{s: s, q: q, max: workers, n: 1}
	s.lanes = append(s.lanes, l)
	go l.work()
}

// stop ends the session: it returns when no goroutine touches guest memory, or logs after resetTimeout that one still does.
func (s *session) stop() {
	for _, l := range s.lanes {
		l.q.Stop()
		l.settle()
	}
	done := make(chan struct{})
	go func() {
		s.gate.Lock()
		s.over = true
		s.gate.Unlock()
		close(done)
	}()
	timer := time.NewTimer(resetTimeout)
	defer timer.Stop()
	select {
	case <-done:
	case <-timer.C:
		log.L.WithFields(log.Fields{"tag": s.tag, "timeout": resetTimeout}).
			Error("virtio-fs: reset goes on although the host's file system has not finished a read or write of guest memory")
	}
}

// lane is a queue and its workers. They take turns to lead: the leader waits for a request, gives the lead away and
// serves it, so that no request waits for another and none is handed over.
type lane struct {
	s   *session
	q   *queue.Queue
	max int

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
			if errors.Is(err, queue.ErrBroken) {
				l.broken(err)
			}
			return false
		}
		if !ok {
			continue
		}
		if l.idle.Add(-1) == 0 && l.n < l.max {
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

// broken logs once that a queue is not served any more.
func (l *lane) broken(err error) {
	if l.max > 0 {
		l.max = 0
		log.L.WithError(err).WithField("tag", l.s.tag).Warn("virtio-fs: queue given up")
	}
}

// serve answers one request. Only reads and writes of files run with guest memory in their hands.
func (l *lane) serve(c *queue.Chain, r *passthrough.Request) {
	s := l.s
	if !s.enter() {
		return
	}
	n := 0
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
	}
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
