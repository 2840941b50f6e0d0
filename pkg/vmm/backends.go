package vmm

import (
	"context"
	"errors"
	"sync"

	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/config"
	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/virtio/vhostuser"
)

// backends are the connections with the processes that serve devices, by the ids of drives and file systems.
type backends struct {
	mu          sync.Mutex // connections are made side by side
	drives      map[string]*vhostuser.Drive
	filesystems map[string]*vhostuser.Filesystem
}

// connectBackends connects to all of them at once, and has cfg tell which drives are read-only: the kernel's command line depends on it.
func (m *Machine) connectBackends(ctx context.Context, cfg *config.VM) error {
	m.backends.drives, m.backends.filesystems = make(map[string]*vhostuser.Drive), make(map[string]*vhostuser.Filesystem)
	errs := make([]error, len(cfg.Drives)+len(cfg.Filesystems))
	var connecting sync.WaitGroup
	for i := range cfg.Drives {
		if d := &cfg.Drives[i]; d.Socket != "" {
			connecting.Go(func() {
				b, err := dialBackend(ctx, &m.backends, m.backends.drives, d.DriveID, *d, vhostuser.NewDrive)
				if errs[i] = err; err == nil {
					d.IsReadOnly = b.ReadOnly()
				}
			})
		}
	}
	for i := range cfg.Filesystems {
		if f := &cfg.Filesystems[i]; f.Socket != "" {
			connecting.Go(func() {
				_, errs[len(cfg.Drives)+i] = dialBackend(ctx, &m.backends, m.backends.filesystems, f.FSID, *f, vhostuser.NewFilesystem)
			})
		}
	}
	connecting.Wait()
	if err := errors.Join(errs...); err != nil {
		return &inputError{err: err}
	}
	return nil
}

// dialBackend makes one of the connections, and notes it.
func dialBackend[T, C any](ctx context.Context, b *backends, all map[string]T, id string, cfg C, dial func(context.Context, C) (T, error)) (T, error) {
	dev, err := dial(ctx, cfg)
	if err == nil {
		b.mu.Lock()
		defer b.mu.Unlock()
		all[id] = dev
	}
	return dev, err
}

// take gives the connection of a device that owns it from here on.
func take[T any](all map[string]T, id string) T {
	dev := all[id]
	delete(all, id)
	return dev
}

// close closes those that have not become devices.
func (b *backends) close() error {
	var errs []error
	for _, d := range b.drives {
		errs = append(errs, d.Close())
	}
	for _, f := range b.filesystems {
		errs = append(errs, f.Close())
	}
	return errors.Join(errs...)
}

// addBackend puts a drive that another process serves at the next window.
func (m *Machine) addBackend(id string) error {
	b := take(m.backends.drives, id)
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
