// Package mmio is the virtio-mmio transport in its modern form (virtio 1.2 §4.2): it turns the driver's register accesses
// into calls of one virtio.Device. It knows no device. It must never fail, block for long or panic, whatever the guest
// reads or writes: accesses that the specification does not know read as zero and write nothing.
package mmio

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"sync"
	"sync/atomic"

	"github.com/containerd/log"
	"golang.org/x/sys/unix"

	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/memory"
	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/metrics"
	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/virtio"
	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/virtio/queue"
)

// WindowSize is the size of a device's register window, in bytes.
const WindowSize = 4096

// NotifyOffset is the register that a driver writes a queue's index to, as 32 bits, to notify the device: where an
// ioeventfd belongs, with the index as its datamatch.
const NotifyOffset = regQueueNotify

// IRQ raises the device's interrupt line. Trigger never blocks and may be called from any goroutine.
type IRQ interface{ Trigger() }

// Transport is a register window with a device behind it. Its methods may be called from any goroutine.
type Transport struct {
	// Counts has the device's interrupts. ActivateFails counts drivers that the device could not serve; nil for nobody: set it before the
	// first access.
	Counts        metrics.Interrupts
	ActivateFails *metrics.Counter

	dev      virtio.Device
	mem      *memory.Memory
	irq      IRQ
	features uint64
	notify   []*os.File
	external bool // another process serves the queues, and notify is the device's
	one      [8]byte

	// What devices change from their goroutines.
	interrupts atomic.Uint32
	generation atomic.Uint32
	broken     sync.Once
	needsReset atomic.Bool

	mu               sync.Mutex
	status           uint32
	deviceSel        uint32
	driverSel        uint32
	queueSel         uint32
	driverFeatures   uint64
	queues           []queueRegs
	maxSizes         []uint16
	closed           bool
	warned           bool
	interruptHandler interrupt
}

type queueRegs struct {
	num               uint32
	ready             bool
	desc, avail, used uint64
}

// New puts dev behind registers and makes one eventfd per queue, unless the device has its own.
func New(dev virtio.Device, mem *memory.Memory, irq IRQ) (*Transport, error) {
	t := &Transport{
		dev:      dev,
		mem:      mem,
		irq:      irq,
		features: dev.Features() | virtio.FeatureVersion1,
		maxSizes: dev.QueueSizes(),
	}
	binary.NativeEndian.PutUint64(t.one[:], 1)
	t.interruptHandler = interrupt{t}
	t.queues = make([]queueRegs, len(t.maxSizes))
	if e, ok := dev.(virtio.External); ok {
		t.external, t.notify = true, e.NotifyFDs()
		t.features |= e.RingFeatures()
		return t, nil
	}
	t.features |= virtio.FeatureIndirectDesc | virtio.FeatureEventIdx
	for range t.maxSizes {
		fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
		if err != nil {
			t.Close()
			return nil, fmt.Errorf("virtio device of type %d: eventfd: %w", dev.Type(), err)
		}
		t.notify = append(t.notify, os.NewFile(uintptr(fd), "virtqueue-notify"))
	}
	return t, nil
}

// NotifyFDs are the queues' eventfds, by index; they belong to t or to the device. Adding to one notifies the device.
func (t *Transport) NotifyFDs() []*os.File { return t.notify }

// Read fills p from offset off of the window.
func (t *Transport) Read(off uint64, p []byte) {
	if off >= regConfig {
		clear(p)
		t.mu.Lock()
		defer t.mu.Unlock()
		t.dev.ReadConfig(off-regConfig, p)
		return
	}
	if len(p) != 4 || off%4 != 0 {
		clear(p)
		return
	}
	binary.LittleEndian.PutUint32(p, t.read(off))
}

