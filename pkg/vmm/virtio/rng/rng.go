// Package rng is a virtio entropy device (virtio 1.2 §5.4) fed by the host's random number generator.
package rng

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/containerd/log"
	"golang.org/x/sys/unix"

	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/virtio"
	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/virtio/queue"
)

const (
	// MaxRequest bounds the bytes that one request gets; the driver sees how many there are.
	MaxRequest = 64 << 10
	// QueueSize is the size of the only virtqueue.
	QueueSize = 256
)

// Device is an entropy device.
type Device struct {
	q    *queue.Queue
	done sync.WaitGroup
}

// New makes the device.
func New() *Device { return new(Device) }

// Type is the device's type number.
func (*Device) Type() uint32 { return virtio.TypeEntropy }

// Features: there are none.
func (*Device) Features() uint64 { return 0 }

// QueueSizes is one queue of QueueSize.
func (*Device) QueueSizes() []uint16 { return []uint16{QueueSize} }

// ReadConfig reads zeros: the device has no configuration.
func (*Device) ReadConfig(_ uint64, p []byte) { clear(p) }

// WriteConfig does nothing.
func (*Device) WriteConfig(uint64, []byte) {}

// Activate serves the queue from one goroutine.
func (d *Device) Activate(a virtio.Activation) error {
	q := a.Queues[0]
	if q == nil {
		return errors.New("entropy device without a queue")
	}
	d.q = q
	d.done.Go(func() {
		if err := serve(q, a.Interrupt); !errors.Is(err, queue.ErrStopped) {
			log.G(context.Background()).WithError(err).Warn("entropy device stops serving its queue")
		}
	})
	return nil
}

// Reset waits for the request in work, at most MaxRequest bytes.
func (d *Device) Reset() {
	if d.q != nil {
		d.q.Stop()
		d.done.Wait()
		d.q = nil
	}
}

func serve(q *queue.Queue, irq virtio.Interrupt) error {
	var c queue.Chain
	for {
		if err := q.Wait(); err != nil {
			return err
		}
		for {
			ok, err := q.Pop(&c)
			if err != nil {
				return err
			}
			if !ok {
				break
			}
			n, err := fill(c.Writable)
			if err != nil {
				return err
			}
			if err := q.Push(c.Head, uint32(n)); err != nil {
				return err
			}
			if q.NeedsInterrupt() {
				irq.Queue()
			}
		}
	}
}

// fill puts up to MaxRequest random bytes into bufs. The host's generator is seeded long before a VM starts, so this
// does not block.
func fill(bufs [][]byte) (int, error) {
	n := 0
	for _, b := range bufs {
		for b = b[:min(len(b), MaxRequest-n)]; len(b) > 0; {
			m, err := unix.Getrandom(b, 0)
			if err == unix.EINTR {
				continue
			}
			if err != nil {
				return n, fmt.Errorf("getrandom: %w", err)
			}
			n, b = n+m, b[m:]
		}
	}
	return n, nil
}
