package vmm

import (
	"errors"
	"fmt"
	"io"
	"slices"

	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/boot"
	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/config"
	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/virtio"
	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/virtio/balloon"
	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/virtio/block"
	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/virtio/fs"
	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/virtio/mmio"
	virtionet "github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/virtio/net"
	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/virtio/rng"
	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/virtio/vsock"
)

// device is a virtio device at its place in the machine.
type device struct {
	name      string
	dev       virtio.Device
	transport *mmio.Transport
	irq       *irqLine
	window    boot.Window
}

// Close ends the device. Its registers may still be accessed.
func (d *device) Close() error {
	var errs []error
	if d.transport != nil {
		errs = append(errs, d.transport.Close())
	}
	if c, ok := d.dev.(io.Closer); ok {
		errs = append(errs, c.Close())
	}
	if d.irq != nil {
		errs = append(errs, d.irq.Close())
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("%s: %w", d.name, err)
	}
	return nil
}

// addDevices makes all virtio devices, in the order of their windows: the root drive first, so that it is /dev/vda.
func (m *Machine) addDevices(cfg *config.VM) error {
	for _, d := range rootFirst(cfg.Drives) {
		if d.Socket != "" {
			if err := m.addBackend(d.DriveID); err != nil {
				return err
			}
			continue
		}
		dev, err := block.New(d)
		if err != nil {
			return &inputError{err: err}
		}
		if err := m.addDevice("drive "+d.DriveID, dev); err != nil {
			return err
		}
	}
	for _, n := range cfg.NetworkInterfaces {
		dev, err := virtionet.New(n)
		if err != nil {
			return &inputError{err: err}
		}
		m.answerMetadata(cfg, dev)
		if err := m.addDevice("network interface "+n.IfaceID, dev); err != nil {
			return err
		}
	}
	if cfg.Vsock != nil {
		dev, err := vsock.New(*cfg.Vsock)
		if err != nil {
			return &inputError{err: err}
		}
		if err := m.addDevice("vsock", dev); err != nil {
			return err
		}
	}
	if cfg.Entropy != nil {
		dev, err := rng.New(*cfg.Entropy)
		if err != nil {
			return &inputError{err: err}
		}
		if err := m.addDevice("entropy", dev); err != nil {
			return err
		}
	}
	for _, f := range cfg.Filesystems {
		if f.Socket != "" {
			if err := m.addDevice("filesystem "+f.FSID, take(m.backends.filesystems, f.FSID)); err != nil {
				return err
			}
			continue
		}
		dev, err := fs.New(f, len(cfg.Filesystems))
		if err != nil {
			return &inputError{field: "filesystems/" + f.FSID + "/path_on_host", err: err}
		}
		if err := m.addDevice("filesystem "+f.FSID, dev); err != nil {
			return err
		}
	}
	if cfg.Balloon != nil {
		dev, err := balloon.New(*cfg.Balloon)
		if err != nil {
			return &inputError{err: err}
		}
		if err := m.addDevice("balloon", dev); err != nil {
			return err
		}
	}
	return nil
}

func rootFirst(drives []config.Drive) []config.Drive {
	return slices.SortedStableFunc(slices.Values(drives), func(a, b config.Drive) int {
		switch {
		case a.IsRootDevice == b.IsRootDevice:
			return 0
		case a.IsRootDevice:
			return -1
		}
		return 1
	})
}

// addDevice puts dev, which m owns from here on, at the next window.
func (m *Machine) addDevice(name string, dev virtio.Device) error {
	n := uint32(len(m.devices))
	d := &device{name: name, dev: dev, window: boot.Window{Addr: virtioAddr + n*mmio.WindowSize, Size: mmio.WindowSize, GSI: firstGSI + n}}
	if err := m.connect(d); err != nil {
		return errors.Join(fmt.Errorf("%s: %w", name, err), d.Close())
	}
	m.devices = append(m.devices, d)
	return nil
}

// connect gives d its interrupt, its registers and its queues' notifications.
func (m *Machine) connect(d *device) (err error) {
	if d.window.GSI > lastGSI {
		return fmt.Errorf("no interrupt is left: want at most %d virtio devices", lastGSI-firstGSI+1)
	}
	d.irq = newIRQLine(m.vm, d.window.GSI)
	if d.transport, err = mmio.New(d.dev, m.mem, d.irq); err != nil {
		return err
	}
	d.countActivations()
	for i, f := range d.transport.NotifyFDs() {
		if d.transport.NeedsExit(i) {
			continue
		}
		if err := m.vm.Ioeventfd(f, uint64(d.window.Addr)+mmio.NotifyOffset, uint32(i)); err != nil {
			return fmt.Errorf("queue %d: %w", i, err)
		}
	}
	return nil
}

// rootArguments is what the kernel's command line says of the root drive.
func rootArguments(cfg *config.VM) string {
	for _, d := range cfg.Drives {
		if !d.IsRootDevice {
			continue
		}
		root := "/dev/vda"
		if d.PartUUID != "" {
			root = "PARTUUID=" + d.PartUUID
		}
		if d.IsReadOnly {
			return " root=" + root + " ro"
		}
		return " root=" + root + " rw"
	}
	return ""
}
