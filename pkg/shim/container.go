package shim

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	eventstypes "github.com/containerd/containerd/api/events"
	"github.com/containerd/containerd/api/types/task"
	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/fcshim/containerd-shim-fc-v2/pkg/agent/agentpb"
)

const (
	// agentTimeout bounds the agent's answers, but for Wait's.
	agentTimeout = 30 * time.Second
	// sigkillTimeout bounds its answer to a SIGKILL of a container, and then the VM is killed.
	sigkillTimeout = 5 * time.Second
	// killTimeout is how long a container may outlive a SIGKILL, whatever the agent says, before its VM is killed.
	killTimeout = 20 * time.Second
)

// container is an OCI container in the pod's VM.
type container struct {
	id, bundle string
	vm         *vm
	host       *host
	init       *process
	events     *eventQueue
	buffers    *sync.Pool
	size       size // the VM's

	updates sync.Mutex // one update at a time
	quota   cpuQuota   // what the last one has left

	mu      sync.Mutex
	execs   map[string]*process
	ending  bool // init has exited: no exec may start any more
	paused  bool
	oom     oomState
	metrics metricsState
	guarded bool // a guard watches over a SIGKILL
}

// ask bounds a call of the agent's and gives its error a class.
func ask[Req, Resp any](ctx context.Context, method string, call func(context.Context, Req) (Resp, error), req Req) (Resp, error) {
	return askWithin(ctx, agentTimeout, method, call, req)
}

func askWithin[Req, Resp any](ctx context.Context, timeout time.Duration, method string, call func(context.Context, Req) (Resp, error), req Req) (Resp, error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	resp, err := callWithin(ctx, call, req)
	if err != nil {
		if ctx.Err() == context.DeadlineExceeded {
			err = fmt.Errorf("no answer within %v: %w", timeout, context.DeadlineExceeded)
		} else {
			err = agentError(err)
		}
		return resp, fmt.Errorf("guest agent, %s: %w", method, err)
	}
	return resp, nil
}

// callWithin returns when ctx ends at the latest. ttrpc's calls do not, as long as they wait for the connection: their own writes and others'
// before them are bounded (agent.Client), but a guest that reads one request after another, slowly, makes a long queue of them.
func callWithin[Req, Resp any](ctx context.Context, call func(context.Context, Req) (Resp, error), req Req) (resp Resp, err error) {
	type answer struct {
		resp Resp
		err  error
	}
	answered := make(chan answer, 1)
	go func() {
		resp, err := call(ctx, req)
		answered <- answer{resp, err}
	}()
	select {
	case a := <-answered:
		return a.resp, a.err
	case <-ctx.Done():
		return resp, ctx.Err()
	}
}

// process finds the init process (an empty id) or an exec.
func (c *container) process(execID string) (*process, error) {
	if execID == "" {
		return c.init, nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	p, ok := c.execs[execID]
	if !ok {
		return nil, fmt.Errorf("exec %s of container %s: %w", execID, c.id, errdefs.ErrNotFound)
	}
	return p, nil
}

// addExec takes down a process to be run by start. Nothing happens in the guest before that.
func (c *container) addExec(p *process) error {
	if err := c.reserveExec(p); err != nil {
		return err
	}
	c.events.send(&eventstypes.TaskExecAdded{ContainerID: c.id, ExecID: p.execID})
	return nil
}

func (c *container) reserveExec(p *process) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if _, ok := c.execs[p.execID]; ok {
		return fmt.Errorf("exec %s of container %s: %w", p.execID, c.id, errdefs.ErrAlreadyExists)
	}
	if c.ending || c.init.state().status == task.Status_STOPPED {
		return fmt.Errorf("container %s is not running: %w", c.id, errdefs.ErrFailedPrecondition)
	}
	if c.paused {
		return fmt.Errorf("container %s is paused: %w", c.id, errdefs.ErrFailedPrecondition)
	}
	c.execs[p.execID] = p
	return nil
}

