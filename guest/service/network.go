package service

import (
	"context"

	"github.com/fcshim/containerd-shim-fc-v2/guest/network"
	"github.com/fcshim/containerd-shim-fc-v2/pkg/agent/agentpb"
)

// ConfigureNetwork implements agentpb.AgentService.
func (s *Service) ConfigureNetwork(_ context.Context, r *agentpb.ConfigureNetworkRequest) (*agentpb.ConfigureNetworkResponse, error) {
	return &agentpb.ConfigureNetworkResponse{}, network.Configure(r)
}
