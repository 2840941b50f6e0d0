package virtio_test

import (
	"errors"
	"testing"
	"time"

	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/virtio"
	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/virtio/queue"
	vt "github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/virtio/virtiotest"
)

// one is the smallest device: its requests do what handle does.
type one struct {
	worker virtio.Worker
	handle virtio.Handler
}

func (*one) Type() uint32               { return 1 }
func (*one) Features() uint64           { return 0 }
func (*one) QueueSizes() []uint16       { return []uint16{8} }
func (*one) ReadConfig(uint64, []byte)  {}
func (*one) WriteConfig(uint64, []byte) {}
func (d *one) Reset() error             { return d.worker.Stop() }
func (d *one) Activate(a virtio.Activation) error {
	return d.worker.Start("one", a.Queues[0], a.Interrupt, d.handle)
}

func TestWorker(t *testing.T) {
	d := &one{handle: func(c *queue.Chain) (uint32, error) { return uint32(c.WritableLen()), nil }}
	m := vt.Start(t, d, 1<<20)
	for range 3 {
		if n := m.Do(m.Rings[0], nil, []vt.Span{m.Arena.Alloc(7)}); n != 7 {
			t.Fatalf("%d bytes written, want 7", n)
		}
		for range 2 {
			if err := d.Reset(); err != nil {
				t.Fatal(err)
			}
		}
		m.Activate(0)
	}
	if err := d.Activate(virtio.Activation{Queues: []*queue.Queue{nil}}); err == nil {
		t.Error("activated without a queue")
	}
	// A chain outside guest RAM.
	m.Rings[0].Add(nil, []vt.Span{{Addr: 1 << 40, Len: 1}})
	m.Rings[0].Kick()
	select {
	case err := <-m.Broken:
		if !errors.Is(err, queue.ErrBroken) {
			t.Error(err)
		}
	case <-time.After(vt.Timeout):
		t.Error("nobody was told of the broken queue")
	}
}

// TestBusyWorker has the host hold a request up: a reset does not wait for ever, guest memory is said to be in use, and the
// device does not start again until the request has ended.
func TestBusyWorker(t *testing.T) {
	entered, release := make(chan struct{}), make(chan struct{})
	d := &one{handle: func(*queue.Chain) (uint32, error) {
		close(entered)
		<-release
		return 0, queue.ErrStopped
	}}
	m := vt.Start(t, d, 1<<20)
	m.Rings[0].Add(nil, []vt.Span{m.Arena.Alloc(1)})
	m.Rings[0].Kick()
	<-entered
	begin := time.Now()
	if err := d.Reset(); !errors.Is(err, virtio.ErrBusy) {
		t.Errorf("reset: %v", err)
	}
	if took := time.Since(begin); took < virtio.ResetTimeout || took > virtio.ResetTimeout+time.Second {
		t.Errorf("reset took %v, want %v", took, virtio.ResetTimeout)
	}
	begin = time.Now()
	if err := d.Reset(); !errors.Is(err, virtio.ErrBusy) {
		t.Errorf("second reset: %v", err)
	}
	q, err := queue.New(m.Mem, m.Rings[0].Cfg)
	if err != nil {
		t.Fatal(err)
	}
	if err := d.Activate(virtio.Activation{Queues: []*queue.Queue{q}}); !errors.Is(err, virtio.ErrBusy) {
		t.Errorf("activated while busy: %v", err)
	}
	if took := time.Since(begin); took > time.Second {
		t.Errorf("a busy device held its driver up again, for %v", took)
	}
	close(release)
	for begin := time.Now(); d.Reset() != nil; time.Sleep(time.Millisecond) {
		if time.Since(begin) > vt.Timeout {
			t.Fatal("still busy though the request has ended")
		}
	}
	m.Activate(0)
}
