package mmio

import (
	"bytes"
	"encoding/binary"
	"errors"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/containerd/log"

	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/virtio"
	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/virtio/queue"
	vt "github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/virtio/virtiotest"
)

// echo is a device with two queues: it gives each chain back as it is.
type echo struct {
	fail   error
	busy   error
	active virtio.Activation
	conf   [8]byte
	wg     sync.WaitGroup
	resets int
}

func (*echo) Type() uint32         { return 42 }
func (*echo) Features() uint64     { return 1<<3 | 1<<40 }
func (*echo) QueueSizes() []uint16 { return []uint16{64, 8} }
func (d *echo) ReadConfig(off uint64, p []byte) {
	clear(p)
	if off < uint64(len(d.conf)) {
		copy(p, d.conf[off:])
	}
}
func (d *echo) WriteConfig(off uint64, p []byte) {
	if off < uint64(len(d.conf)) {
		copy(d.conf[off:], p)
	}
}
func (d *echo) Activate(a virtio.Activation) error {
	if d.fail != nil {
		return d.fail
	}
	d.active = a
	for _, q := range a.Queues {
		if q != nil {
			d.wg.Go(func() { d.serve(q) })
		}
	}
	return nil
}
func (d *echo) serve(q *queue.Queue) {
	var c queue.Chain
	for q.Wait() == nil {
		for {
			ok, err := q.Pop(&c)
			if err != nil {
				return
			}
			if !ok {
				break
			}
			q.Push(c.Head, 0)
			if q.NeedsInterrupt() {
				d.active.Interrupt.Queue()
			}
		}
	}
}
func (d *echo) Reset() error {
	d.resets++
	for _, q := range d.active.Queues {
		if q != nil {
			q.Stop()
		}
	}
	d.wg.Wait()
	d.active = virtio.Activation{}
	return d.busy
}

type line struct {
	n    atomic.Int32
	wake chan struct{}
}

func (l *line) Trigger() {
	l.n.Add(1)
	select {
	case l.wake <- struct{}{}:
	default:
	}
}

type driver struct {
	testing.TB
	*Transport
	irq line
}

func newDriver(tb testing.TB, dev virtio.Device) *driver {
	d := &driver{TB: tb, irq: line{wake: make(chan struct{}, 1)}}
	t, err := New(dev, vt.Memory(tb, 1<<20), &d.irq)
	if err != nil {
		tb.Fatal(err)
	}
	d.Transport = t
	tb.Cleanup(func() {
		if err := t.Close(); err != nil {
			tb.Error(err)
		}
	})
	return d
}

func (d *driver) get(off uint64) uint32 {
	var p [4]byte
	d.Read(off, p[:])
	return binary.LittleEndian.Uint32(p[:])
}

func (d *driver) set(off uint64, v uint32) {
	var p [4]byte
	binary.LittleEndian.PutUint32(p[:], v)
	d.Write(off, p[:])
}

func (d *driver) want(off uint64, want uint32) {
	d.Helper()
	if got := d.get(off); got != want {
		d.Fatalf("register %#x: %#x, want %#x", off, got, want)
	}
}

func (d *driver) negotiate(features uint64) {
	d.set(regStatus, statusAcknowledge)
	d.set(regStatus, statusAcknowledge|statusDriver)
	for i := range uint32(2) {
		d.set(regDriverFeaturesSel, i)
		d.set(regDriverFeatures, uint32(features>>(32*i)))
	}
	d.set(regStatus, statusAcknowledge|statusDriver|statusFeaturesOK)
}

func (d *driver) setQueue(i uint32, cfg queue.Config) {
	d.set(regQueueSel, i)
	d.set(regQueueNum, uint32(cfg.Size))
	d.set(regQueueDescLow, uint32(cfg.Desc))
	d.set(regQueueDescHigh, uint32(cfg.Desc>>32))
	d.set(regQueueDriverLow, uint32(cfg.Avail))
	d.set(regQueueDriverHigh, uint32(cfg.Avail>>32))
	d.set(regQueueDeviceLow, uint32(cfg.Used))
	d.set(regQueueDeviceHigh, uint32(cfg.Used>>32))
	d.set(regQueueReady, 1)
}

const (
	running = statusAcknowledge | statusDriver | statusFeaturesOK | statusDriverOK
	wanted  = 1<<3 | virtio.FeatureVersion1 | virtio.FeatureEventIdx
)

func TestIdentity(t *testing.T) {
	d := newDriver(t, &echo{})
	d.want(regMagic, 0x74726976)
	d.want(regVersion, 2)
	d.want(regDeviceID, 42)
	d.want(regDeviceFeatures, 1<<3|1<<28|1<<29)
	d.set(regDeviceFeaturesSel, 1)
	d.want(regDeviceFeatures, 1|1<<8)
	d.set(regDeviceFeaturesSel, 2)
	d.want(regDeviceFeatures, 0)
	d.want(regQueueNumMax, 64)
	d.set(regQueueSel, 1)
	d.want(regQueueNumMax, 8)
	d.set(regQueueSel, 2)
	d.want(regQueueNumMax, 0)
	d.want(regSHMLenLow, 0xffffffff)
	d.want(0x100, 0)
}

