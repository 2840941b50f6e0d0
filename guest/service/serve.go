package service

import (
	"context"
	"errors"
	"fmt"
	"net"
	"time"

	"github.com/containerd/ttrpc"

	"github.com/fcshim/containerd-shim-fc-v2/guest/link"
	"github.com/fcshim/containerd-shim-fc-v2/pkg/agent/agentpb"
)

// Serve serves calls on the control connection until it ends, or ctx does.
func (s *Service) Serve(ctx context.Context, conn net.Conn) error {
	s.setup = time.Since(s.Began)
	server, err := ttrpc.NewServer(ttrpc.WithUnaryServerInterceptor(Interceptor))
	if err != nil {
		return fmt.Errorf("make the ttrpc server: %w", err)
	}
	agentpb.RegisterAgentService(server, s)
	stop := context.AfterFunc(ctx, func() { server.Close() })
	defer stop()
	if err := server.Serve(ctx, link.NewOnce(conn)); !errors.Is(err, net.ErrClosed) && !errors.Is(err, ttrpc.ErrServerClosed) {
		return fmt.Errorf("serve the shim: %w", err)
	}
	return nil
}
