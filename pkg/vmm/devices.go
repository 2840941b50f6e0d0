package vmm

import (
	"errors"
	"fmt"
	"io"

	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/boot"
	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/config"
	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/virtio"
	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/virtio/mmio"
)

// closer is a virtio device that holds something of the host's.
type closer interface {
	virtio.Device
	io.Closer
}

// device is a virtio device at its place in the machine.
type device struct {
	name      string
	dev       closer
	transport *mmio.Transport
	irq       *irqLine
	window    boot.Window
}

// Close ends the device. Its registers may still be accessed.
func (d *device) Close() error {
	if err := errors.Join(d.transport.Close(), d.dev.Close(), d.irq.Close()); err != nil {
		return fmt.Errorf("%s: %w", d.name, err)
	}
	return nil
}

// addDevices makes all virtio devices, in the order of their windows: the root drive first, so that it is /dev/vda.
func (m *Machine) addDevices(cfg *config.VM) error {
	return nil
}

// addDevice puts dev, which m owns from here on, at the next window.
func (m *Machine) addDevice(name string, dev closer) error {
	n := uint32(len(m.devices))
	d := &device{name: name, dev: dev, window: boot.Window{Addr: virtioAddr + n*mmio.WindowSize, Size: mmio.WindowSize, GSI: firstGSI + n}}
	fail := func(err error) error {
		if d.transport != nil {
			err = errors.Join(err, d.transport.Close())
		}
		if d.irq != nil {
			err = errors.Join(err, d.irq.Close())
		}
		return fmt.Errorf("%s: %w", name, errors.Join(err, dev.Close()))
	}
	if d.window.GSI > lastGSI {
		return fail(fmt.Errorf("no interrupt is left: at most %d devices", lastGSI-firstGSI+1))
	}
	var err error
	if d.irq, err = newIRQLine(m.vm, d.window.GSI); err != nil {
		return fail(err)
	}
	if d.transport, err = mmio.New(dev, m.mem, d.irq); err != nil {
		return fail(err)
	}
	for i, f := range d.transport.NotifyFDs() {
		if err := m.vm.Ioeventfd(f, uint64(d.window.Addr)+mmio.NotifyOffset, uint32(i)); err != nil {
			return fail(fmt.Errorf("queue %d: %w", i, err))
		}
	}
	m.devices = append(m.devices, d)
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
