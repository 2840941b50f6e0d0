package service

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"github.com/opencontainers/runc/libcontainer"
	"golang.org/x/sys/unix"

	"github.com/fcshim/containerd-shim-fc-v2/guest/ocispec"
	"github.com/fcshim/containerd-shim-fc-v2/guest/stdio"
	"github.com/fcshim/containerd-shim-fc-v2/pkg/agent/agentpb"
)

// container is one container with its processes.
type container struct {
	id     string
	lib    *libcontainer.Container
	cgroup string // its folder
	init   *process
	unlook func() // ends the OOM watch

	updates sync.Mutex // one update at a time

	mu    sync.Mutex
	execs map[string]*process
}

// Create implements agentpb.AgentService.
func (s *Service) Create(ctx context.Context, r *agentpb.CreateRequest) (*agentpb.CreateResponse, error) {
	spec, err := ocispec.Parse(r.ContainerId, r.Spec)
	if err != nil {
		return nil, err
	}
	// The id is taken while the container is being made, and given back if that fails.
	c := &container{id: r.ContainerId, execs: map[string]*process{}}
	s.mu.Lock()
	if s.containers[c.id] != nil {
		s.mu.Unlock()
		return nil, fmt.Errorf("container %q: %w", c.id, errdefs.ErrAlreadyExists)
	}
	s.containers[c.id] = c
	s.mu.Unlock()
	init, err := s.create(ctx, c, spec, r.Streams)
	s.mu.Lock()
	defer s.mu.Unlock()
	if err != nil {
		delete(s.containers, c.id)
		return nil, err
	}
	c.init = init
	return &agentpb.CreateResponse{Pid: uint32(init.pid), SetupNs: uint64(s.setup)}, nil
}

func (s *Service) create(ctx context.Context, c *container, spec *ocispec.Container, streams *agentpb.Streams) (_ *process, err error) {
	lib, err := ocispec.Process(spec.Process, true)
	if err != nil {
		return nil, err
	}
	for name, value := range spec.NetSysctls {
		path, err := ocispec.SysctlPath(name)
		if err != nil {
			return nil, err
		}
		if err := os.WriteFile(path, []byte(value), 0); err != nil {
			return nil, fmt.Errorf("linux.sysctl: set %s to %q: %w", name, value, err)
		}
	}
	p := &process{container: c, lib: lib, ended: make(chan struct{})}
	if p.io, err = stdio.Open(ctx, s.Dial, streams); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			p.io.Close()
		}
	}()
	if c.lib, err = libcontainer.Create(s.StateDir, c.id, spec.Config); err != nil {
		return nil, classify(err)
	}
	defer func() {
		if err != nil {
			c.destroy(ctx)
		}
	}()
	state, err := c.lib.State()
	if err != nil {
		return nil, err
	}
	c.cgroup = state.CgroupPaths[""] // the only one of cgroup v2
	if err := p.launch(s.Reaper); err != nil {
		return nil, classify(err)
	}
	c.unlook, err = s.oom.Add(c.cgroup, func() { s.events.oom(c.id) })
	if err != nil {
		c.unlook = func() {}
		log.G(ctx).WithError(err).WithField("container", c.id).Warn("OOM kills will be told at exit only")
	}
	return p, nil
}

// destroy removes what libcontainer has of the container.
func (c *container) destroy(ctx context.Context) {
	if err := c.lib.Destroy(); err != nil {
		log.G(ctx).WithError(err).WithField("container", c.id).Warn("failed to remove what is left of a container")
	}
}

// signalAll sends a signal to every process of the container.
func (c *container) signalAll(sig unix.Signal) error {
	pids, err := c.lib.Processes()
	if err != nil {
		return err
	}
	if len(pids) == 0 {
		return errEnded
	}
	if sig == unix.SIGKILL {
		return c.killAll()
	}
	for _, pid := range pids {
		if err := unix.Kill(pid, sig); err != nil && !errors.Is(err, unix.ESRCH) {
			return fmt.Errorf("signal pid %d: %w", pid, err)
		}
	}
	return nil
}

// killAll kills every process of the container at once, so that none forks its way out.
func (c *container) killAll() error {
	return os.WriteFile(filepath.Join(c.cgroup, "cgroup.kill"), []byte("1"), 0)
}

// status is libcontainer's view of the container.
func (c *container) status() (libcontainer.Status, error) { return c.lib.Status() }

// classify gives libcontainer's errors their errdefs class.
func classify(err error) error {
	for _, c := range []struct{ is, class error }{
		{libcontainer.ErrExist, errdefs.ErrAlreadyExists},
		{libcontainer.ErrInvalidID, errdefs.ErrInvalidArgument},
		{libcontainer.ErrNotExist, errdefs.ErrNotFound},
		{libcontainer.ErrNotRunning, errdefs.ErrFailedPrecondition},
		{libcontainer.ErrRunning, errdefs.ErrFailedPrecondition},
		{libcontainer.ErrNotPaused, errdefs.ErrFailedPrecondition},
		{libcontainer.ErrPaused, errdefs.ErrFailedPrecondition},
	} {
		if errors.Is(err, c.is) {
			return fmt.Errorf("%w: %w", err, c.class)
		}
	}
	return err
}
