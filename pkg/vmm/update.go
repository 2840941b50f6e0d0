package vmm

import (
	"context"
	"fmt"

	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/config"
	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/virtio/block"
	virtionet "github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/virtio/net"
)

// UpdateDrive changes a drive of a running or paused machine: its file, which may be the one that it has, of another size;
// and its limits. Either all of it is done or nothing. The guest is told of a new capacity.
// The end of ctx ends the wait for the host's file system.
func (m *Machine) UpdateDrive(ctx context.Context, u config.DriveUpdate) (err error) {
	if err := u.Validate(); err != nil {
		return err
	}
	d, drive := find(m, func(b *block.Device) bool { return b.ID() == u.DriveID })
	if d == nil {
		return m.refreshDrive(ctx, u)
	}
	drive.Metrics().Update.Inc()
	defer func() {
		if err != nil {
			drive.Metrics().UpdateFails.Inc()
		}
	}()
	var b *block.Backing
	if u.PathOnHost != "" {
		// Not under the lock: the host's file system may take its time.
		if b, err = openWithin(ctx, u, drive.Open); err != nil {
			return err
		}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.canUpdate("update of drive " + u.DriveID); err != nil {
		if b != nil {
			go b.Close()
		}
		return err
	}
	if b != nil {
		var old *block.Backing
		d.transport.Reconfigure(func() { old = drive.Swap(b) })
		if old != nil {
			go old.Close() // it may take minutes, which neither the machine nor its guest waits for
		}
	}
	drive.Limit(u.RateLimiter)
	return nil
}

// openWithin opens the update's file by open, which takes as long as the host's file system does, unless ctx ends before: then it
// goes on by itself, and what it opens is closed.
func openWithin(ctx context.Context, u config.DriveUpdate, open func(path string) (*block.Backing, error)) (*block.Backing, error) {
	type result struct {
		b   *block.Backing
		err error
	}
	opened := make(chan result, 1)
	go func() {
		b, err := open(u.PathOnHost)
		opened <- result{b, err}
	}()
	select {
	case r := <-opened:
		if r.err != nil {
			return nil, &inputError{err: r.err}
		}
		return r.b, nil
	case <-ctx.Done():
		go func() {
			if r := <-opened; r.err == nil {
				r.b.Close()
			}
		}()
		return nil, fmt.Errorf("drive %q: waiting for the host to open path_on_host %.64q: %w", u.DriveID, u.PathOnHost, context.Cause(ctx))
	}
}

// UpdateNetworkInterface changes the limits of a network interface of a running or paused machine.
func (m *Machine) UpdateNetworkInterface(_ context.Context, u config.NetworkInterfaceUpdate) error {
	if err := u.Validate(); err != nil {
		return err
	}
	d, iface := find(m, func(n *virtionet.Device) bool { return n.ID() == u.IfaceID })
	if d == nil {
		return config.UnknownID("iface_id", u.IfaceID, "network interface")
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.canUpdate("update of network interface " + u.IfaceID); err != nil {
		return err
	}
	iface.Limit(u.RxRateLimiter, u.TxRateLimiter)
	return nil
}

// canUpdate refuses a machine that is not there yet, or no more. A caller that holds mu has the devices stay until it is done.
func (m *Machine) canUpdate(op string) error {
	if s := m.State(); s != config.Running && s != config.Paused {
		return m.wrongState(op)
	}
	return nil
}

// find gives the device of a type that is the one. The list of devices does not change after New.
func find[T any](m *Machine, is func(T) bool) (*device, T) {
	for _, d := range m.devices {
		if t, ok := d.dev.(T); ok && is(t) {
			return d, t
		}
	}
	var none T
	return nil, none
}
