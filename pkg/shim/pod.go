package shim

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	eventstypes "github.com/containerd/containerd/api/events"
	taskapi "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/containerd/api/types/task"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/pkg/identifiers"
	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/fcshim/containerd-shim-fc-v2/pkg/agent"
	"github.com/fcshim/containerd-shim-fc-v2/pkg/agent/agentpb"
	"github.com/fcshim/containerd-shim-fc-v2/pkg/timeline"
)

// deleteTimeout bounds the end of a container that is deleted before it was started.
const deleteTimeout = 10 * time.Second

// pod is a VM and the containers in it; the bundle of the first container is its home.
type pod struct {
	vm   *vm
	tree *tree
	// containers is guarded by the service's lock.
	containers map[string]*container
}

// plan is everything that a Create will do, found out and checked before anything is done.
type plan struct {
	id, bundle string
	settings   *Settings
	size       size
	quota      cpuQuota
	spec       []byte
	binds      []bind
	leftOut    []string // what of the spec a VM cannot have
	rootfs     []mount.Mount
	stdio      stdioPaths
	host       hostPlan
}

// newPlan checks a request against the spec, the settings and this host.
func (s *service) newPlan(r *taskapi.CreateTaskRequest) (*plan, error) {
	if err := identifiers.Validate(r.ID); err != nil {
		return nil, fmt.Errorf("container id: %w", err)
	}
	if r.Checkpoint != "" {
		return nil, fmt.Errorf("restoring a checkpoint: %w", errdefs.ErrNotImplemented)
	}
	settings, err := settingsFromOptions(r.Options)
	if err != nil {
		return nil, err
	}
	settings.locate(s.self)
	spec, err := loadSpec(r.Bundle)
	if err != nil {
		return nil, err
	}
	sz, err := vmSize(settings, spec)
	if err != nil {
		return nil, err
	}
	if err := settings.checkHost(sz, s.kvm); err != nil {
		return nil, err
	}
	p := &plan{
		id: r.ID, bundle: r.Bundle, settings: settings, size: sz, rootfs: mount.FromProto(r.Rootfs),
		stdio: stdioPaths{ID: r.ID, Stdin: r.Stdin, Stdout: r.Stdout, Stderr: r.Stderr, Terminal: r.Terminal, Mounts: s.mounts},
	}
	if r := spec.Linux.Resources; r != nil {
		p.quota = p.quota.with(r.CPU)
	}
	if len(p.rootfs) == 0 {
		if p.rootfs, err = rootOf(spec, r.Bundle); err != nil {
			return nil, err
		}
	}
	if p.host, err = newHostPlan(spec, sz); err != nil {
		return nil, err
	}
	if p.binds, p.leftOut, err = guestSpec(spec, r.ID, r.Bundle); err != nil {
		return nil, err
	}
	spec.Process.Terminal = r.Terminal
	if p.spec, err = json.Marshal(spec); err != nil {
		return nil, fmt.Errorf("encode the guest's spec: %w", err)
	}
	return p, nil
}

// rootOf is the root filesystem that the spec names, for clients that mount it themselves.
func rootOf(spec *specs.Spec, bundle string) ([]mount.Mount, error) {
	root := specs.Mount{Destination: "/", Source: spec.Root.Path, Options: []string{"rbind"}}
	b, err := newBind(&root, bundle, 0)
	if err == nil && !b.Dir {
		err = fmt.Errorf("root.path %s: not a folder: %w", b.Source, errdefs.ErrInvalidArgument)
	}
	return []mount.Mount{{Type: "bind", Source: b.Source, Options: []string{"rbind"}}}, err
}

// create makes the pod's VM and its container. After an error nothing of either is left.
func (s *service) create(ctx context.Context, r *taskapi.CreateTaskRequest) (_ *container, err error) {
	s.createMu.Lock()
	defer s.createMu.Unlock()
	if err := s.roomFor(r.ID); err != nil {
		return nil, err
	}
	began := time.Now()
	p, err := s.newPlan(r)
	if err != nil {
		return nil, err
	}
	if p.settings.Debug {
		_ = log.SetLevel("debug")
	}
	phases := newTimeline(ctx, began)
	if len(p.leftOut) > 0 {
		log.G(ctx).WithField("container", p.id).Warnf("left out of the spec, for it has no meaning in a VM: %s", strings.Join(p.leftOut, ", "))
	}
	phases.Mark("check")
	t, err := newTree(p.bundle)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = joinCleanup(err, t.close())
		}
	}()
	h, err := s.startHost(ctx, p)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = joinCleanup(err, h.close(ctx))
		}
	}()
	devices, err := h.network.Plan(p.settings.SpareInterfaces)
	if err != nil {
		return nil, err
	}
	phases.Mark("host")
	v, err := startVM(ctx, vmOptions{
		Namespace: s.namespace, ID: p.id, Bundle: p.bundle, Settings: p.settings, Size: p.size,
		Network: h.network.Namespace(), Devices: devices, Cgroup: h.cgroup,
	}, phases)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = joinCleanup(err, v.kill())
		}
	}()
	// The guest boots meanwhile.
	if err := t.add(p.id, p.rootfs, p.binds); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			_ = v.kill() // first: it may hold what is to be unmounted; an error will come again below
			err = joinCleanup(err, t.remove(p.id))
		}
	}()
	phases.Mark("mounts")
	io, err := openStdio(ctx, p.stdio, v.streams)
	if errors.Is(err, agent.ErrBrokerClosed) { // the VM has ended
		if why := v.running(ctx); why != nil {
			return nil, why
		}
		return nil, v.explain(err)
	}
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			io.abandon()
		}
	}()
	phases.Mark("stdio")
	if err := v.running(ctx); err != nil {
		return nil, err
	}
	phases.Mark("start")
	if err := v.ready(ctx, time.Duration(p.settings.BootTimeout)); err != nil {
		return nil, err
	}
	phases.Mark("boot")
	go v.keepClock(context.WithoutCancel(ctx)) // while the container is made
	io.attach(s.buffers)
	created, err := ask(ctx, "Create", v.agent.Create, &agentpb.CreateRequest{ContainerId: p.id, Spec: p.spec, Streams: &io.streams})
	if err != nil {
		return nil, v.blame(err)
	}
	if err := h.holder.SetRoot(t.rootfs(p.id), t.targets(p.id, p.binds)); err != nil {
		return nil, err
	}
	phases.Mark("create")
	if phases != nil {
		v.markGuest(phases, created.GetSetupNs())
		log.G(ctx).WithFields(phases.Fields()).WithFields(log.Fields{"container": p.id, "vcpus": p.size.VCPUs, "memory_mib": p.size.MemoryMiB}).Debug("pod started")
	}

	init := newProcess("", p.stdio)
	init.io, init.pid = io, uint32(h.holder.Pid())
	c := &container{id: p.id, bundle: p.bundle, vm: v, host: h, size: p.size, quota: p.quota, init: init, events: s.events, buffers: s.buffers, execs: map[string]*process{}}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil, fmt.Errorf("the shim is shutting down: %w", errdefs.ErrUnavailable)
	}
	s.pod = &pod{vm: v, tree: t, containers: map[string]*container{c.id: c}}
	return c, nil
}

