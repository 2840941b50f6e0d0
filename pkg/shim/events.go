package shim

import (
	"context"

	"github.com/containerd/containerd/v2/core/runtime"
	"github.com/containerd/containerd/v2/pkg/shim"
	"github.com/containerd/log"
)

// eventQueue publishes events one after the other, in the order in which they were sent.
type eventQueue struct {
	events chan any
	stop   chan struct{}
	done   chan struct{}
}

func newEventQueue(ctx context.Context, publisher shim.Publisher) *eventQueue {
	q := &eventQueue{events: make(chan any, 128), stop: make(chan struct{}), done: make(chan struct{})}
	go q.forward(context.WithoutCancel(ctx), publisher)
	return q
}

// send queues an event; after close it is dropped.
func (q *eventQueue) send(event any) {
	select {
	case q.events <- event:
	case <-q.stop:
	}
}

func (q *eventQueue) forward(ctx context.Context, publisher shim.Publisher) {
	defer close(q.done)
	defer publisher.Close()
	publish := func(e any) {
		if err := publisher.Publish(ctx, runtime.GetTopic(e), e); err != nil {
			log.G(ctx).WithError(err).WithField("topic", runtime.GetTopic(e)).Warn("cannot publish an event yet")
		}
	}
	for {
		select {
		case e := <-q.events:
			publish(e)
		case <-q.stop:
			for {
				select {
				case e := <-q.events:
					publish(e)
				default:
					return
				}
			}
		}
	}
}

// close has what is queued published and ends the queue. Call it once.
func (q *eventQueue) close(ctx context.Context) error {
	close(q.stop)
	select {
	case <-q.done:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
