package service

import (
	"context"
	"sync"

	"github.com/fcshim/containerd-shim-fc-v2/pkg/agent/agentpb"
)

// events carries what happened to whoever listens. It keeps no queue: for each listener, the set of containers that have had
// an OOM kill since it was last told, which is as large as the number of containers at most.
type events struct {
	mu        sync.Mutex
	listeners map[*listener]struct{}
}

type listener struct {
	oom  map[string]struct{}
	wake chan struct{}
}

func newEvents() *events { return &events{listeners: map[*listener]struct{}{}} }

// oom tells every listener of an OOM kill in a container.
func (e *events) oom(id string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for l := range e.listeners {
		l.oom[id] = struct{}{}
		select {
		case l.wake <- struct{}{}:
		default:
		}
	}
}

// feed sends what happens from now on, until ctx ends or send fails.
func (e *events) feed(ctx context.Context, send func(*agentpb.Event) error) error {
	l := &listener{oom: map[string]struct{}{}, wake: make(chan struct{}, 1)}
	e.mu.Lock()
	e.listeners[l] = struct{}{}
	e.mu.Unlock()
	defer func() {
		e.mu.Lock()
		delete(e.listeners, l)
		e.mu.Unlock()
	}()
	for {
		select {
		case <-l.wake:
		case <-ctx.Done():
			return ctx.Err()
		}
		e.mu.Lock()
		ids := l.oom
		l.oom = map[string]struct{}{}
		e.mu.Unlock()
		for id := range ids {
			if err := send(&agentpb.Event{OomContainerId: id}); err != nil {
				return err
			}
		}
	}
}
