package service

import (
	"context"
	"fmt"

	"github.com/containerd/errdefs"

	"github.com/fcshim/containerd-shim-fc-v2/pkg/agent/agentpb"
)

// ConfigureNetwork implements agentpb.AgentService.
func (s *Service) ConfigureNetwork(context.Context, *agentpb.ConfigureNetworkRequest) (*agentpb.ConfigureNetworkResponse, error) {
	return nil, fmt.Errorf("network: %w", errdefs.ErrNotImplemented)
}
