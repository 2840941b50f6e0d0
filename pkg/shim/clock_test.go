package shim

import (
	"context"
	"math"
	"testing"
	"time"

	"github.com/fcshim/containerd-shim-fc-v2/pkg/agent"
	"github.com/fcshim/containerd-shim-fc-v2/pkg/agent/agentpb"
)

// clockAgent is a guest whose clock is ahead.
type clockAgent struct {
	agentpb.AgentClient
	ahead time.Duration
	self  bool
	moved int
}

func (a *clockAgent) Clock(_ context.Context, r *agentpb.ClockRequest) (*agentpb.ClockResponse, error) {
	if r.AdjustNs != 0 {
		a.moved++
		a.ahead += time.Duration(r.AdjustNs)
	}
	return &agentpb.ClockResponse{NowNs: time.Now().Add(a.ahead).UnixNano(), SelfKept: a.self}, nil
}

func TestSyncClock(t *testing.T) {
	for _, ahead := range []time.Duration{0, time.Hour, -24 * 365 * 30 * time.Hour, 3 * time.Second} {
		a := &clockAgent{ahead: ahead}
		v := &vm{agent: &agent.Client{AgentClient: a}}
		if self, err := v.syncClock(t.Context()); self || err != nil {
			t.Fatal(self, err)
		}
		// What is left is the time that a call took.
		if a.ahead.Abs() > time.Second || ahead != 0 && a.moved != 1 {
			t.Errorf("%v ahead: %v is left after %d calls", ahead, a.ahead, a.moved)
		}
	}
	a := &clockAgent{ahead: time.Hour, self: true}
	v := &vm{agent: &agent.Client{AgentClient: a}}
	if self, err := v.syncClock(t.Context()); !self || err != nil || a.moved != 0 {
		t.Errorf("a guest that keeps its own time: %v, %v, moved %d times", self, err, a.moved)
	}
}

func TestClockOffset(t *testing.T) {
	sent := time.Unix(1000, 0)
	if got := clockOffset(sent, 2*time.Second, 1003e9); got != 2*time.Second {
		t.Error(got)
	}
	for _, lie := range []int64{math.MinInt64, math.MaxInt64} {
		clockOffset(sent, time.Second, lie)
	}
}
