package service

import (
	"context"
	"time"

	"github.com/fcshim/containerd-shim-fc-v2/guest/clock"
	"github.com/fcshim/containerd-shim-fc-v2/pkg/agent/agentpb"
)

// Clock implements agentpb.AgentService.
func (s *Service) Clock(_ context.Context, r *agentpb.ClockRequest) (*agentpb.ClockResponse, error) {
	if err := clock.Adjust(time.Duration(r.AdjustNs)); err != nil {
		return nil, err
	}
	return &agentpb.ClockResponse{NowNs: time.Now().UnixNano(), SelfKept: s.Config.Clock != nil}, nil
}
