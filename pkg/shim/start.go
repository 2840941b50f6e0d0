package shim

import (
	"context"
	"fmt"
	"time"

	eventstypes "github.com/containerd/containerd/api/events"
	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/fcshim/containerd-shim-fc-v2/pkg/agent/agentpb"
	"github.com/fcshim/containerd-shim-fc-v2/pkg/shim/hooks"
)

// start starts init or an exec.
func (c *container) start(ctx context.Context, p *process) error {
	if p != c.init {
		return c.beginExec(ctx, p)
	}
	if err := c.beginInit(ctx); err != nil {
		return err
	}
	return c.poststart(ctx)
}

// beginInit starts init and makes that known.
func (c *container) beginInit(ctx context.Context) error {
	p := c.init
	p.lifecycle.Lock()
	defer p.lifecycle.Unlock()
	if err := p.begin(); err != nil {
		return err
	}
	if err := p.stdio().feedStdin(c.buffers); err != nil {
		p.unbegin()
		return err
	}
	if err := c.startInit(ctx); err != nil {
		p.unbegin()
		return err
	}
	c.events.send(&eventstypes.TaskStart{ContainerID: c.id, Pid: p.state().pid})
	return nil
}

// beginExec starts an exec, makes that known, and has its end awaited.
func (c *container) beginExec(ctx context.Context, p *process) error {
	p.lifecycle.Lock()
	defer p.lifecycle.Unlock()
	c.mu.Lock()
	if c.ending {
		c.mu.Unlock()
		return fmt.Errorf("container %s is not running: %w", c.id, errdefs.ErrFailedPrecondition)
	}
	err := p.begin()
	c.mu.Unlock()
	if err != nil {
		return err
	}
	if err := c.startExec(ctx, p); err != nil {
		p.end(255, time.Now())
		close(p.exited)
		c.endThread(p)
		if io := p.stdio(); io != nil {
			io.close()
		}
		return err
	}
	c.events.send(&eventstypes.TaskExecStarted{ContainerID: c.id, ExecID: p.execID, Pid: p.state().pid})
	go c.watch(context.WithoutCancel(ctx), p)
	return nil
}

// startInit has the guest know its network, and then init run.
func (c *container) startInit(ctx context.Context) error {
	network, err := c.host.connect()
	if err != nil {
		return err
	}
	if network != nil {
		if _, err := ask(ctx, "ConfigureNetwork", c.vm.agent.ConfigureNetwork, network); err != nil {
			return err
		}
	}
	select {
	case <-c.vm.clockSet: // each call behind it has a bound
	case <-c.vm.ended:
	}
	_, err = ask(ctx, "Start", c.vm.agent.Start, &agentpb.StartRequest{ContainerId: c.id})
	return err
}

// poststart runs the hooks that come after the start; a container one of whose hooks fails is ended, as by runc. Init's lock is
// free meanwhile: init may exit, and that must be heard of at once.
func (c *container) poststart(ctx context.Context) error {
	err := c.host.hooks.Run(ctx, hooks.Poststart, specs.StateRunning, c.host.holder.Pid())
	if err != nil {
		ctx = context.WithoutCancel(ctx) // whose end may be why the hook has failed
		if kerr := c.kill(ctx, c.init, uint32(unix.SIGKILL), true); kerr != nil && !errdefs.IsNotFound(kerr) {
			err = joinCleanup(err, kerr)
		}
	}
	return err
}

func (c *container) startExec(ctx context.Context, p *process) error {
	io, err := openStdio(ctx, p.paths, c.vm.streams)
	if err != nil {
		return err
	}
	pid, err := c.host.holder.Thread()
	if err != nil {
		io.close()
		return fmt.Errorf("%w: %w", err, errdefs.ErrUnavailable)
	}
	p.mu.Lock()
	p.io, p.pid = io, uint32(pid)
	width, height := p.width, p.height
	p.mu.Unlock()
	io.attach(c.buffers)
	if err := io.feedStdin(c.buffers); err != nil {
		return err
	}
	if _, err := ask(ctx, "Exec", c.vm.agent.Exec, &agentpb.ExecRequest{ContainerId: c.id, ExecId: p.execID, Process: p.spec, Streams: &io.streams}); err != nil {
		return err
	}
	if _, err := ask(ctx, "Start", c.vm.agent.Start, &agentpb.StartRequest{ContainerId: c.id, ExecId: p.execID}); err != nil {
		_, _ = ask(context.WithoutCancel(ctx), "Delete", c.vm.agent.Delete, &agentpb.DeleteRequest{ContainerId: c.id, ExecId: p.execID})
		return err
	}
	if width != 0 && height != 0 {
		// The process runs: a failure here must not lose it.
		if err := c.resizeNow(ctx, p, width, height); err != nil {
			log.G(ctx).WithError(err).WithFields(log.Fields{"container": c.id, "exec": p.execID}).Warn("a new process's terminal keeps its first size")
		}
	}
	return nil
}
