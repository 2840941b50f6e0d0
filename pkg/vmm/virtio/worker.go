package virtio

import (
	"errors"
	"fmt"
	"sync"

	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/metrics"
	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/virtio/queue"
)

// Worker serves one queue from one goroutine, one request after another. The zero value is ready; its methods must not be
// called at the same time.
type Worker struct {
	// Events counts the driver's notifications, Empty those that came without a request, and Fails the ends that a driver brought about; nil
	// for nobody. Set them before Start.
	Events, Empty, Fails *metrics.Counter

	q      *queue.Queue
	done   sync.WaitGroup
	ending Ending
}

// Handler carries out one request and returns how many bytes it wrote to c. Its error ends the serving; queue.ErrStopped is
// that of a request abandoned because of a reset.
type Handler func(c *queue.Chain) (written uint32, err error)

// Start serves q, which the driver has enabled unless it is nil, until Stop. name is the device's, for errors.
func (w *Worker) Start(name string, q *queue.Queue, irq Interrupt, handle Handler) error {
	if q == nil {
		return fmt.Errorf("%s: driver left the queue disabled", name)
	}
	if err := w.ending.Err(); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	w.q = q
	w.done.Go(func() {
		if err := w.serve(q, irq, handle); !errors.Is(err, queue.ErrStopped) {
			w.Fails.Inc()
			irq.Broken(fmt.Errorf("%s: %w", name, err))
		}
	})
	return nil
}

// Stop ends the serving and waits for the request in work, up to ResetTimeout: Device.Reset. On an error, which wraps
// ErrBusy, the request goes on.
func (w *Worker) Stop() error {
	if w.q == nil {
		return w.ending.Err()
	}
	w.q.Stop()
	w.q = nil
	return w.ending.Await(w.done.Wait)
}

// Serve works off q from the calling goroutine, one request after another, until q is stopped or broken, or handle fails; the
// error says which. It is for devices with more queues than a Worker has.
func Serve(q *queue.Queue, irq Interrupt, handle Handler) error {
	return new(Worker).serve(q, irq, handle)
}

func (w *Worker) serve(q *queue.Queue, irq Interrupt, handle Handler) error {
	var c queue.Chain
	for {
		if err := q.Wait(); err != nil {
			return err
		}
		w.Events.Inc()
		for n := 0; ; n++ {
			ok, err := q.Pop(&c)
			if err != nil {
				return err
			}
			if !ok {
				if n == 0 {
					w.Empty.Inc()
				}
				break
			}
			written, err := handle(&c)
			if err != nil {
				return err
			}
			if err := q.Push(c.Head, written); err != nil {
				return err
			}
			if q.NeedsInterrupt() {
				irq.Queue()
			}
		}
	}
}
