package vmm

import (
	"testing"

	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/kvm"
	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/legacy"
	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/virtio"
	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/virtio/mmio"
	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/virtio/virtiotest"
)

// still is a device that does nothing.
type still struct{}

func (still) Type() uint32                     { return 42 }
func (still) Features() uint64                 { return 0 }
func (still) QueueSizes() []uint16             { return []uint16{8} }
func (still) ReadConfig(uint64, []byte)        {}
func (still) WriteConfig(uint64, []byte)       {}
func (still) Activate(virtio.Activation) error { return nil }
func (still) Reset() error                     { return nil }
func (still) Trigger()                         {}

// BenchmarkExit is what user space does for a guest's exit: a register of the last of eight virtio devices is read, or a byte is
// written to a port. It must not allocate: a guest makes as many as it likes.
func BenchmarkExit(b *testing.B) {
	m := &Machine{i8042: legacy.NewI8042(still{}, func() {})}
	for range 8 {
		transport, err := mmio.New(still{}, virtiotest.Memory(b, 1<<20), still{})
		if err != nil {
			b.Fatal(err)
		}
		b.Cleanup(func() { transport.Close() })
		m.devices = append(m.devices, &device{transport: transport})
	}
	b.Run("mmio", func(b *testing.B) {
		const magic = 0 // the register MagicValue
		var data [4]byte
		b.ReportAllocs()
		for b.Loop() {
			m.handleMMIO(kvm.MMIO{Addr: virtioAddr + 7*mmio.WindowSize + magic, Data: data[:]})
		}
		if string(data[:]) != "virt" {
			b.Errorf("the magic value is %q", data)
		}
	})
	b.Run("port", func(b *testing.B) {
		var data [1]byte
		b.ReportAllocs()
		for b.Loop() {
			m.handleIO(kvm.IO{Port: legacy.I8042Command, Size: 1, Data: data[:]})
		}
	})
}
