// Package vhostuser is the front-end of devices that another process serves over a vhost-user socket (QEMU's
// docs/interop/vhost-user.rst): it negotiates with that process, the back-end, gives it guest RAM and the queues, and passes on its
// interrupts. No request of the guest's goes through here. It must never wait for the back-end without a bound, nor believe what
// it says without a look: a back-end that dies, hangs or talks nonsense costs the guest this device and nothing else.
//
// The back-end reads and writes all of guest RAM, and can shrink its file, by which the VMM dies (memory.Memory.File): it is as trusted with
// the guest as the VMM is.
package vhostuser

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/metrics"
	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/virtio"
	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/virtio/vhostuser/wire"
)

// Bounds of waits.
const (
	// connectTimeout is how long the back-end may take until it has told all that there is to know before the guest starts.
	connectTimeout = 5 * time.Second
	// answerTimeout is how long it may take to start or to stop its queues, or for any other answer.
	answerTimeout = virtio.ResetTimeout
)

// Config says what a device is to its driver, and where its back-end is.
type Config struct {
	// Name is for errors: drive "data".
	Name string
	// Socket is the path at which the back-end listens.
	Socket string
	// Type is virtio's number of the device's type.
	Type uint32
	// Features are those of the device's own features that the driver may have; of these, it is offered what the back-end has.
	Features uint64
	// QueueSizes gives the largest size of each virtqueue, each a power of two.
	QueueSizes []uint16
	// Space is the configuration space, if the VMM has it. Nil: the back-end has it, SpaceLen bytes, at most wire.MaxConfig.
	Space    []byte
	SpaceLen int
	// Writable is the part of the back-end's space that the driver may write: from its first offset up to its second.
	Writable [2]uint64
}

// Device is a device that another process serves. Close it when it is not needed any more.
type Device struct {
	cfg     Config
	counts  metrics.VhostUser
	link    atomic.Pointer[link] // replaced by Activate if it has failed
	kicks   []*os.File
	kickFDs []int
	call    *os.File
	callFD  int
	readers sync.WaitGroup

	// What only Activate and Reset use, which do not run at the same time.
	rings     []uint32 // that the back-end has been told to serve
	pumped    sync.WaitGroup
	unstopped error

	mu      sync.Mutex
	space   []byte
	changed func()           // set by OnConfigChange
	irq     virtio.Interrupt // nil unless active
}

var _ virtio.External = (*Device)(nil)

// New connects to the back-end and negotiates with it. It waits for at most connectTimeout.
func New(ctx context.Context, cfg Config) (_ *Device, err error) {
	begin := time.Now()
	ctx, cancel := within(ctx, connectTimeout)
	defer cancel()
	d := &Device{cfg: cfg}
	defer func() {
		if err != nil {
			err = fmt.Errorf("%s: socket %.128q: vhost-user: %w", cfg.Name, cfg.Socket, errors.Join(err, d.Close()))
		}
	}()
	l, space, err := d.connect(ctx)
	if err != nil {
		return nil, err
	}
	d.space = space
	d.link.Store(l)
	if err := d.makeEvents(); err != nil {
		return nil, err
	}
	d.counts.InitTime.Set(micros(begin))
	return d, nil
}

// micros is how long ago that was, in microseconds.
func micros(begin time.Time) uint64 { return uint64(time.Since(begin).Microseconds()) }

// Metrics is what the device has counted. The counters go on.
func (d *Device) Metrics() *metrics.VhostUser { return &d.counts }

func within(ctx context.Context, t time.Duration) (context.Context, context.CancelFunc) {
	return context.WithTimeoutCause(ctx, t, fmt.Errorf("it took longer than %s", t))
}

// makeEvents makes the eventfds of the queues and that of the interrupts.
func (d *Device) makeEvents() error {
	for range d.cfg.QueueSizes {
		// The files are made of descriptors that block: else Go's runtime would be woken by each kick, none of which is for it. Back-ends
		// expect the flag.
		fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC)
		if err != nil {
			return fmt.Errorf("eventfd: %w", err)
		}
		d.kicks, d.kickFDs = append(d.kicks, os.NewFile(uintptr(fd), "vhost-user-kick")), append(d.kickFDs, fd)
		if err := unix.SetNonblock(fd, true); err != nil {
			return fmt.Errorf("eventfd: %w", err)
		}
	}
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		return fmt.Errorf("eventfd: %w", err)
	}
	d.call, d.callFD = os.NewFile(uintptr(fd), "vhost-user-call"), fd
	return nil
}

// Type is the device's type number.
func (d *Device) Type() uint32 { return d.cfg.Type }

// Features are what the driver may have and the back-end has.
func (d *Device) Features() uint64 { return d.link.Load().features & d.cfg.Features }

// RingFeatures are the back-end's.
func (d *Device) RingFeatures() uint64 {
	return d.link.Load().features & (virtio.FeatureIndirectDesc | virtio.FeatureEventIdx)
}

// NotifyFDs are what the back-end waits for.
func (d *Device) NotifyFDs() []*os.File { return d.kicks }

// QueueSizes gives the largest size of each queue.
func (d *Device) QueueSizes() []uint16 { return d.cfg.QueueSizes }

