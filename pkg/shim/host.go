package shim

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync/atomic"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/fcshim/containerd-shim-fc-v2/pkg/hold"
	"github.com/fcshim/containerd-shim-fc-v2/pkg/shim/hooks"
	"github.com/fcshim/containerd-shim-fc-v2/pkg/shim/hostcgroup"
	"github.com/fcshim/containerd-shim-fc-v2/pkg/shim/network"
)

// undoName is a file in the bundle that says what only a process can undo, for a `delete` that comes after this one's death.
const undoName = "fc-undo.json"

// maxSignals bounds the signals to a container's host process that wait for their way into the guest.
const maxSignals = 16

// undo is what is left to be done on the host when a container is no more.
type undo struct {
	// Poststop says that hooks have run, and so the poststop hooks must.
	Poststop bool `json:"poststop"`
	// Network is the path of a network namespace with redirections of ours; empty for one that ends with the container.
	Network string `json:"network,omitempty"`
	// Cgroups are the folders of cgroups that were not there before the container.
	Cgroups []string `json:"cgroups,omitempty"`
}

// host is what a container has on the host beside its VM: the process that stands for it, its cgroup, its network, its hooks.
type host struct {
	bundle  string
	undo    undo
	holder  *hold.Holder
	cgroup  hostCgroup
	network *network.Network
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
		var fs unix.Statfs_t
		switch err := unix.Statfs(ns.Path, &fs); {
		case err != nil:
			return p, fmt.Errorf("linux.namespaces[%d]: network namespace %s: %w: %w", i, ns.Path, err, errdefs.ErrInvalidArgument)
		case fs.Type != unix.NSFS_MAGIC:
			return p, fmt.Errorf("linux.namespaces[%d]: %s is not a network namespace: %w", i, ns.Path, errdefs.ErrInvalidArgument)
		}
	}
	return p, nil
}

// startHost makes a container's process on the host and runs the hooks that come before the container. After an error nothing
// is left.
func (s *service) startHost(ctx context.Context, p *plan) (_ *host, err error) {
	h := &host{bundle: p.bundle, cgroup: p.host.cgroup, signals: make(chan unix.Signal, maxSignals), hooks: hooks.Runner{
		Hooks: p.host.hooks, Mounts: s.mounts,
		State: specs.State{Version: p.host.version, ID: p.id, Bundle: p.bundle, Annotations: p.host.annotations},
	}}
	defer func() {
		if err != nil {
			err = joinCleanup(err, h.close(ctx))
		}
	}()
	h.undo = undo{Poststop: hooks.Any(p.host.hooks, hooks.Poststop), Network: p.host.network, Cgroups: h.cgroup.missing()}
	if err := h.noteUndo(); err != nil {
		return nil, err
	}
	if err := h.cgroup.make(); err != nil {
		return nil, err
	}
	var ns *os.File
	if p.host.network != "" {
		if ns, err = os.Open(p.host.network); err != nil {
			return nil, fmt.Errorf("network namespace: %w", err)
		}
	}
	h.holder, err = hold.Start(hold.Options{Program: p.settings.VMM, Label: append([]string{p.id}, p.host.label...), Network: ns, Signal: h.queueSignal})
	if ns == nil && err == nil {
		ns, err = h.holder.Namespace("net")
	}
	if ns != nil {
		h.network = network.Open(ns)
	}
	if err == nil {
		err = h.cgroup.add(h.holder.Pid())
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

// noteUndo writes undo down, if there is anything in it.
func (h *host) noteUndo() error {
	if !h.undo.Poststop && h.undo.Network == "" && len(h.undo.Cgroups) == 0 {
		return nil
	}
	data, err := json.Marshal(h.undo)
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(h.bundle, undoName), data, 0o600); err != nil {
		return fmt.Errorf("note what is to be undone: %w", err)
	}
	return nil
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
				logger.WithError(err).Warnf("a %s to its process on the host did not reach the container", unix.SignalName(sig))
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
		if h.undo.Network != "" {
			errs = append(errs, h.network.Disconnect())
		}
		errs = append(errs, h.network.Close())
	}
	if h.holder != nil {
		errs = append(errs, h.holder.Close())
	}
	errs = append(errs, hostcgroup.Remove(h.undo.Cgroups))
	if h.undo.Poststop {
		errs = append(errs, h.hooks.Run(context.WithoutCancel(ctx), hooks.Poststop, specs.StateStopped, 0))
	}
	return errors.Join(append(errs, ignoreMissing(os.Remove(filepath.Join(h.bundle, undoName))))...)
}

// abandon ends the process on the host, and leaves the rest to `delete`.
func (h *host) abandon() error {
	h.closing.Store(true)
	return errors.Join(h.network.Close(), h.holder.Close())
}

// undoHost is close for a container whose shim has died.
func undoHost(ctx context.Context, bundle, id string) error {
	name := filepath.Join(bundle, undoName)
	data, err := os.ReadFile(name)
	if err != nil {
		return ignoreMissing(err)
	}
	var u undo
	if err := json.Unmarshal(data, &u); err != nil {
		return fmt.Errorf("%s: %w", undoName, err)
	}
	var errs []error
	if u.Network != "" {
		if ns, err := os.Open(u.Network); err == nil { // it may have gone, which is as good
			n := network.Open(ns)
			errs = append(errs, n.Disconnect(), n.Close())
		}
	}
	errs = append(errs, hostcgroup.Remove(u.Cgroups))
	if u.Poststop {
		spec, err := readSpec(bundle)
		if err != nil {
			return errors.Join(append(errs, err)...)
		}
		r := hooks.Runner{Hooks: spec.Hooks, State: specs.State{Version: spec.Version, ID: id, Bundle: bundle, Annotations: spec.Annotations}}
		errs = append(errs, r.Run(ctx, hooks.Poststop, specs.StateStopped, 0))
	}
	return errors.Join(append(errs, os.Remove(name))...)
}
