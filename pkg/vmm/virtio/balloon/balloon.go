// Package balloon is a virtio balloon device (virtio 1.2 §5.5): the guest does without some of its memory, or tells which pages
// it has freed, and the host gets them back. It has statistics, deflation on out-of-memory, free page hinting and free page
// reporting.
//
// What the guest says is not to be believed, and need not be: a page that it gives up reads as zero afterwards, and that is
// all that can happen to it. The package must never touch a page that is not guest RAM, nor give one up after the guest
// was told that it has it back.
package balloon

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"

	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/config"
	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/memory"
	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/metrics"
	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/virtio"
)

const (
	// QueueSize is the size of each virtqueue. Linux reports 32 pages at a time, and wants room for them.
	QueueSize = 256
	// pageSize is the unit of page numbers, in bytes, whatever the guest's own is.
	pageSize    = 4096
	pagesPerMiB = 1 << 20 / pageSize
)

// Feature bits (virtio 1.2 §5.5.3). MUST_TELL_HOST is not among them: a page that the guest uses again is there again. Neither is
// PAGE_POISON: pages read as zero, whatever the guest fills free ones with.
const (
	featureStats        = 1 << 1
	featureDeflateOnOOM = 1 << 2
	featureHinting      = 1 << 3
	featureReporting    = 1 << 5
)

// struct virtio_balloon_config (virtio 1.2 §5.5.4): offsets, and its length up to the last field that this device has.
const (
	configTarget  = 0
	configActual  = 4
	configCommand = 8
	configLen     = 12
)

// Errors in Firecracker's words, which its clients may look for.
var (
	// ErrInactive says that no driver is at work.
	ErrInactive = errdefs.ErrFailedPrecondition.WithMessage("Device is inactive, check if balloon driver is enabled in guest kernel.")
	// ErrNoStatistics is for a device that was made without statistics.
	ErrNoStatistics = errdefs.ErrFailedPrecondition.WithMessage("Statistics for the balloon device are not enabled")
	// ErrStatisticsSwitch is for an interval that would switch statistics on or off.
	ErrStatisticsSwitch = errdefs.ErrFailedPrecondition.WithMessage("Cannot enable/disable the statistics after boot.")
	// ErrNoHinting is for a device that was made without hinting.
	ErrNoHinting = errdefs.ErrFailedPrecondition.WithMessage("Free page hinting is not enabled for the balloon device")
)

// Device is a balloon. The methods of virtio.Device must not be called at the same time, which the transport sees to; the others may
// be called at any time.
type Device struct {
	features uint64
	counts   metrics.Balloon

	// The configuration space, and what else drivers and clients read while others write it.
	target  atomic.Uint32 // pages that the host asks for
	actual  atomic.Uint32 // pages that the driver says it has given up
	command atomic.Uint32 // the host's hinting command

	statistics statistics
	hinting    hinting

	mu      sync.Mutex
	session *session // nil when inactive

	ending virtio.Ending
	failed sync.Once // to give memory back, which is logged
}

// New makes the device.
func New(cfg config.Balloon) (*Device, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	d := new(Device)
	d.target.Store(uint32(cfg.AmountMiB) * pagesPerMiB)
	d.statistics.setInterval(cfg.StatsPollingIntervalS)
	for bit, wanted := range map[uint64]bool{
		featureStats:        cfg.StatsPollingIntervalS != 0,
		featureDeflateOnOOM: cfg.DeflateOnOOM,
		featureHinting:      cfg.FreePageHinting,
		featureReporting:    cfg.FreePageReporting,
	} {
		if wanted {
			d.features |= bit
		}
	}
	return d, nil
}

// Metrics is what the device has counted. The counters go on.
func (d *Device) Metrics() *metrics.Balloon { return &d.counts }

// Type is the device's type number.
func (*Device) Type() uint32 { return virtio.TypeBalloon }

// Features are those that were configured.
func (d *Device) Features() uint64 { return d.features }

// QueueSizes has the queues to inflate and to deflate, and those of the features.
func (d *Device) QueueSizes() []uint16 {
	sizes := []uint16{QueueSize, QueueSize}
	for _, f := range []uint64{featureStats, featureHinting, featureReporting} {
		if d.features&f != 0 {
			sizes = append(sizes, QueueSize)
		}
	}
	return sizes
}

// ReadConfig reads struct virtio_balloon_config. A field is read whole, whatever changes meanwhile.
func (d *Device) ReadConfig(off uint64, p []byte) {
	clear(p)
	var c [configLen]byte
	binary.LittleEndian.PutUint32(c[configTarget:], d.target.Load())
	binary.LittleEndian.PutUint32(c[configActual:], d.actual.Load())
	binary.LittleEndian.PutUint32(c[configCommand:], d.command.Load())
	if off < uint64(len(c)) {
		copy(p, c[off:])
	}
}

// WriteConfig takes the driver's word for how much it has given up; it may write no other field.
func (d *Device) WriteConfig(off uint64, p []byte) {
	if off == configActual && len(p) == 4 {
		d.actual.Store(binary.LittleEndian.Uint32(p))
	}
}

// Activate serves each queue from a goroutine.
func (d *Device) Activate(a virtio.Activation) error {
	if err := d.ending.Err(); err != nil {
		return fmt.Errorf("balloon: %w", err)
	}
	s, err := newSession(d, a)
	if err != nil {
		return fmt.Errorf("balloon: %w", err)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.session = s
	s.start()
	return nil
}

// Reset ends the session, and with it what the driver has said. It waits for the pages in work, a piece of maxPiece at most.
func (d *Device) Reset() error {
	d.mu.Lock()
	s := d.session
	d.session = nil
	d.mu.Unlock()
	if s == nil {
		return d.ending.Err()
	}
	return d.ending.Await(func() {
		s.stop()
		d.actual.Store(0)
		d.statistics.forget()
		d.hinting.forget(d)
	})
}

// Resize asks the guest for another balloon of mib MiB. It does not wait for it.
func (d *Device) Resize(mib int) error {
	u := config.BalloonUpdate{AmountMiB: mib}
	if err := u.Validate(); err != nil {
		return err
	}
	return d.tell(func() { d.target.Store(uint32(mib) * pagesPerMiB) })
}

// tell makes a change of the configuration space, and tells the driver, who must be there.
func (d *Device) tell(change func()) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.session == nil {
		return ErrInactive
	}
	change()
	d.session.irq.Config()
	return nil
}

// gave takes the result of giving pages back to the host. A guest that names what is not its RAM gets nothing for it; where the
// host fails, the pages stay, which costs memory, and no more. The n bytes given, or the failure,
// are counted; nil for nobody.
func (d *Device) gave(err error, n int, freed, fails *metrics.Counter) {
	if err == nil {
		freed.Add(uint64(n))
		return
	}
	fails.Inc()
	if errors.Is(err, memory.ErrRange) {
		return
	}
	d.failed.Do(func() {
		log.G(context.Background()).WithError(err).Warn("balloon: memory cannot be given back to the host; this is logged once")
	})
}