func (t *Transport) read(off uint64) uint32 {
	switch off {
	case regMagic:
		return magic
	case regVersion:
		return version
	case regDeviceID:
		return t.dev.Type()
	case regVendorID:
		return vendor
	case regInterruptStatus:
		return t.interrupts.Load()
	case regConfigGeneration:
		return t.generation.Load()
	case regSHMLenLow, regSHMLenHigh, regSHMBaseLow, regSHMBaseHigh:
		return noSHM
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	switch off {
	case regDeviceFeatures:
		if t.deviceSel < 2 {
			return uint32(t.features >> (32 * t.deviceSel))
		}
	case regQueueNumMax:
		if t.queueSel < uint32(len(t.maxSizes)) {
			return uint32(t.maxSizes[t.queueSel])
		}
	case regQueueReady:
		if t.queueSel < uint32(len(t.queues)) && t.queues[t.queueSel].ready {
			return 1
		}
	case regStatus:
		if t.needsReset.Load() {
			return t.status | statusNeedsReset
		}
		return t.status
	}
	return 0
}

// Write stores p at offset off of the window.
func (t *Transport) Write(off uint64, p []byte) {
	if off >= regConfig {
		t.mu.Lock()
		defer t.mu.Unlock()
		t.dev.WriteConfig(off-regConfig, p)
		return
	}
	if len(p) != 4 || off%4 != 0 {
		return
	}
	v := binary.LittleEndian.Uint32(p)
	switch off {
	case regQueueNotify:
		if v < uint32(len(t.notify)) && !t.prompted(int(v)) {
			// The counter cannot overflow at one a write; a closed file is nobody's loss.
			_, _ = t.notify[v].Write(t.one[:])
		}
		return
	case regInterruptACK:
		t.interrupts.And(^v)
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if !t.closed {
		t.write(off, v)
	}
}

// NeedsExit says that a notification of queue i must come by Write: an eventfd would be too late.
func (t *Transport) NeedsExit(i int) bool {
	p, ok := t.dev.(virtio.Prompt)
	return ok && p.Prompt(i)
}

// prompted has the device serve queue i on this thread, if it does.
func (t *Transport) prompted(i int) bool {
	p, ok := t.dev.(virtio.Prompt)
	if !ok || !p.Prompt(i) {
		return false
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.status&statusDriverOK != 0 && p.Notify(i)
}

func (t *Transport) write(off uint64, v uint32) {
	switch off {
	case regDeviceFeaturesSel:
		t.deviceSel = v
	case regDriverFeaturesSel:
		t.driverSel = v
	case regDriverFeatures:
		if t.driverSel < 2 && t.status&statusFeaturesOK == 0 {
			shift := 32 * t.driverSel
			t.driverFeatures = t.driverFeatures&^(0xffffffff<<shift) | uint64(v)<<shift
		}
	case regQueueSel:
		t.queueSel = v
	case regStatus:
		t.setStatus(v)
	default:
		// A running device has taken its queues over: only a reset changes them.
		if t.queueSel < uint32(len(t.queues)) && t.status&statusDriverOK == 0 {
			t.queues[t.queueSel].write(off, v)
		}
	}
}

func (q *queueRegs) write(off uint64, v uint32) {
	if off == regQueueReady {
		q.ready = v&1 != 0
		return
	}
	if q.ready {
		return
	}
	switch off {
	case regQueueNum:
		q.num = v
	case regQueueDescLow:
		setLow(&q.desc, v)
	case regQueueDescHigh:
		setHigh(&q.desc, v)
	case regQueueDriverLow:
		setLow(&q.avail, v)
	case regQueueDriverHigh:
		setHigh(&q.avail, v)
	case regQueueDeviceLow:
		setLow(&q.used, v)
	case regQueueDeviceHigh:
		setHigh(&q.used, v)
	}
}

func setLow(p *uint64, v uint32)  { *p = *p&^0xffffffff | uint64(v) }
func setHigh(p *uint64, v uint32) { *p = *p&0xffffffff | uint64(v)<<32 }

// setStatus takes the driver's steps of initialisation (virtio 1.2 §3.1.1). A driver cannot take a step back but by a
// reset, nor skip the feature negotiation.
func (t *Transport) setStatus(v uint32) {
	if v == 0 {
		if err := t.reset(); err != nil {
			t.warn("virtio device not reset in time", err)
		}
		return
	}
	added := v & statusFromDriver &^ t.status
	if added&statusFeaturesOK != 0 && (t.driverFeatures&^t.features != 0 || t.driverFeatures&virtio.FeatureVersion1 == 0) {
		added &^= statusFeaturesOK
	}
	if added&statusDriverOK != 0 && (t.status|added)&statusFeaturesOK == 0 {
		added &^= statusDriverOK
	}
	t.status |= added
	if added&statusDriverOK == 0 {
		return
	}
	if err := t.activate(); err != nil {
		t.ActivateFails.Inc()
		t.warn("virtio device not activated", err)
		t.status |= statusNeedsReset
		t.interruptHandler.Config()
	}
}

func (t *Transport) activate() error {
	a := virtio.Activation{
		Features:  t.driverFeatures,
		Memory:    t.mem,
		Queues:    make([]*queue.Queue, len(t.queues)),
		Interrupt: t.interruptHandler,
	}
	for i := range t.queues {
		r := &t.queues[i]
		if !r.ready {
			continue
		}
		if r.num > uint32(t.maxSizes[i]) {
			return fmt.Errorf("queue %d: size %d: want at most %d", i, r.num, t.maxSizes[i])
		}
		cfg := queue.Config{
			Size:     uint16(r.num),
			Desc:     r.desc,
			Avail:    r.avail,
			Used:     r.used,
			EventIdx: t.driverFeatures&virtio.FeatureEventIdx != 0,
		}
		if !t.external {
			cfg.Notify = t.notify[i]
		}
		q, err := queue.New(t.mem, cfg)
		if err != nil {
			return fmt.Errorf("queue %d: %w", i, err)
		}
		a.Queues[i] = q
	}
	return t.dev.Activate(a)
}

// reset does what the driver's writing zero to the status register asks for. On an error the device is at work still, and the
// driver does not read the zero that would be the end of the reset.
func (t *Transport) reset() error {
	err := t.dev.Reset()
	t.needsReset.Store(false) // after the last that the device has to say
	t.status = 0
	if err != nil {
		t.status = statusNeedsReset
	}
	t.deviceSel, t.driverSel, t.queueSel, t.driverFeatures = 0, 0, 0, 0
	clear(t.queues)
	t.interrupts.Store(0)
	return err
}

// Reconfigure runs f, which changes the device's configuration space, and tells the driver if there is one. A driver that reads the
// space meanwhile sees by the generation that it must do so again. f must not wait.
func (t *Transport) Reconfigure(f func()) {
	t.mu.Lock()
	defer t.mu.Unlock()
	f()
	if t.status&statusDriverOK != 0 {
		t.interruptHandler.Config()
	} else {
		t.generation.Add(1)
	}
}

// Close resets the device and closes the eventfds. Registers may still be accessed; writes to them do nothing. An error that
// wraps virtio.ErrBusy says that guest memory must stay mapped.
func (t *Transport) Close() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return nil
	}
	t.closed = true
	errs := []error{t.reset()}
	for _, f := range t.notify {
		if !t.external {
			errs = append(errs, f.Close())
		}
	}
	return errors.Join(errs...)
}

// warn logs once, as a guest could try again for ever.
func (t *Transport) warn(what string, err error) {
	if !t.warned {
		t.warned = true
		log.G(context.Background()).WithField("type", t.dev.Type()).WithError(err).Warn(what)
	}
}

// interrupt is the device's side of a Transport; it takes no lock, as a reset holds it while devices end.
type interrupt struct{ t *Transport }

func (i interrupt) Queue() {
	i.t.Counts.Triggers.Inc()
	i.t.interrupts.Or(interruptQueue)
	i.t.irq.Trigger()
}

func (i interrupt) Config() {
	i.t.Counts.Triggers.Inc()
	i.t.Counts.ConfigUpdates.Inc()
	i.t.generation.Add(1)
	i.t.interrupts.Or(interruptConfig)
	i.t.irq.Trigger()
}

func (i interrupt) Broken(err error) {
	i.t.needsReset.Store(true)
	i.Config() // virtio 1.2 §2.1.2
	i.t.broken.Do(func() {
		log.G(context.Background()).WithField("type", i.t.dev.Type()).WithError(err).
			Warn("virtio device stops serving a queue; what its driver breaks from here on is not logged")
	})
}