func TestAccessWidths(t *testing.T) {
	d := newDriver(t, &echo{})
	for n := range 9 {
		for off := range uint64(16) {
			p := make([]byte, n)
			for i := range p {
				p[i] = 0xaa
			}
			d.Read(off, p)
			for i, b := range p {
				if (n != 4 || off%4 != 0) && b != 0 {
					t.Fatalf("read of %d bytes at %d: byte %d is %#x", n, off, i, b)
				}
			}
		}
	}
	d.Write(regStatus, []byte{1})
	d.Write(regStatus+1, []byte{1, 0, 0, 0})
	d.Write(regStatus, []byte{1, 0, 0, 0, 0, 0, 0, 0})
	d.want(regStatus, 0)
	d.Write(regConfig+3, []byte{0x55})
	d.want(regConfig, 0x55<<24)
	p := make([]byte, 2)
	if d.Read(regConfig+3, p); p[0] != 0x55 {
		t.Fatalf("config: %x", p)
	}
	d.Read(1<<63, p)
	d.Write(1<<63, p)
}

func TestNegotiation(t *testing.T) {
	for _, tc := range []struct {
		name     string
		features uint64
		ok       bool
	}{
		{"all", 1<<3 | 1<<40 | virtio.FeatureVersion1 | virtio.FeatureEventIdx | virtio.FeatureIndirectDesc, true},
		{"least", virtio.FeatureVersion1, true},
		{"legacy", 1 << 3, false},
		{"unknown", virtio.FeatureVersion1 | 1<<4, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			dev := &echo{}
			d := newDriver(t, dev)
			d.negotiate(tc.features)
			if ok := d.get(regStatus)&statusFeaturesOK != 0; ok != tc.ok {
				t.Fatalf("FEATURES_OK: %v, want %v", ok, tc.ok)
			}
			d.set(regDriverFeaturesSel, 0)
			d.set(regDriverFeatures, 0xffffffff) // too late when FEATURES_OK
			d.set(regStatus, statusAcknowledge|statusDriver|statusDriverOK)
			if active := dev.active.Memory != nil; active != tc.ok {
				t.Fatalf("active: %v, want %v", active, tc.ok)
			}
			if tc.ok && dev.active.Features != tc.features {
				t.Fatalf("features %#x, want %#x", dev.active.Features, tc.features)
			}
		})
	}
}

