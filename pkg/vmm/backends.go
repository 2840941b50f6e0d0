package vmm

import (
	"context"

	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/config"
	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/virtio/vhostuser"
)

// connectBackends connects to the processes that serve drives, and has cfg tell which of these are read-only: the kernel's command line
// depends on it.
func (m *Machine) connectBackends(ctx context.Context, cfg *config.VM) error {
	if !cfg.Shared() {
		return nil
	}
	m.backends = make(map[string]*vhostuser.Drive)
	for i := range cfg.Drives {
		d := &cfg.Drives[i]
		if d.Socket == "" {
			continue
		}
		b, err := vhostuser.NewDrive(ctx, *d)
		if err != nil {
			return &inputError{err: err}
		}
		m.backends[d.DriveID] = b
		d.IsReadOnly = b.ReadOnly()
	}
	return nil
}

// addBackend puts a drive that another process serves at the next window.
func (m *Machine) addBackend(id string) error {
	b := m.backends[id]
	delete(m.backends, id)
	if err := m.addDevice("drive "+id, b); err != nil {
		return err
	}
	d := m.devices[len(m.devices)-1]
	b.OnConfigChange(func() {
		if err := d.refresh(context.Background(), b); err != nil {
			m.log.WithField("drive", id).WithError(err).Warn("the size of a drive was not asked for again")
		}
	})
	return nil
}

// refresh asks b, which d is, for its configuration space again, and tells the guest.
func (d *device) refresh(ctx context.Context, b *vhostuser.Drive) error {
	apply, err := b.Refresh(ctx)
	if err != nil {
		return err
	}
	d.transport.Reconfigure(apply)
	return nil
}

// refreshDrive is UpdateDrive for a drive that another process serves. There is nothing to change but what that process says of it.
func (m *Machine) refreshDrive(ctx context.Context, u config.DriveUpdate) error {
	d, b := find(m, func(b *vhostuser.Drive) bool { return b.ID() == u.DriveID })
	if d == nil {
		return config.UnknownID("drive_id", u.DriveID, "drive")
	}
	if err := u.CheckFor(&config.Drive{DriveID: u.DriveID, Socket: b.Socket()}); err != nil {
		return err
	}
	m.mu.Lock()
	err := m.canUpdate("update of drive " + u.DriveID)
	m.mu.Unlock()
	if err != nil {
		return err
	}
	// Not under the lock: the back-end may take its time. A machine that ends meanwhile ends the connection.
	return d.refresh(ctx, b)
}
