package shim

import (
	"context"
	"time"

	eventstypes "github.com/containerd/containerd/api/events"
	"github.com/containerd/containerd/api/types/task"
	"github.com/containerd/log"

	"github.com/fcshim/containerd-shim-fc-v2/pkg/agent/agentpb"
)

// oomInterval is the least time between two TaskOOM events of a container, whatever its guest reports: each goes through
// containerd to all of its clients.
const oomInterval = time.Second

// oomState is what is known of OOM kills in a container; the container's lock guards it.
type oomState struct {
	reported uint64    // how many the agent has told of
	counted  uint64    // the highest count that the cgroup has given
	told     time.Time // of the last event
	echoed   bool      // an exit has told of a kill that the agent's events will tell of again
}

// forward passes on what the agent reports unasked, until the VM's end.
func (s *service) forward(ctx context.Context, v *vm) {
	stream, err := v.agent.Events(ctx, &agentpb.EventsRequest{})
	for err == nil {
		var e *agentpb.Event
		if e, err = stream.Recv(); err == nil {
			if c, err := s.container(e.GetOomContainerId()); err == nil {
				c.oomReported(time.Now())
			}
		}
	}
	if v.killed.Load() {
		return
	}
	// On any other end of the VM, the connection's is heard of first.
	select {
	case <-v.process.done:
	case <-v.agent.Done():
	case <-time.After(partingTimeout):
		log.G(ctx).WithError(agentError(err)).Warn("the guest's agent reports no events any more: OOM kills will be told at exit only")
	}
}

// oomReported takes note of an OOM kill that the agent has reported.
func (c *container) oomReported(now time.Time) {
	c.tellOOM(now, func(o *oomState) bool {
		if o.echoed {
			o.echoed = false
			return false
		}
		o.reported++
		return true
	})
}

// oomAtExit takes note of OOM kills that the agent has told of with an exit, if it has not reported them yet.
func (c *container) oomAtExit(now time.Time) {
	c.tellOOM(now, func(o *oomState) bool {
		if o.reported > 0 {
			return false
		}
		o.reported, o.echoed = 1, true
		return true
	})
}

// tellOOM sends an event if note says that there is news, and if it is neither too early nor too late for one.
func (c *container) tellOOM(now time.Time, note func(*oomState) bool) {
	c.init.lifecycle.Lock() // no event may follow init's exit
	defer c.init.lifecycle.Unlock()
	if c.init.state().status == task.Status_STOPPED {
		return
	}
	c.mu.Lock()
	tell := note(&c.oom) && (c.oom.told.IsZero() || now.Sub(c.oom.told) >= oomInterval)
	if tell {
		c.oom.told = now
	}
	c.mu.Unlock()
	if tell {
		c.events.send(&eventstypes.TaskOOM{ContainerID: c.id})
	}
}

// mostOOMKills takes a count that the guest gives now, and returns the highest known: the VM may soon be gone.
func (c *container) mostOOMKills(n uint64) uint64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.oom.counted = max(c.oom.counted, n)
	return max(c.oom.counted, c.oom.reported)
}
