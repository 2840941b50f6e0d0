package vhostuser_test

import (
	"context"
	"encoding/binary"
	"errors"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/config"
	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/virtio"
	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/virtio/mmio"
	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/virtio/queue"
	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/virtio/vhostuser"
	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/virtio/vhostuser/vhosttest"
	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/virtio/vhostuser/wire"
	vt "github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/virtio/virtiotest"
)

// echo is a device with two queues and 60 bytes of configuration that a driver may write.
type echo struct {
	queues [2]virtio.Worker
	mu     sync.Mutex
	space  [60]byte
}

func (*echo) Type() uint32         { return virtio.TypeFS }
func (*echo) Features() uint64     { return 1<<9 | 1<<11 | 1<<40 }
func (*echo) QueueSizes() []uint16 { return []uint16{8, 16} }
func (e *echo) ReadConfig(off uint64, p []byte) {
	clear(p)
	e.mu.Lock()
	defer e.mu.Unlock()
	if off < uint64(len(e.space)) {
		copy(p, e.space[off:])
	}
}
func (e *echo) WriteConfig(off uint64, p []byte) {
	e.mu.Lock()
	defer e.mu.Unlock()
	copy(e.space[off:], p)
}
func (e *echo) Activate(a virtio.Activation) error {
	for i := range e.queues {
		n := uint32(i + 1)
		if err := e.queues[i].Start("echo", a.Queues[i], a.Interrupt, func(*queue.Chain) (uint32, error) { return n, nil }); err != nil {
			return err
		}
	}
	return nil
}
func (e *echo) Reset() error {
	for i := range e.queues {
		if err := e.queues[i].Stop(); err != nil {
			return err
		}
	}
	return nil
}

func sharedFS(path string) vhostuser.Config {
	space := make([]byte, 40)
	copy(space, "tag")
	return vhostuser.Config{Name: "share", Socket: path, Type: virtio.TypeFS, QueueSizes: []uint16{8, 16}, Space: space}
}

// TestQueues is what a file system needs: two queues, a configuration space of the VMM's own, a back-end with or without what it has no
// use for.
func TestQueues(t *testing.T) {
	for _, protocol := range []uint64{wire.ProtocolMQ, ^uint64(0)} {
		path, _, _ := serve(t, &vhosttest.Backend{Dev: &echo{}, Protocol: func(f uint64) uint64 { return f & protocol }})
		d, err := vhostuser.New(context.Background(), sharedFS(path))
		if err != nil {
			t.Fatal(err)
		}
		defer d.Close()
		var p [5]byte
		if d.ReadConfig(0, p[:]); string(p[:]) != "tag\x00\x00" || d.Features() != 0 || d.Type() != virtio.TypeFS {
			t.Errorf("tag %q, features %#x", p, d.Features())
		}
		m := vt.Start(t, d, 1<<20)
		for i, r := range m.Rings {
			for range 20 {
				if n := m.Do(r, nil, []vt.Span{m.Arena.Alloc(64)}); n != uint32(i+1) {
					t.Errorf("queue %d: answer %d", i, n)
				}
			}
		}
	}
}

func TestTooFewQueues(t *testing.T) {
	for want, b := range map[string]*vhosttest.Backend{
		"it has 1 queues: want at least 2": {Protocol: func(uint64) uint64 { return 0 }},
		"it has 3 queues: want at least 4": {Queues: 3},
	} {
		b.Dev = &echo{}
		path, _, _ := serve(t, b)
		cfg := sharedFS(path)
		if b.Queues > 0 {
			cfg.QueueSizes = []uint16{8, 8, 8, 8}
		}
		if _, err := vhostuser.New(context.Background(), cfg); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q in it", err, want)
		}
	}
}

type line chan struct{}

func (l line) Trigger() {
	select {
	case l <- struct{}{}:
	default:
	}
}

// driver is a driver's access to the registers of a transport.
type driver struct {
	t *mmio.Transport
}

func (d driver) read(off uint64) uint32 {
	var p [4]byte
	d.t.Read(off, p[:])
	return binary.LittleEndian.Uint32(p[:])
}

func (d driver) write(off uint64, v uint32) {
	d.t.Write(off, binary.LittleEndian.AppendUint32(nil, v))
}

// begin takes the steps up to DRIVER_OK.
func (d driver) begin() {
	d.write(0x070, 3)
	d.write(0x024, 1)
	d.write(0x020, 1) // VERSION_1
	d.write(0x070, 11)
	for i, v := range map[uint64]uint32{0x038: 8, 0x080: 4096, 0x090: 8192, 0x0a0: 12288} {
		d.write(i, v)
	}
	d.write(0x044, 1)
	d.write(0x070, 15)
}

const (
	regStatus, regGeneration, regInterrupt, regSpace = 0x070, 0x0fc, 0x060, 0x100
	needsReset                                       = 64
)

