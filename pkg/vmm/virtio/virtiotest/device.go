package virtiotest

import (
	"os"
	"testing"
	"time"

	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/memory"
	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/virtio"
	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/virtio/queue"
)

// Timeout bounds each wait of a test for its device.
const Timeout = 20 * time.Second

// Machine is a device with a driver: guest RAM, a ring for each queue, interrupts.
type Machine struct {
	TB    testing.TB
	Dev   virtio.Device
	Mem   *memory.Memory
	Rings []*Ring
	// Arena is what the rings leave of guest RAM.
	Arena *Arena
	// Config yields after a configuration interrupt.
	Config chan struct{}
	// Broken has the first of the errors of queues that the device gave up.
	Broken chan error

	notify []*os.File
}

// Start activates dev with size bytes of guest RAM and all the features it offers, EVENT_IDX included. The device is reset
// when the test ends.
func Start(tb testing.TB, dev virtio.Device, size uint64) *Machine {
	tb.Helper()
	m := &Machine{TB: tb, Dev: dev, Mem: Memory(tb, size), Config: make(chan struct{}, 1), Broken: make(chan error, 1)}
	ring := uint64(virtio.FeatureEventIdx | virtio.FeatureIndirectDesc)
	if e, ok := dev.(virtio.External); ok {
		ring, m.notify = e.RingFeatures(), e.NotifyFDs()
	} else {
		for range dev.QueueSizes() {
			m.notify = append(m.notify, Eventfd(tb))
		}
	}
	m.Activate(dev.Features() | virtio.FeatureVersion1 | ring)
	tb.Cleanup(func() {
		if err := dev.Reset(); err != nil {
			tb.Error(err)
		}
	})
	return m
}

// Activate starts the device with fresh rings; it must be inactive.
func (m *Machine) Activate(features uint64) {
	m.TB.Helper()
	base := uint64(memory.PageSize)
	m.Rings = nil
	var queues []*queue.Queue
	for i, size := range m.Dev.QueueSizes() {
		r := NewRing(m.Mem, base, size, features&virtio.FeatureEventIdx != 0, m.notify[i])
		base += RingBytes(size)
		cfg := r.Cfg
		if _, ok := m.Dev.(virtio.External); ok {
			cfg.Notify = nil
		}
		q, err := queue.New(m.Mem, cfg)
		if err != nil {
			m.TB.Fatal(err)
		}
		m.Rings, queues = append(m.Rings, r), append(queues, q)
	}
	m.Arena = NewArena(base)
	irq := &interrupt{rings: m.Rings, config: m.Config, broken: m.Broken}
	if err := m.Dev.Activate(virtio.Activation{Features: features, Memory: m.Mem, Queues: queues, Interrupt: irq}); err != nil {
		m.TB.Fatal(err)
	}
}

// Bytes is the guest memory of s.
func (m *Machine) Bytes(s Span) []byte { return m.Rings[0].Bytes(s) }

// WaitUsed waits for the next used chain of a ring.
func (m *Machine) WaitUsed(r *Ring) (head uint16, written uint32) {
	m.TB.Helper()
	timed := false
	for {
		if h, n, ok := r.Used(); ok {
			return h, n
		}
		if !r.Arm() {
			continue
		}
		if r.timer == nil {
			r.timer = time.NewTimer(Timeout)
		} else if !timed {
			r.timer.Reset(Timeout)
		}
		timed = true
		select {
		case <-r.Interrupted():
		case <-r.timer.C:
			m.TB.Fatalf("device used no chain of the queue at %#x within %v", r.Cfg.Desc, Timeout)
		}
	}
}

// WantBlocked fails the test if the device uses a chain of r though it should not for long. It says so only if the device is quick.
func (m *Machine) WantBlocked(r *Ring) {
	m.TB.Helper()
	time.Sleep(20 * time.Millisecond)
	if head, _, ok := r.Used(); ok {
		m.TB.Fatalf("device used chain %d, and should have waited", head)
	}
}

// Do makes a chain available and waits until it was used.
func (m *Machine) Do(r *Ring, readable, writable []Span) (written uint32) {
	m.TB.Helper()
	head, ok := r.Add(readable, writable)
	if !ok {
		m.TB.Fatal("no free descriptors")
	}
	r.Kick()
	got, written := m.WaitUsed(r)
	if got != head {
		m.TB.Fatalf("device used chain %d, want %d", got, head)
	}
	return written
}

type interrupt struct {
	rings  []*Ring
	config chan struct{}
	broken chan error
}

func (i *interrupt) Queue() {
	for _, r := range i.rings {
		r.Interrupt()
	}
}

func (i *interrupt) Config() {
	select {
	case i.config <- struct{}{}:
	default:
	}
}

func (i *interrupt) Broken(err error) {
	select {
	case i.broken <- err:
	default:
	}
}
