package net

import (
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/virtio"
	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/virtio/queue"
)

// Parts of Device.scratch: the header of a frame from the guest; then what a frame for the guest has more than the buffers
// that it is read into. One byte more tells a frame that is too large from one that just fits.
const (
	spillAt     = 64
	scratchSize = spillAt + headerSize + MaxFrame + 1
)

// batch is how many frames are moved before the driver is told, when there are ever more of them.
const batch = 64

// session is the device between an activation and the reset that ends it.
type session struct {
	d    *Device
	irq  virtio.Interrupt
	rx   rx
	tx   tx
	done sync.WaitGroup
}

func newSession(d *Device, a virtio.Activation) *session {
	s := &session{d: d, irq: a.Interrupt}
	s.rx.init(s, a.Queues[rxQueue], a.Features)
	s.tx.init(s, a.Queues[txQueue], a.Features)
	return s
}

func (s *session) start() {
	s.done.Go(func() { s.end("rx", s.rx.serve()) })
	s.done.Go(func() { s.end("tx", s.tx.serve()) })
}

// end is the end of one direction: the other goes on.
func (s *session) end(name string, err error) {
	if errors.Is(err, queue.ErrStopped) || errors.Is(err, os.ErrDeadlineExceeded) {
		return
	}
	s.d.counts.EventFails.Inc()
	s.irq.Broken(fmt.Errorf("network interface %q: %s: %w", s.d.id, name, err))
}

// lost says that the TAP has gone. The driver is told, and the interface stays dead: the name may be somebody else's by now.
func (s *session) lost(err error) {
	if s.d.dead.Swap(true) {
		return
	}
	s.irq.Config()
	s.irq.Broken(fmt.Errorf("network interface %q: the TAP has gone: %w", s.d.id, err))
}

// stop returns when nothing touches guest memory.
func (s *session) stop() {
	s.rx.q.Stop()
	s.tx.q.Stop()
	// A deadline in the past wakes whoever waits for the TAP; the only failure is a closed file, which wakes them too.
	_ = s.d.file.SetDeadline(time.Unix(1, 0))
	s.done.Wait()
}