// TestRegisters is the device behind registers: features that the back-end lacks are not offered, a new size comes with a new generation
// and an interrupt, and a back-end that dies sets DEVICE_NEEDS_RESET.
func TestRegisters(t *testing.T) {
	file, dev := disk(t, config.Drive{})
	b := &vhosttest.Backend{Dev: dev, Features: func(f uint64) uint64 { return f &^ virtio.FeatureEventIdx }}
	path, hangUp, _ := serve(t, b)
	d := connect(t, path, "")
	irq := make(line, 1)
	tr, err := mmio.New(d, vt.Memory(t, 1<<20), irq)
	if err != nil {
		t.Fatal(err)
	}
	defer tr.Close()
	r := driver{tr}
	if f := r.read(0x010); f&virtio.FeatureEventIdx != 0 || f&virtio.FeatureIndirectDesc == 0 || uint64(f)&wire.FeatureProtocol != 0 {
		t.Errorf("features %#x", f)
	}
	grow := func(size int64) {
		t.Helper()
		if err := os.Truncate(file, size); err != nil {
			t.Fatal(err)
		}
		n, err := dev.Open(file)
		if err != nil {
			t.Fatal(err)
		}
		dev.Swap(n).Close()
	}
	await := func(what string) {
		t.Helper()
		select {
		case <-irq:
		case <-time.After(vt.Timeout):
			t.Fatalf("no interrupt for %s", what)
		}
	}
	// Before there is a driver: a change that nobody has asked to hear of, then one that the transport hears of.
	if err := b.Changed(); err != nil {
		t.Fatal(err)
	}
	d.OnConfigChange(func() {
		apply, err := d.Refresh(context.Background())
		if err != nil {
			t.Error(err)
			return
		}
		tr.Reconfigure(apply)
	})
	generation := r.read(regGeneration)
	grow(128 << 10)
	if err := b.Changed(); err != nil {
		t.Fatal(err)
	}
	if n := r.read(regSpace); n != 256 || r.read(regGeneration) == generation {
		t.Errorf("%d sectors, generation %d", n, r.read(regGeneration))
	}
	r.begin()
	if s := r.read(regStatus); s != 15 {
		t.Fatalf("status %#x", s)
	}
	if err := b.Call(0); err != nil {
		t.Fatal(err)
	}
	await("a call")
	r.write(0x064, r.read(regInterrupt))
	grow(192 << 10)
	if err := b.Changed(); err != nil {
		t.Fatal(err)
	}
	await("a new size")
	if n, s := r.read(regSpace), r.read(regInterrupt); n != 384 || s != 2 {
		t.Errorf("%d sectors, interrupt status %d", n, s)
	}
	r.write(0x064, 2)
	hangUp()
	await("the back-end's death")
	if s := r.read(regStatus); s != 15|needsReset || r.read(regInterrupt) != 2 {
		t.Errorf("status %#x, interrupt status %d", s, r.read(regInterrupt))
	}
	r.write(regStatus, 0)
	if s := r.read(regStatus); s != 0 {
		t.Errorf("status %#x after a reset", s)
	}
	if r.begin(); r.read(regStatus)&needsReset == 0 {
		t.Error("the device started without its back-end")
	}
}

// TestWriteConfig: one byte is the driver's, and what it has become is the back-end's word.
func TestWriteConfig(t *testing.T) {
	for _, protocol := range []uint64{wire.ProtocolConfig, ^uint64(0)} {
		e := &echo{}
		var refuse atomic.Bool
		path, _, _ := serve(t, &vhosttest.Backend{Dev: e, Protocol: func(f uint64) uint64 { return f & protocol }, Before: func(h wire.Header, p []byte) ([]byte, bool) {
			return wire.Message(h.Request, wire.FlagReply, wire.Config(0, nil)), h.Request != wire.GetConfig || !refuse.Load()
		}})
		d := connect(t, path, config.CacheWriteback)
		// What the driver sees, and what there is.
		spaces := func() (p [2][60]byte) {
			d.ReadConfig(0, p[0][:])
			e.ReadConfig(0, p[1][:])
			return p
		}
		d.WriteConfig(32, []byte{7})
		want := [2][60]byte{{32: 7}, {32: 7}}
		if got := spaces(); got != want {
			t.Errorf("% x", got)
		}
		for _, w := range []struct {
			off uint64
			n   int
		}{{0, 8}, {31, 1}, {31, 2}, {32, 2}, {33, 1}, {60, 4}, {1<<64 - 1, 1}, {1<<32 + 32, 1}} {
			d.WriteConfig(w.off, make([]byte, w.n))
		}
		if got := spaces(); got != want {
			t.Errorf("% x", got)
		}
		refuse.Store(true)
		d.WriteConfig(32, []byte{8})
		if _, err := d.Refresh(context.Background()); err == nil || !strings.Contains(err.Error(), "at offset 32") {
			t.Errorf("a back-end that has lost its configuration space goes on: %v", err)
		}
	}
}

// TestChannel: nonsense on the back-end's own channel ends the connection; a message that nobody knows is refused.
func TestChannel(t *testing.T) {
	b := &vhosttest.Backend{Dev: &echo{}}
	path, _, _ := serve(t, b)
	d := connect(t, path, "")
	changes := make(chan struct{}, 1)
	d.OnConfigChange(func() { changes <- struct{}{} })
	for _, raw := range [][]byte{wire.Message(77, 0, make([]byte, 100)), wire.Message(wire.BackendConfigChange, 0, nil)} {
		if err := b.Channel(raw); err != nil {
			t.Fatal(err)
		}
	}
	<-changes
	if err := b.Changed(); err != nil {
		t.Fatal(err)
	}
	<-changes
	if err := b.Channel(make([]byte, wire.HeaderSize)); err != nil {
		t.Fatal(err)
	}
	var err error
	for begin := time.Now(); err == nil && time.Since(begin) < vt.Timeout; {
		_, err = d.Refresh(context.Background())
	}
	if !errors.Is(err, wire.ErrMalformed) {
		t.Errorf("after nonsense: %v", err)
	}
}
