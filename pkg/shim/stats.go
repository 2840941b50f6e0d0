package shim

import (
	"context"
	"fmt"
	"time"

	"github.com/containerd/cgroups/v3/cgroup2/stats"
	"github.com/containerd/containerd/api/types/task"
	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"github.com/containerd/typeurl/v2"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/fcshim/containerd-shim-fc-v2/pkg/agent/agentpb"
)

const (
	// lastStatsTimeout bounds the agent's answer at an exit, which the exit's event waits for.
	lastStatsTimeout = 5 * time.Second
	// maxMetricsBytes bounds the metrics that are kept, and sent to containerd; a machine with many disks needs a few KiB.
	maxMetricsBytes = 64 << 10
)

// metricsState is what the guest has said of a container's cgroup; the container's lock guards it.
type metricsState struct {
	last  *stats.Metrics // never changed, only replaced
	final bool           // it was said after init's end
}

// stats are the cgroup's metrics, encoded for containerd. Once init has ended they are what they were then, or, if the guest
// could not be asked any more because the VM had died, what it last said; the highest number of OOM kills known is always there.
func (c *container) stats(ctx context.Context) (*anypb.Any, error) {
	ended := c.init.state().status == task.Status_STOPPED
	c.mu.Lock()
	m, final := c.metrics.last, c.metrics.final
	c.mu.Unlock()
	if !final {
		now, err := c.askStats(ctx, agentTimeout, false)
		switch {
		case err == nil:
			m = now
		case !ended && !c.vm.dead():
			return nil, err
		}
	}
	if m == nil {
		m = &stats.Metrics{}
		fill(m)
	}
	if kills := c.mostOOMKills(m.MemoryEvents.OomKill); kills > m.MemoryEvents.OomKill {
		m = proto.CloneOf(m)
		m.MemoryEvents.OomKill = kills
	}
	return typeurl.MarshalAnyToProto(m)
}

// keepStats asks for the metrics that stay when init has ended, while its guest still lives.
func (c *container) keepStats(ctx context.Context) {
	if _, err := c.askStats(ctx, lastStatsTimeout, true); err != nil {
		log.G(ctx).WithError(err).WithField("container", c.id).Warn("the metrics of an ended container are older than its end")
	}
}

// askStats gets metrics from the agent and keeps them. They are decoded, so that containerd reads no bytes of the guest's
// making. Final ones are not replaced any more.
func (c *container) askStats(ctx context.Context, timeout time.Duration, final bool) (*stats.Metrics, error) {
	resp, err := askWithin(ctx, timeout, "Stats", c.vm.agent.Stats, &agentpb.StatsRequest{ContainerId: c.id})
	if err != nil {
		return nil, err
	}
	if n := len(resp.GetMetrics()); n > maxMetricsBytes {
		return nil, fmt.Errorf("guest agent, Stats: %d bytes of metrics, at most %d are taken: %w", n, maxMetricsBytes, errdefs.ErrUnavailable)
	}
	m := &stats.Metrics{}
	// A field that is unknown here would go through to containerd.
	if err := (proto.UnmarshalOptions{DiscardUnknown: true}).Unmarshal(resp.GetMetrics(), m); err != nil {
		return nil, fmt.Errorf("guest agent, Stats: %w: %w", err, errdefs.ErrUnavailable)
	}
	fill(m)
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.metrics.final {
		c.metrics = metricsState{m, final}
	}
	return m, nil
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
	if m.Io == nil {
		m.Io = &stats.IOStat{}
	}
}
