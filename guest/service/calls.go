package service

import (
	"context"
	"fmt"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"github.com/opencontainers/runc/libcontainer"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/fcshim/containerd-shim-fc-v2/guest/cgroup"
	"github.com/fcshim/containerd-shim-fc-v2/guest/ocispec"
	"github.com/fcshim/containerd-shim-fc-v2/guest/stdio"
	"github.com/fcshim/containerd-shim-fc-v2/pkg/agent/agentpb"
)

// Exec implements agentpb.AgentService.
func (s *Service) Exec(ctx context.Context, r *agentpb.ExecRequest) (*agentpb.ExecResponse, error) {
	c, err := s.get(r.ContainerId)
	if err != nil {
		return nil, err
	}
	if r.ExecId == "" {
		return nil, fmt.Errorf("exec_id must not be empty: %w", errdefs.ErrInvalidArgument)
	}
	spec, err := ocispec.ParseProcess(r.Process)
	if err != nil {
		return nil, err
	}
	lib, err := ocispec.Process(spec, false)
	if err != nil {
		return nil, err
	}
	p := &process{container: c, execID: r.ExecId, lib: lib, ended: make(chan struct{})}
	if p.io, err = stdio.Open(ctx, s.Dial, r.Streams); err != nil {
		return nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.execs[r.ExecId] != nil {
		p.io.Close()
		return nil, fmt.Errorf("%s: %w", p, errdefs.ErrAlreadyExists)
	}
	c.execs[r.ExecId] = p
	return &agentpb.ExecResponse{}, nil
}

// Start implements agentpb.AgentService.
func (s *Service) Start(_ context.Context, r *agentpb.StartRequest) (*agentpb.StartResponse, error) {
	p, err := s.find(r.ContainerId, r.ExecId)
	if err != nil {
		return nil, err
	}
	p.start.Lock()
	defer p.start.Unlock()
	if p.hasEnded() {
		return nil, fmt.Errorf("%s has ended, it cannot be started: %w", p, errdefs.ErrFailedPrecondition)
	}
	if p.execID == "" {
		if err := p.container.lib.Exec(); err != nil {
			return nil, classify(err)
		}
	} else if err := s.startExec(p); err != nil {
		return nil, err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	return &agentpb.StartResponse{Pid: uint32(p.pid)}, nil
}

func (s *Service) startExec(p *process) error {
	if _, err := p.running(); err == nil {
		return fmt.Errorf("%s is running already: %w", p, errdefs.ErrFailedPrecondition)
	}
	status, err := p.container.status()
	if err != nil {
		return err
	}
	if status != libcontainer.Running && status != libcontainer.Created {
		return fmt.Errorf("cannot exec in a %s container: %w", status, errdefs.ErrFailedPrecondition)
	}
	if err := p.launch(s.Reaper); err != nil {
		if _, rerr := p.running(); rerr == nil {
			return err // it runs without its terminal and has been killed; the watch sees it off
		}
		p.fail()
		return classify(err)
	}
	return nil
}

// Wait implements agentpb.AgentService.
func (s *Service) Wait(ctx context.Context, r *agentpb.WaitRequest) (*agentpb.WaitResponse, error) {
	p, err := s.find(r.ContainerId, r.ExecId)
	if err != nil {
		return nil, err
	}
	if err := p.wait(ctx); err != nil {
		return nil, err
	}
	if p.failed {
		return &agentpb.WaitResponse{ExitStatus: failedStatus, ExitedAt: timestamppb.Now()}, nil
	}
	return &agentpb.WaitResponse{
		ExitStatus: p.exit.Code(), ExitedAt: timestamppb.New(p.exit.At), OomKilled: p.oomKilled,
	}, nil
}

// maxSignal is the last real-time signal, SIGRTMAX.
const maxSignal = 64

// Kill implements agentpb.AgentService.
func (s *Service) Kill(_ context.Context, r *agentpb.KillRequest) (*agentpb.KillResponse, error) {
	p, err := s.find(r.ContainerId, r.ExecId)
	if err != nil {
		return nil, err
	}
	if r.Signal > maxSignal { // 0 asks whether the process is there
		return nil, fmt.Errorf("signal %d is not in 0-%d: %w", r.Signal, maxSignal, errdefs.ErrInvalidArgument)
	}
	sig := unix.Signal(r.Signal)
	if p.execID == "" && (r.All || sig == unix.SIGKILL && !p.hasEnded()) { // init's death is that of all
		return &agentpb.KillResponse{}, p.container.signalAll(sig)
	}
	return &agentpb.KillResponse{}, p.signal(sig)
}

// Delete implements agentpb.AgentService.
func (s *Service) Delete(ctx context.Context, r *agentpb.DeleteRequest) (*agentpb.DeleteResponse, error) {
	p, err := s.find(r.ContainerId, r.ExecId)
	if err != nil {
		return nil, err
	}
	c := p.container
	if p.execID != "" {
		if _, err := p.running(); err == nil {
			return nil, fmt.Errorf("%s is running: %w", p, errdefs.ErrFailedPrecondition)
		}
		c.mu.Lock()
		delete(c.execs, p.execID)
		c.mu.Unlock()
		p.io.Close()
		return &agentpb.DeleteResponse{}, nil
	}
	if !p.hasEnded() {
		return nil, fmt.Errorf("%s is running: %w", p, errdefs.ErrFailedPrecondition)
	}
	if err := c.lib.Destroy(); err != nil {
		return nil, classify(err)
	}
	s.mu.Lock()
	delete(s.containers, c.id)
	s.mu.Unlock()
	c.unlook()
	p.io.Close()
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, e := range c.execs {
		e.io.Close()
	}
	return &agentpb.DeleteResponse{}, nil
}

// ResizePty implements agentpb.AgentService.
func (s *Service) ResizePty(_ context.Context, r *agentpb.ResizePtyRequest) (*agentpb.ResizePtyResponse, error) {
	p, err := s.find(r.ContainerId, r.ExecId)
	if err != nil {
		return nil, err
	}
	const most = 1<<16 - 1
	if r.Width > most || r.Height > most {
		return nil, fmt.Errorf("size %dx%d is not in 0-%d: %w", r.Width, r.Height, most, errdefs.ErrInvalidArgument)
	}
	if _, err := p.running(); err != nil {
		return nil, err
	}
	if !p.io.Terminal() {
		return nil, fmt.Errorf("%s: %w: %w", p, stdio.ErrNoTerminal, errdefs.ErrFailedPrecondition)
	}
	return &agentpb.ResizePtyResponse{}, p.io.Resize(uint16(r.Width), uint16(r.Height))
}

// Pids implements agentpb.AgentService.
func (s *Service) Pids(_ context.Context, r *agentpb.PidsRequest) (*agentpb.PidsResponse, error) {
	c, err := s.get(r.ContainerId)
	if err != nil {
		return nil, err
	}
	pids, err := c.lib.Processes()
	if err != nil {
		return nil, err
	}
	resp := &agentpb.PidsResponse{Pids: make([]uint32, len(pids))}
	for i, pid := range pids {
		resp.Pids[i] = uint32(pid)
	}
	return resp, nil
}

// Stats implements agentpb.AgentService. The cgroup lives until Delete, so an OOM kill is still seen after the exit.
func (s *Service) Stats(_ context.Context, r *agentpb.StatsRequest) (*agentpb.StatsResponse, error) {
	c, err := s.get(r.ContainerId)
	if err != nil {
		return nil, err
	}
	metrics, err := cgroup.Stats(c.cgroup)
	if err != nil {
		return nil, err
	}
	b, err := proto.Marshal(metrics)
	return &agentpb.StatsResponse{Metrics: b}, err
}

// Pause implements agentpb.AgentService.
func (s *Service) Pause(_ context.Context, r *agentpb.PauseRequest) (*agentpb.PauseResponse, error) {
	c, err := s.get(r.ContainerId)
	if err != nil {
		return nil, err
	}
	return &agentpb.PauseResponse{}, classify(c.lib.Pause())
}

// Resume implements agentpb.AgentService.
func (s *Service) Resume(ctx context.Context, r *agentpb.ResumeRequest) (*agentpb.ResumeResponse, error) {
	c, err := s.get(r.ContainerId)
	if err != nil {
		return nil, err
	}
	if s.Config.Clock != nil {
		if err := s.Config.Clock.Sync(); err != nil {
			log.G(ctx).WithError(err).Warn("a container goes on with the guest's own time")
		}
	}
	return &agentpb.ResumeResponse{}, classify(c.lib.Resume())
}
