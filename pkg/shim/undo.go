package shim

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/containerd/log"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/fcshim/containerd-shim-fc-v2/pkg/shim/hooks"
	"github.com/fcshim/containerd-shim-fc-v2/pkg/shim/hostcgroup"
	"github.com/fcshim/containerd-shim-fc-v2/pkg/shim/network"
	"github.com/fcshim/containerd-shim-fc-v2/pkg/shim/prometheus"
)

// undoName is a file in the bundle that says what only a process can undo, for a `delete` that comes after the shim's death. It
// is written before what it is about is done, and changed when that has been undone.
const undoName = "fc-undo.json"

// undo is what is left to be done on the host when a container is no more.
type undo struct {
	// Poststop says that hooks may have run, and so the poststop hooks must; at least once, if a shim dies over them.
	Poststop bool `json:"poststop,omitempty"`
	// Network has redirections of ours in a network namespace that outlives the container.
	Network *networkUndo `json:"network,omitempty"`
	// Cgroups are the folders of cgroups that were not there before the container.
	Cgroups []string `json:"cgroups,omitempty"`
	// Metrics is the file of the VM's metrics.
	Metrics string `json:"metrics,omitempty"`
}

// networkUndo is a network namespace, by its path and its number, for a path such as /proc/PID/ns/net may come to be another's.
type networkUndo struct {
	Path  string         `json:"path"`
	Inode uint64         `json:"inode"`
	Joins []network.Join `json:"joins"`
}

func newNetworkUndo(path string, ns *os.File, joins []network.Join) (*networkUndo, error) {
	ino, err := inode(ns)
	return &networkUndo{Path: path, Inode: ino, Joins: joins}, err
}

func inode(f *os.File) (uint64, error) {
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return 0, fmt.Errorf("%s: %w", f.Name(), err)
	}
	return st.Ino, nil
}

func (u *undo) empty() bool {
	return !u.Poststop && u.Network == nil && len(u.Cgroups) == 0 && u.Metrics == ""
}

// note writes u down; nothing to be undone needs no file.
func (u *undo) note(bundle string) error {
	if u.empty() {
		return ignoreMissing(os.Remove(filepath.Join(bundle, undoName)))
	}
	if err := writeRecord(bundle, undoName, u); err != nil {
		return fmt.Errorf("note what is to be undone: %w", err)
	}
	return nil
}

// carryOut undoes what it can, and notes the rest for the next one who tries. A poststop hook that fails is a warning, as OCI
// has it, and is not tried again.
func (u *undo) carryOut(ctx context.Context, bundle string, r *hooks.Runner) error {
	var errs []error
	if u.Network != nil {
		if err := u.Network.disconnect(); err != nil {
			errs = append(errs, err)
		} else {
			u.Network = nil
		}
	}
	if err := hostcgroup.Remove(u.Cgroups); err != nil {
		errs = append(errs, err)
	} else {
		u.Cgroups = nil
	}
	if u.Metrics != "" {
		if err := prometheus.Remove(u.Metrics); err != nil {
			errs = append(errs, err)
		} else {
			u.Metrics = ""
		}
	}
	if u.Poststop {
		if err := r.Run(ctx, hooks.Poststop, specs.StateStopped, 0); err != nil {
			log.G(ctx).WithError(err).WithField("container", r.State.ID).Warn("a poststop hook has failed")
		}
		u.Poststop = false
	}
	return errors.Join(append(errs, u.note(bundle))...)
}

func (n *networkUndo) disconnect() error {
	ns, err := network.OpenPath(n.Path)
	if err != nil {
		return nil // it has gone, or has become something else, which is as good
	}
	net := network.Open(ns)
	defer net.Close()
	if ino, err := inode(ns); err != nil || ino != n.Inode {
		return err
	}
	return net.Disconnect(n.Joins)
}

// undoHost undoes what a dead shim has left of a container on the host.
func undoHost(ctx context.Context, bundle, id string) error {
	var u undo
	if err := readRecord(bundle, undoName, &u); err != nil {
		return ignoreMissing(err)
	}
	r := hooks.Runner{State: specs.State{ID: id, Bundle: bundle}}
	if u.Poststop {
		spec, err := readSpec(bundle)
		if err != nil {
			return err
		}
		r.Hooks, r.State.Version, r.State.Annotations = spec.Hooks, spec.Version, spec.Annotations
	}
	return u.carryOut(ctx, bundle, &r)
}