// Activate gives the back-end guest RAM and the queues. It waits for it at most answerTimeout in all. If the connection has ended, there may
// be another back-end at its socket by now, which is as good if it has all that the driver has accepted.
func (d *Device) Activate(a virtio.Activation) error {
	if d.unstopped != nil {
		return d.unstopped
	}
	begin := time.Now()
	ctx, cancel := within(context.Background(), answerTimeout)
	defer cancel()
	l, changed, err := d.lively(ctx, a.Features)
	if err != nil {
		return d.failed(err)
	}
	if err := d.call.SetReadDeadline(time.Time{}); err != nil {
		return d.failed(err)
	}
	d.pumped.Go(func() { d.pump(a.Interrupt) })
	if err := d.start(ctx, l, a); err != nil {
		return d.failed(err)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := l.failure(); err != nil {
		return d.failed(err)
	}
	d.irq = a.Interrupt
	if changed { // the driver has read another one
		a.Interrupt.Config()
	}
	d.counts.ActivateTime.Set(micros(begin))
	return nil
}

// lively is the link, or a new one if it has failed, which may have another configuration space.
func (d *Device) lively(ctx context.Context, accepted uint64) (_ *link, changed bool, err error) {
	l := d.link.Load()
	lost := l.failure()
	if lost == nil {
		return l, false, nil
	}
	l, space, err := d.connect(ctx)
	if err != nil {
		return nil, false, fmt.Errorf("%w; and then: %w", lost, err)
	}
	if lacks := accepted &^ l.features; lacks != 0 {
		l.close()
		return nil, false, fmt.Errorf("%w: it has come back without features %#x, which the driver uses", ErrBackend, lacks)
	}
	d.link.Swap(l).close()
	if d.cfg.Space == nil { // it may have changed before there was anybody to tell
		if space, err = l.fetchSpace(ctx, d.cfg.SpaceLen); err != nil {
			return nil, false, err
		}
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	changed = !bytes.Equal(d.space, space)
	d.space = space
	return l, changed, nil
}

// pump turns the back-end's calls into interrupts. It is no irqfd, as the driver must find the reason in the interrupt status.
func (d *Device) pump(irq virtio.Interrupt) {
	var count [8]byte
	for {
		if _, err := d.call.Read(count[:]); err != nil {
			return // Reset
		}
		irq.Queue()
	}
}

// Reset has the back-end stop its queues, and waits for that, up to answerTimeout. A back-end that does not answer, or not with sense, is
// given up; and as it may still write to guest RAM, this and each later Reset is an error until it ends the connection, which counts as
// stopped.
func (d *Device) Reset() error {
	d.mu.Lock()
	d.irq = nil
	d.mu.Unlock()
	// The pump ends first: nothing after it may touch the transport's interrupt status. A deadline in the past wakes it.
	_ = d.call.SetReadDeadline(time.Unix(1, 0))
	d.pumped.Wait()
	switch l := d.link.Load(); {
	case d.unstopped != nil && l.hasEnded():
		d.unstopped = nil
	case d.unstopped == nil && len(d.rings) > 0:
		if err := d.await(l); err != nil {
			d.unstopped = d.failed(fmt.Errorf("stopping the queues: %w", err))
		}
		d.rings = nil
	}
	return d.unstopped
}

// await has the back-end stop, or else waits until it has ended the connection.
func (d *Device) await(l *link) error {
	ctx, cancel := within(context.Background(), answerTimeout)
	defer cancel()
	err := d.stop(ctx, l)
	if err == nil {
		return nil
	}
	l.fail(err)
	select {
	case <-l.gone:
		return nil
	case <-ctx.Done():
		return err
	}
}

// lost takes note of the end of a link's connection.
func (d *Device) lost(l *link, err error) {
	d.mu.Lock()
	defer d.mu.Unlock() // so that it is this life's interrupt
	if d.irq != nil && l == d.link.Load() {
		d.irq.Broken(d.failed(err))
	}
}

func (d *Device) failed(err error) error { return fmt.Errorf("%s: vhost-user: %w", d.cfg.Name, err) }

// Close resets the device and ends the connection, by which the back-end knows that it is not needed any more. A second Close does nothing.
func (d *Device) Close() error {
	var errs []error
	if d.unstopped == nil { // else it has been told
		errs = append(errs, d.Reset())
	}
	if l := d.link.Load(); l != nil {
		l.close()
	}
	for _, f := range append(d.kicks, d.call) {
		if f != nil {
			errs = append(errs, f.Close())
		}
	}
	d.kicks, d.call = nil, nil
	d.readers.Wait()
	return errors.Join(errs...)
}

// ReadConfig reads the configuration space as it was when it was last asked for.
func (d *Device) ReadConfig(off uint64, p []byte) {
	clear(p)
	d.mu.Lock()
	defer d.mu.Unlock()
	if off < uint64(len(d.space)) {
		copy(p, d.space[off:])
	}
}

// WriteConfig passes on what the driver may write, and then reads what has become of it. It waits for that: a driver that writes again and
// again is held up by nobody but its own back-end, for at most answerTimeout.
func (d *Device) WriteConfig(off uint64, p []byte) {
	w := d.cfg.Writable
	if off < w[0] || off >= w[1] || uint64(len(p)) > w[1]-off || off > math.MaxUint32 {
		return
	}
	ctx, cancel := within(context.Background(), answerTimeout)
	defer cancel()
	l := d.link.Load()
	err := l.set(ctx, wire.SetConfig, wire.Config(uint32(off), p))
	var space []byte
	if err == nil {
		space, err = l.fetchSpace(ctx, d.cfg.SpaceLen)
	}
	if err != nil {
		d.counts.CfgFails.Inc()
		l.fail(fmt.Errorf("writing %d bytes of the configuration space at offset %d: %w", len(p), off, err))
		return
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.space = space
}
