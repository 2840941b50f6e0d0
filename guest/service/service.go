// Package service is the agent's service: it creates, runs, watches and removes containers, through libcontainer and in this
// very process, on the calls of the shim.
//
// The shim is trusted, the containers are not. A call's errors are of errdefs classes, which Interceptor turns into gRPC
// statuses at the edge, and those of a failed start carry libcontainer's own text, which is what runc's users know.
package service

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"github.com/containerd/log"
	"github.com/containerd/ttrpc"
	"golang.org/x/sys/unix"

	"github.com/fcshim/containerd-shim-fc-v2/guest/cgroup"
	"github.com/fcshim/containerd-shim-fc-v2/guest/clock"
	"github.com/fcshim/containerd-shim-fc-v2/guest/link"
	"github.com/fcshim/containerd-shim-fc-v2/guest/reaper"
	"github.com/fcshim/containerd-shim-fc-v2/pkg/agent"
	"github.com/fcshim/containerd-shim-fc-v2/pkg/agent/agentpb"
)

// Config is what a Service works with. All of it is needed but for what says otherwise.
type Config struct {
	Version string
	// Started is CLOCK_BOOTTIME at the start of the agent.
	Started time.Duration
	// Began is the same moment, to measure from.
	Began time.Time
	// StateDir is libcontainer's; it need not exist.
	StateDir string
	Dial     link.Dialer
	// Clock keeps the guest's time; nil where it cannot.
	Clock  *clock.Keeper
	Reaper *reaper.Reaper
	// WriteBack is called, once all containers have ended, to write what is dirty, within agent.SyncTimeout.
	WriteBack func() error
}

// Service implements agentpb.AgentService.
type Service struct {
	Config
	events *events
	oom    *cgroup.Watcher
	setup  time.Duration // from Began to Serve

	mu         sync.Mutex
	containers map[string]*container
}

// New makes a service; Run does its part in the background.
func New(c Config) (*Service, error) {
	oom, err := cgroup.NewWatcher()
	if err != nil {
		return nil, err
	}
	return &Service{Config: c, events: newEvents(), oom: oom, containers: map[string]*container{}}, nil
}

// Run watches for OOM kills until Close.
func (s *Service) Run() error { return s.oom.Run() }

// Close ends Run; containers stay as they are.
func (s *Service) Close() error { return s.oom.Close() }

// Interceptor turns a call's error into a gRPC status of its errdefs class.
func Interceptor(ctx context.Context, unmarshal ttrpc.Unmarshaler, _ *ttrpc.UnaryServerInfo, method ttrpc.Method) (any, error) {
	resp, err := method(ctx, unmarshal)
	if err != nil {
		return nil, errgrpc.ToGRPC(err)
	}
	return resp, nil
}

// Info implements agentpb.AgentService.
func (s *Service) Info(context.Context, *agentpb.InfoRequest) (*agentpb.InfoResponse, error) {
	var uts unix.Utsname
	if err := unix.Uname(&uts); err != nil {
		return nil, err
	}
	return &agentpb.InfoResponse{
		Version: s.Version, KernelRelease: unix.ByteSliceToString(uts.Release[:]), StartedNs: uint64(s.Started),
	}, nil
}

// Events implements agentpb.AgentService.
func (s *Service) Events(ctx context.Context, _ *agentpb.EventsRequest, stream agentpb.Agent_EventsServer) error {
	return s.events.feed(ctx, stream.Send)
}

// Shutdown implements agentpb.AgentService.
func (s *Service) Shutdown(ctx context.Context, _ *agentpb.ShutdownRequest) (*agentpb.ShutdownResponse, error) {
	s.StopAll(ctx)
	if err := s.WriteBack(); err != nil {
		return nil, err
	}
	return &agentpb.ShutdownResponse{}, nil
}

// StopAll ends every container, by TERM and, agent.StopTimeout later, by KILL. It gives up on what survives that, and says so in the log.
func (s *Service) StopAll(ctx context.Context) {
	s.mu.Lock()
	var inits []*process
	for _, c := range s.containers {
		if c.init != nil {
			inits = append(inits, c.init)
		}
	}
	s.mu.Unlock()
	for _, sig := range []unix.Signal{unix.SIGTERM, unix.SIGKILL} {
		ctx, cancel := context.WithTimeout(ctx, agent.StopTimeout)
		for _, p := range inits {
			_ = p.signal(sig) // has ended, most likely; if not, the wait tells
		}
		inits = waitAll(ctx, inits)
		cancel()
	}
	for _, p := range inits {
		log.G(ctx).WithField("container", p.container.id).Errorf("still running %v after SIGKILL", agent.StopTimeout)
	}
}

// waitAll waits for processes until ctx ends, and returns those that are left.
func waitAll(ctx context.Context, ps []*process) (left []*process) {
	for _, p := range ps {
		select {
		case <-p.ended:
		case <-ctx.Done():
			left = append(left, p)
		}
	}
	return left
}

// get finds a container.
func (s *Service) get(id string) (*container, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	c := s.containers[id]
	if c == nil || c.init == nil { // being created
		return nil, fmt.Errorf("container %q: %w", id, errdefs.ErrNotFound)
	}
	return c, nil
}

// find finds a process; an empty exec id is the init process.
func (s *Service) find(id, execID string) (*process, error) {
	c, err := s.get(id)
	if err != nil {
		return nil, err
	}
	if execID == "" {
		return c.init, nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	p := c.execs[execID]
	if p == nil {
		return nil, fmt.Errorf("exec %q in container %q: %w", execID, id, errdefs.ErrNotFound)
	}
	return p, nil
}