// watch waits for a process's end, for its output's, and then makes both known.
func (c *container) watch(ctx context.Context, p *process) {
	status, alive := c.awaitExit(ctx, p)
	at := time.Now()
	stall := drainTimeout
	if !alive {
		stall = deadDrainTimeout
	}
	if alive && p == c.init {
		c.keepStats(ctx)
	}
	p.stdio().drain(ctx, stall)
	if p == c.init {
		c.awaitExecs(stall)
	}
	c.finish(ctx, p, status, at)
}

// awaitExit returns the exit status, and whether the VM lives on. The time of the exit is this host's: the guest's clock
// proves nothing.
func (c *container) awaitExit(ctx context.Context, p *process) (status uint32, alive bool) {
	resp, err := c.vm.agent.Wait(ctx, &agentpb.WaitRequest{ContainerId: c.id, ExecId: p.execID})
	if err == nil {
		if resp.GetOomKilled() {
			c.oomAtExit(time.Now())
		}
		return min(resp.GetExitStatus(), 255), true
	}
	logger := log.G(ctx).WithFields(log.Fields{"container": c.id, "exec": p.execID})
	select {
	case <-c.vm.ended:
	case <-time.After(partingTimeout + time.Second):
		logger.WithError(agentError(err)).Error("the guest's agent cannot say how a process ended: its VM is killed")
		if err := c.vm.kill(); err != nil {
			logger.WithError(err).Error("a process is given up: nobody can reach it any more")
			return exitKilled, false
		}
	}
	logger.WithError(c.vm.cause).Warn("a process has ended with its VM")
	return exitKilled, false
}

// awaitExecs has the exits of all execs made known before init's: the guest has killed them with init.
func (c *container) awaitExecs(stall time.Duration) {
	c.mu.Lock()
	c.ending = true
	execs := make([]*process, 0, len(c.execs))
	for _, p := range c.execs {
		if p.state().status != task.Status_CREATED { // a stopped one may still be about to be made known
			execs = append(execs, p)
		}
	}
	c.mu.Unlock()
	deadline := time.After(stall + time.Second)
	for _, p := range execs {
		select {
		case <-p.exited:
			continue
		case <-deadline:
		}
		break
	}
	for _, p := range execs {
		c.finish(context.Background(), p, exitKilled, time.Now()) // nothing happens to those that have been made known
	}
}

func (c *container) finish(ctx context.Context, p *process, status uint32, at time.Time) {
	p.lifecycle.Lock()
	defer p.lifecycle.Unlock()
	if !p.end(status, at) {
		return
	}
	p.stdio().close()
	id := p.execID
	if p != c.init {
		c.endThread(p)
	} else {
		id = c.id
		if err := writeExit(c.bundle, p.state()); err != nil {
			log.G(ctx).WithError(err).Warn("cannot note the exit status in the bundle")
		}
		// As with any process, who hears of the exit finds its pid gone.
		if err := c.host.end(); err != nil {
			log.G(ctx).WithError(err).Warn("cannot end the container's process on the host")
		}
	}
	c.events.send(&eventstypes.TaskExit{ContainerID: c.id, ID: id, Pid: p.state().pid, ExitStatus: status, ExitedAt: timestamppb.New(at)})
	close(p.exited)
}

// endThread ends the thread that stands for an exec on the host. It must be called once, when the exec ends: the thread's number
// may soon be another exec's.
func (c *container) endThread(p *process) {
	if pid := p.state().pid; pid != 0 {
		c.host.holder.EndThread(int(pid))
	}
}

