package shim

import (
	"context"
	"fmt"

	"github.com/containerd/cgroups/v3/cgroup2/stats"
	"github.com/containerd/errdefs"
	"github.com/containerd/typeurl/v2"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/fcshim/containerd-shim-fc-v2/pkg/agent/agentpb"
)

// stats asks the agent for the cgroup's metrics and encodes them anew, so that containerd reads no bytes of the guest's
// making. A VM that is gone still has its OOM kills to tell.
func (c *container) stats(ctx context.Context) (*anypb.Any, error) {
	m := &stats.Metrics{}
	resp, err := ask(ctx, "Stats", c.vm.agent.Stats, &agentpb.StatsRequest{ContainerId: c.id})
	switch {
	case err == nil:
		if err := proto.Unmarshal(resp.GetMetrics(), m); err != nil {
			return nil, fmt.Errorf("guest agent, Stats: %w: %w", err, errdefs.ErrUnavailable)
		}
	case !c.vm.dead():
		return nil, err
	}
	if kills := c.mostOOMKills(m.GetMemoryEvents().GetOomKill()); kills > m.GetMemoryEvents().GetOomKill() {
		if m.MemoryEvents == nil {
			m.MemoryEvents = &stats.MemoryEvents{}
		}
		m.MemoryEvents.OomKill = kills
	}
	return typeurl.MarshalAnyToProto(m)
}