// newTimeline makes a timeline if somebody reads it.
func newTimeline(ctx context.Context, began time.Time) *timeline.Timeline {
	if !log.G(ctx).Logger.IsLevelEnabled(log.DebugLevel) {
		return nil
	}
	return timeline.New(began)
}

// joinCleanup adds to an error what went wrong when its consequences were undone.
func joinCleanup(err, cleanup error) error {
	if cleanup == nil {
		return err
	}
	return fmt.Errorf("%w (and then: %w)", err, cleanup)
}

// roomFor says whether a container of that name can be made. Several containers a VM come with pods.
func (s *service) roomFor(id string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.closed:
		return fmt.Errorf("the shim is shutting down: %w", errdefs.ErrUnavailable)
	case s.pod == nil:
		return nil
	case s.pod.containers[id] != nil:
		return fmt.Errorf("container %s: %w", id, errdefs.ErrAlreadyExists)
	}
	return fmt.Errorf("container %s: this VM has a container already, and more than one a VM is not supported yet: %w", id, errdefs.ErrFailedPrecondition)
}

// remove deletes a container that does not run, and with the last one the VM.
func (s *service) remove(ctx context.Context, c *container) (processState, error) {
	s.createMu.Lock()
	defer s.createMu.Unlock()
	if _, err := s.container(c.id); err != nil {
		return processState{}, err // another call was faster
	}
	if err := c.settle(ctx); err != nil {
		return processState{}, err
	}
	ctx = context.WithoutCancel(ctx)
	c.awaitLoggers(ctx)
	s.mu.Lock()
	p := s.pod
	last := len(p.containers) == 1
	s.mu.Unlock()
	phases := newTimeline(ctx, time.Now())
	var errs []error
	if last {
		errs = append(errs, p.vm.stop(ctx))
	} else if _, err := ask(ctx, "Delete", c.vm.agent.Delete, &agentpb.DeleteRequest{ContainerId: c.id}); err != nil {
		errs = append(errs, err)
	}
	phases.Mark("vm")
	errs = append(errs, c.host.close(ctx))
	phases.Mark("host")
	errs = append(errs, p.tree.remove(c.id))
	if last {
		errs = append(errs, p.tree.close())
	}
	phases.Mark("mounts")
	if phases != nil {
		log.G(ctx).WithFields(phases.Fields()).WithField("container", c.id).Debug("pod ended")
	}
	if err := errors.Join(errs...); err != nil {
		log.G(ctx).WithError(err).WithField("container", c.id).Error("something of a deleted container is left")
	}
	s.mu.Lock()
	delete(p.containers, c.id)
	if last {
		s.pod = nil
	}
	s.mu.Unlock()
	st := c.init.state()
	s.events.send(&eventstypes.TaskDelete{ContainerID: c.id, Pid: st.pid, ExitStatus: st.exitStatus, ExitedAt: timestamppb.New(st.exitedAt)})
	return st, nil
}

// settle sees to it that init has ended: it refuses while init runs, and ends what was never started.
func (c *container) settle(ctx context.Context) error {
	switch c.init.state().status {
	case task.Status_STOPPED:
	case task.Status_CREATED:
		if err := c.kill(ctx, c.init, uint32(unix.SIGKILL), true); err != nil && !errdefs.IsNotFound(err) {
			log.G(ctx).WithError(err).Warn("cannot kill a container that was not started: its VM is killed")
			if err := c.vm.kill(); err != nil {
				return err
			}
		}
	default:
		return fmt.Errorf("container %s is running: %w", c.id, errdefs.ErrFailedPrecondition)
	}
	select {
	case <-c.init.exited:
	case <-time.After(deleteTimeout):
		if err := c.vm.kill(); err != nil {
			return err
		}
		<-c.init.exited // a dead VM ends it within a bound
	}
	return nil
}