func (c *container) kill(ctx context.Context, p *process, signal uint32, all bool) error {
	st := p.state()
	switch {
	case st.status == task.Status_STOPPED && p == c.init && all:
		return nil // as runc: there is nobody left, and that is what was asked for
	case st.status == task.Status_STOPPED:
		return fmt.Errorf("process already finished: %w", errdefs.ErrNotFound)
	case p != c.init && st.status == task.Status_CREATED:
		return fmt.Errorf("exec %s has not been started: %w", p.execID, errdefs.ErrFailedPrecondition)
	}
	req := &agentpb.KillRequest{ContainerId: c.id, ExecId: p.execID, Signal: signal, All: all}
	if p != c.init || signal != uint32(unix.SIGKILL) {
		_, err := ask(ctx, "Kill", c.vm.agent.Kill, req)
		return err
	}
	// Nothing in the guest may evade a SIGKILL, by no answer, by an error, nor by a lie.
	c.guard(ctx)
	_, err := askWithin(ctx, sigkillTimeout, "Kill", c.vm.agent.Kill, req)
	if err != nil && (errors.Is(err, context.DeadlineExceeded) || errdefs.IsUnavailable(err)) {
		log.G(ctx).WithError(err).Warn("the guest's agent did not take a SIGKILL: the VM is killed")
		return c.vm.kill()
	}
	return err
}

// guard has one guardKill run.
func (c *container) guard(ctx context.Context) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.guarded {
		c.guarded = true
		go c.guardKill(context.WithoutCancel(ctx))
	}
}

func (c *container) guardKill(ctx context.Context) {
	select {
	case <-c.init.exited:
	case <-c.vm.ended:
	case <-time.After(killTimeout):
		log.G(ctx).Warnf("the container %s outlived a SIGKILL by %v: its VM is killed", c.id, killTimeout)
		if err := c.vm.kill(); err != nil {
			log.G(ctx).WithError(err).Error("a SIGKILL had no effect")
		}
	}
}

func (c *container) resize(ctx context.Context, p *process, width, height uint32) error {
	if !p.paths.Terminal {
		return nil // as runc: clients ask without a look
	}
	p.mu.Lock()
	st := p.status
	if st == task.Status_CREATED && p != c.init {
		p.width, p.height = width, height
	}
	p.mu.Unlock()
	switch {
	case st == task.Status_STOPPED:
		return nil // as runc: the client's window may outlive the process
	case st == task.Status_CREATED && p != c.init:
		return nil
	}
	return c.resizeNow(ctx, p, width, height)
}

func (c *container) resizeNow(ctx context.Context, p *process, width, height uint32) error {
	_, err := ask(ctx, "ResizePty", c.vm.agent.ResizePty, &agentpb.ResizePtyRequest{ContainerId: c.id, ExecId: p.execID, Width: width, Height: height})
	return err
}

func (c *container) setPaused(ctx context.Context, paused bool) (err error) {
	if c.init.state().status != task.Status_RUNNING {
		return fmt.Errorf("container %s is not running: %w", c.id, errdefs.ErrFailedPrecondition)
	}
	var event any = &eventstypes.TaskResumed{ContainerID: c.id}
	if paused {
		event = &eventstypes.TaskPaused{ContainerID: c.id}
		_, err = ask(ctx, "Pause", c.vm.agent.Pause, &agentpb.PauseRequest{ContainerId: c.id})
	} else {
		if _, err := c.vm.syncClock(ctx); err != nil {
			log.G(ctx).WithError(err).WithField("container", c.id).Warn("it goes on with the guest's own time")
		}
		_, err = ask(ctx, "Resume", c.vm.agent.Resume, &agentpb.ResumeRequest{ContainerId: c.id})
	}
	if err != nil {
		return err
	}
	c.mu.Lock()
	c.paused = paused
	c.mu.Unlock()
	c.events.send(event)
	return nil
}

// removeExec forgets an exec that does not run.
func (c *container) removeExec(ctx context.Context, p *process) error {
	if p.state().status == task.Status_RUNNING {
		return fmt.Errorf("exec %s is running: %w", p.execID, errdefs.ErrFailedPrecondition)
	}
	if p.state().status == task.Status_STOPPED {
		_, err := ask(ctx, "Delete", c.vm.agent.Delete, &agentpb.DeleteRequest{ContainerId: c.id, ExecId: p.execID})
		if err != nil && !errdefs.IsNotFound(err) {
			log.G(ctx).WithError(err).Debug("the guest's agent did not forget an exec")
		}
	}
	if io := p.stdio(); io != nil {
		io.settle(ctx)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.execs, p.execID)
	return nil
}