func TestLife(t *testing.T) {
	dev := &echo{}
	d := newDriver(t, dev)
	for range 3 {
		d.negotiate(wanted)
		r := vt.NewRing(d.mem, 4096, 16, true, d.NotifyFDs()[0])
		d.setQueue(0, r.Cfg)
		d.want(regQueueReady, 1)
		d.set(regStatus, running)
		d.want(regStatus, running)
		if dev.active.Queues[0] == nil || dev.active.Queues[1] != nil {
			t.Fatal("want queue 0 alone")
		}
		d.set(regQueueReady, 0) // too late
		d.want(regQueueReady, 1)
		r.Arm()
		r.Add([]vt.Span{{Addr: 0x20000, Len: 1}}, nil)
		d.set(regQueueNotify, 0)
		d.set(regQueueNotify, 7)
		select {
		case <-d.irq.wake:
		case <-time.After(vt.Timeout):
			t.Fatal("no interrupt")
		}
		d.want(regInterruptStatus, interruptQueue)
		d.set(regInterruptACK, interruptQueue)
		d.want(regInterruptStatus, 0)
		if _, _, ok := r.Used(); !ok {
			t.Fatal("no used chain")
		}
		generation := d.get(regConfigGeneration)
		dev.active.Interrupt.Config()
		<-d.irq.wake
		d.want(regInterruptStatus, interruptConfig)
		d.want(regConfigGeneration, generation+1)
		d.set(regStatus, 0)
		d.want(regStatus, 0)
		d.want(regInterruptStatus, 0)
		d.want(regQueueReady, 0)
		if dev.active.Memory != nil {
			t.Fatal("still active after reset")
		}
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	d.set(regQueueNotify, 0)
	d.negotiate(wanted)
	d.want(regStatus, 0)
}

func TestNeedsReset(t *testing.T) {
	good := vt.NewRing(vt.Memory(t, 1<<20), 4096, 16, true, nil).Cfg
	for _, tc := range []struct {
		name string
		fail error
		cfg  func(c *queue.Config)
	}{
		{"device refuses", errors.New("no"), func(*queue.Config) {}},
		{"queue too large", nil, func(c *queue.Config) { c.Size = 128 }},
		{"no size", nil, func(c *queue.Config) { c.Size = 0 }},
		{"outside RAM", nil, func(c *queue.Config) { c.Used = 1 << 40 }},
	} {
		t.Run(tc.name, func(t *testing.T) {
			d := newDriver(t, &echo{fail: tc.fail})
			cfg := good
			tc.cfg(&cfg)
			d.negotiate(wanted)
			d.setQueue(0, cfg)
			d.set(regStatus, running)
			d.want(regStatus, running|statusNeedsReset)
			d.want(regInterruptStatus, interruptConfig)
			d.set(regStatus, 0)
			d.want(regStatus, 0)
		})
	}
}

// A device whose requests the host holds up is not reset, and who closes it learns that guest memory must stay.
func TestBusy(t *testing.T) {
	dev := &echo{busy: virtio.ErrBusy}
	tr, err := New(dev, vt.Memory(t, 1<<20), &line{wake: make(chan struct{}, 1)})
	if err != nil {
		t.Fatal(err)
	}
	d := &driver{TB: t, Transport: tr}
	d.negotiate(wanted)
	d.set(regStatus, 0)
	d.want(regStatus, statusNeedsReset)
	dev.busy = nil
	d.set(regStatus, 0)
	d.want(regStatus, 0)
	dev.busy = virtio.ErrBusy
	if err := d.Close(); !errors.Is(err, virtio.ErrBusy) {
		t.Fatalf("Close: %v", err)
	}
}

// What a guest can do again and again is logged once.
func TestLogOnce(t *testing.T) {
	var out bytes.Buffer
	old := log.L.Logger.Out
	log.L.Logger.SetOutput(&out)
	defer log.L.Logger.SetOutput(old)
	dev := &echo{}
	d := newDriver(t, dev)
	r := vt.NewRing(d.mem, 4096, 16, true, d.NotifyFDs()[0])
	for range 5 {
		d.negotiate(wanted)
		d.setQueue(0, r.Cfg)
		d.set(regStatus, running)
		dev.active.Interrupt.Broken(errors.New("descriptor 17 of 16"))
		d.set(regStatus, 0)
		dev.fail = errors.New("no")
		d.negotiate(wanted)
		d.set(regStatus, running)
		d.set(regStatus, 0)
		dev.fail = nil
	}
	if n := strings.Count(out.String(), "\n"); n != 2 || !strings.Contains(out.String(), "descriptor 17 of 16") {
		t.Errorf("%d lines logged, want one of each kind:\n%s", n, out.String())
	}
}

// FuzzMMIO plays any sequence of accesses, with the device's own goroutines at work. Each step takes eight bytes: what
// to do, a width, an offset, a value.
func FuzzMMIO(f *testing.F) {
	var script []byte
	step := func(op byte, off uint16, v uint32) {
		script = append(script, op, 4)
		script = binary.LittleEndian.AppendUint16(script, off)
		script = binary.LittleEndian.AppendUint32(script, v)
	}
	life := func() {
		step(1, regStatus, 3)
		step(1, regDriverFeaturesSel, 1)
		step(1, regDriverFeatures, 1)
		step(1, regStatus, 11)
		step(1, regQueueNum, 8)
		step(1, regQueueDescLow, 0x1000)
		step(1, regQueueDriverLow, 0x2000)
		step(1, regQueueDeviceLow, 0x3000)
		step(1, regQueueReady, 1)
		step(1, regStatus, 15)
		step(2, 0x2002, 1) // one chain
		step(1, regQueueNotify, 0)
		step(0, regInterruptStatus, 0)
		step(1, regInterruptACK, 3)
	}
	life()
	f.Add(script)
	step(1, regStatus, 0)
	life()
	step(3, 0, 0)
	life()
	f.Add(script)
	f.Add([]byte{0, 8, 0, 1, 0, 0, 0, 0, 1, 2, 0xff, 0xff, 1, 2, 3, 4})

	f.Fuzz(func(t *testing.T, script []byte) {
		if len(script) > 8*256 {
			return
		}
		dev := &echo{}
		d := newDriver(t, dev)
		var p [16]byte
		for ; len(script) >= 8; script = script[8:] {
			off := uint64(binary.LittleEndian.Uint16(script[2:]))
			buf := p[:script[1]&15]
			copy(buf, script[4:8])
			switch script[0] & 3 {
			case 0:
				d.Read(off, buf)
			case 1:
				d.Write(off, buf)
			case 2: // guest memory
				if m, err := d.mem.Slice(off, 4); err == nil {
					copy(m, script[4:8])
				}
			case 3:
				d.set(regStatus, 0)
				if dev.active.Memory != nil || d.get(regStatus) != 0 {
					t.Fatal("active after reset")
				}
			}
			if s := d.get(regStatus); s&statusDriverOK != 0 && s&statusFeaturesOK == 0 {
				t.Fatalf("status %#x: DRIVER_OK without FEATURES_OK", s)
			}
		}
	})
}
