package service

import (
	"context"
	"fmt"

	"github.com/containerd/errdefs"

	"github.com/fcshim/containerd-shim-fc-v2/pkg/agent/agentpb"
)

// Update implements agentpb.AgentService.
func (s *Service) Update(context.Context, *agentpb.UpdateRequest) (*agentpb.UpdateResponse, error) {
	return nil, fmt.Errorf("update: %w", errdefs.ErrNotImplemented)
}
