package vmm

import (
	"errors"
	"testing"

	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/memory"
	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/virtio"
	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/virtio/mmio"
)

// busyDevice is one whose last request the host holds up.
type busyDevice struct{ virtio.Device }

func (busyDevice) Features() uint64     { return 0 }
func (busyDevice) QueueSizes() []uint16 { return nil }
func (busyDevice) Reset() error         { return virtio.ErrBusy }

// TestReleaseLeavesBusyMemory: guest RAM that a device's request still writes to stays mapped.
func TestReleaseLeavesBusyMemory(t *testing.T) {
	mem, err := memory.New(1<<20, memory.HostPages)
	if err != nil {
		t.Fatal(err)
	}
	tr, err := mmio.New(busyDevice{}, mem, nil)
	if err != nil {
		t.Fatal(err)
	}
	m := &Machine{mem: mem, devices: []*device{{name: "busy", dev: busyDevice{}, transport: tr}}}
	if err := m.release(true); !errors.Is(err, virtio.ErrBusy) {
		t.Errorf("release: %v", err)
	}
	if len(mem.Regions()) == 0 {
		t.Fatal("guest RAM has been unmapped")
	}
	mem.Regions()[0].Mem[0] = 1
	if err := mem.Close(); err != nil {
		t.Error(err)
	}
}
