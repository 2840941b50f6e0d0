package shim

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync/atomic"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/fcshim/containerd-shim-fc-v2/pkg/agent/agentpb"
	"github.com/fcshim/containerd-shim-fc-v2/pkg/hold"
	"github.com/fcshim/containerd-shim-fc-v2/pkg/shim/hooks"
	"github.com/fcshim/containerd-shim-fc-v2/pkg/shim/network"
)

// maxSignals bounds the signals to a container's host process that wait for their way into the guest.
const maxSignals = 16

// host is what a container has on the host beside its VM: the process that stands for it, its cgroup, its network, its hooks.
type host struct {
	bundle  string
	undo    undo
	holder  *hold.Holder
	cgroup  hostCgroup
	network *network.Network
	path    string // of the network namespace, empty for one that ends with the container
	hooks   hooks.Runner
	closing atomic.Bool
	signals chan unix.Signal
}

// hostPlan is what of a spec concerns the host.
type hostPlan struct {
	hooks       *specs.Hooks
	annotations map[string]string
	version     string
	network     string // path of the namespace, empty for a new one
	cgroup      hostCgroup
	label       []string
}

// newHostPlan takes a spec before guestSpec rewrites it.
func newHostPlan(spec *specs.Spec, sz size) (p hostPlan, err error) {
	p = hostPlan{hooks: spec.Hooks, annotations: spec.Annotations, version: spec.Version, label: spec.Process.Args}
	if err := hooks.Check(spec.Hooks); err != nil {
		return p, err
	}
	if p.cgroup, err = planCgroup(spec.Linux, sz); err != nil {
		return p, err
	}
	for i, ns := range spec.Linux.Namespaces {
		if ns.Type != specs.NetworkNamespace || ns.Path == "" {
			continue
		}
		p.network = ns.Path
		f, err := network.OpenPath(ns.Path)
		switch {
		case errors.Is(err, network.ErrHost):
			return p, fmt.Errorf("linux.namespaces[%d]: %s: %w: %w", i, ns.Path, errHostNetwork, errdefs.ErrInvalidArgument)
		case err != nil:
			return p, fmt.Errorf("linux.namespaces[%d]: network namespace %w: %w", i, err, errdefs.ErrInvalidArgument)
		}
		f.Close()
	}
	return p, nil
}

// startHost makes a container's process on the host and runs the hooks that come before the container. After an error nothing
// is left.
func (s *service) startHost(ctx context.Context, p *plan) (_ *host, err error) {
	h := &host{bundle: p.bundle, path: p.host.network, cgroup: p.host.cgroup, signals: make(chan unix.Signal, maxSignals), hooks: hooks.Runner{
		Hooks: p.host.hooks, Mounts: s.mounts,
		State: specs.State{Version: p.host.version, ID: p.id, Bundle: p.bundle, Annotations: p.host.annotations},
	}}
	defer func() {
		if err != nil {
			err = joinCleanup(err, h.close(ctx))
		}
	}()
	h.undo = undo{Poststop: hooks.Any(p.host.hooks, hooks.Poststop), Cgroups: h.cgroup.missing(), Metrics: p.settings.metricsPath(s.namespace, p.id)}
	if err := h.undo.note(h.bundle); err != nil {
		return nil, err
	}
	if err := h.cgroup.make(); err != nil {
		return nil, err
	}
	var ns *os.File
	if p.host.network != "" {
		if ns, err = network.OpenPath(p.host.network); err != nil {
			return nil, fmt.Errorf("network namespace %w", err)
		}
	}
	h.holder, err = hold.Start(hold.Options{
		Program: p.settings.VMM, Label: append([]string{p.id}, p.host.label...), Network: ns, In: h.cgroup.start, Signal: h.queueSignal,
	})
	if ns == nil && err == nil {
		ns, err = h.holder.Namespace("net")
	}
	if ns != nil {
		h.network = network.Open(ns)
	}
	if err != nil {
		return nil, err
	}
	for _, point := range []hooks.Point{hooks.Prestart, hooks.CreateRuntime} {
		if err := h.hooks.Run(ctx, point, specs.StateCreating, h.holder.Pid()); err != nil {
			return nil, err
		}
	}
	return h, nil
}

// connect joins the pod's network with the VM, and returns what the guest must be told; nil if there is no network.
func (h *host) connect() (*agentpb.ConfigureNetworkRequest, error) {
	r, joins, err := h.network.Describe()
	if err != nil || r == nil {
		return nil, err
	}
	if h.path != "" {
		// The namespace outlives the container.
		if h.undo.Network, err = newNetworkUndo(h.path, h.network.Namespace(), joins); err != nil {
			return nil, err
		}
		if err := h.undo.note(h.bundle); err != nil {
			return nil, err
		}
	}
	return r, h.network.Connect(joins)
}

// queueSignal must not wait.
func (h *host) queueSignal(sig unix.Signal) {
	select {
	case h.signals <- sig:
	default: // as the kernel does with a second one of a kind
	}
}

// watch lets what happens to the process on the host happen to the container, until the container has exited.
func (h *host) watch(ctx context.Context, c *container) {
	logger := log.G(ctx).WithField("container", c.id)
	for {
		select {
		case <-c.init.exited:
			return
		case sig := <-h.signals:
			if err := c.kill(ctx, c.init, uint32(sig), false); err != nil && !errdefs.IsNotFound(err) {
				logger.WithError(err).Warnf("signal %d to its process on the host did not reach the container", sig)
			}
		case <-h.holder.Done():
			if h.closing.Load() {
				return
			}
			logger.Warn("its process on the host was killed, and so is the container")
			if err := c.kill(ctx, c.init, uint32(unix.SIGKILL), true); err != nil && !errdefs.IsNotFound(err) {
				logger.WithError(err).Error("cannot kill it")
			}
			return
		}
	}
}

// end ends the process on the host, with the container that it stands for. The rest is left to close.
func (h *host) end() error {
	h.closing.Store(true)
	return h.holder.Close()
}

// close takes everything away that the container has on the host. The VM must have ended.
func (h *host) close(ctx context.Context) error {
	h.closing.Store(true)
	var errs []error
	if h.network != nil {
		errs = append(errs, h.network.Close())
	}
	if h.holder != nil {
		errs = append(errs, h.holder.Close())
	}
	return errors.Join(append(errs, h.undo.carryOut(context.WithoutCancel(ctx), h.bundle, &h.hooks))...)
}

// abandon ends the process on the host, and leaves the rest to `delete`.
func (h *host) abandon() error {
	h.closing.Store(true)
	return errors.Join(h.network.Close(), h.holder.Close())
}
