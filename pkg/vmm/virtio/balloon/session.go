package balloon

import (
	"errors"
	"fmt"
	"sync"

	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/memory"
	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/virtio"
	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/virtio/queue"
)

// session is the device between an activation and the reset that ends it.
type session struct {
	d    *Device
	mem  *memory.Memory
	irq  virtio.Interrupt
	done sync.WaitGroup

	// The queues; stats, hint and report are nil without their features. hint is served by serveHints, the others by goroutines.
	inflate, deflate, stats, hint, report *queue.Queue
	hintIndex                             int // of hint among the driver's queues

	list  pageList    // of the goroutine that serves inflate
	hints queue.Chain // of whoever serves hint
}

func newSession(d *Device, a virtio.Activation) (*session, error) {
	s := &session{d: d, mem: a.Memory, irq: a.Interrupt}
	// The queues of features that were not accepted do not exist, and drivers do not agree whether those behind them move up, as
	// in Linux, or keep their number (virtio 1.2 §5.5.2). Their order is the same, and a driver enables what it uses.
	roles := []**queue.Queue{&s.inflate, &s.deflate}
	for _, f := range []struct {
		bit  uint64
		role **queue.Queue
	}{{featureStats, &s.stats}, {featureHinting, &s.hint}, {featureReporting, &s.report}} {
		if a.Features&f.bit != 0 {
			roles = append(roles, f.role)
		}
	}
	n := 0
	for i, q := range a.Queues {
		if q == nil {
			continue
		}
		if n < len(roles) {
			*roles[n] = q
			if roles[n] == &s.hint {
				s.hintIndex = i
			}
		}
		n++
	}
	if n != len(roles) {
		return nil, fmt.Errorf("driver enabled %d queues, want %d for the features %#x", n, len(roles), a.Features)
	}
	return s, nil
}

func (s *session) start() {
	s.serve("inflate", s.inflate, s.takePages)
	s.serve("deflate", s.deflate, s.returnPages)
	s.serve("reporting", s.report, s.takeReport)
	if s.hint != nil {
		s.serveHints() // has the driver notify it of each
	}
	if s.stats != nil {
		s.done.Go(func() { s.end("statistics", s.d.statistics.serve(s.stats, s.irq, &s.d.counts.StatsUpdates)) })
	}
}

// serve has a goroutine serve a queue, which may be nil.
func (s *session) serve(name string, q *queue.Queue, handle virtio.Handler) {
	if q != nil {
		s.done.Go(func() { s.end(name, virtio.Serve(q, s.irq, handle)) })
	}
}

// end is the end of one queue: the others go on.
func (s *session) end(name string, err error) {
	if !errors.Is(err, queue.ErrStopped) {
		s.d.counts.EventFails.Inc()
		s.irq.Broken(fmt.Errorf("balloon: %s: %w", name, err))
	}
}

// stop returns when nothing touches guest memory.
func (s *session) stop() {
	for _, q := range []*queue.Queue{s.inflate, s.deflate, s.stats, s.hint, s.report} {
		if q != nil {
			q.Stop()
		}
	}
	s.done.Wait()
}

// takePages gives the pages of a list back to the host.
func (s *session) takePages(c *queue.Chain) (uint32, error) {
	s.d.counts.Inflate.Inc()
	return 0, s.list.discard(c.Readable, s.inflate, func(addr, n uint64) {
		s.d.gave(s.mem.Discard(addr, n), int(n), nil, &s.d.counts.EventFails)
	})
}

// returnPages has nothing to do: a page is there again when the guest touches it.
func (s *session) returnPages(*queue.Chain) (uint32, error) {
	s.d.counts.Deflate.Inc()
	return 0, nil
}

// takeReport gives the pages that a chain's writable buffers are back to the host; the guest leaves them alone until it has the
// chain back (virtio 1.2 §5.5.6.7).
func (s *session) takeReport(c *queue.Chain) (uint32, error) {
	s.d.counts.FreePageReports.Inc()
	return 0, eachPiece(c.Writable, s.report, func(p []byte) {
		s.d.gave(s.mem.DiscardSlice(p), len(p), &s.d.counts.FreePageReportFreed, &s.d.counts.FreePageReportFails)
	})
}
