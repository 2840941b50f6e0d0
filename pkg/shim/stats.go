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
	// A field that is unknown here would go through to containerd.
	decode := proto.UnmarshalOptions{DiscardUnknown: true}
	resp, err := ask(ctx, "Stats", c.vm.agent.Stats, &agentpb.StatsRequest{ContainerId: c.id})
	switch {
	case err == nil:
		if err := decode.Unmarshal(resp.GetMetrics(), m); err != nil {
			return nil, fmt.Errorf("guest agent, Stats: %w: %w", err, errdefs.ErrUnavailable)
		}
	case !c.vm.dead():
		return nil, err
	}
	fill(m)
	if kills := c.mostOOMKills(m.GetMemoryEvents().GetOomKill()); kills > m.GetMemoryEvents().GetOomKill() {
		m.MemoryEvents.OomKill = kills
	}
	return typeurl.MarshalAnyToProto(m)
}

// fill adds the messages that are missing: clients read them without a look whether they are there.
func fill(m *stats.Metrics) {
	if m.Pids == nil {
		m.Pids = &stats.PidsStat{}
	}
	if m.CPU == nil {
		m.CPU = &stats.CPUStat{}
	}
	if m.Memory == nil {
		m.Memory = &stats.MemoryStat{}
	}
	if m.MemoryEvents == nil {
		m.MemoryEvents = &stats.MemoryEvents{}
	}
}
