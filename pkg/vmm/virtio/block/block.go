// Package block is a virtio block device (virtio 1.2 §5.2) backed by a file or a block device of the host. It moves data
// straight between the file and guest memory, one request after another or, with io_uring, many at once; the file can be exchanged for another one while the
// drive is in use. It must never touch a byte outside the drive,
// nor write to a drive that is read-only.
package block

import (
	"encoding/binary"
	"errors"
	"fmt"
	"sync"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/config"
	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/metrics"
	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/ratelimit"
	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/virtio"
	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/virtio/queue"
)

const (
	// SectorSize is the unit of addresses on the drive, in bytes.
	SectorSize = 512
	// QueueSize is the size of the only virtqueue.
	QueueSize = 256
)

// Feature bits (virtio 1.2 §5.2.3).
const (
	featureSegMax = 1 << 2
	featureRO     = 1 << 5
	featureFlush  = 1 << 9

	featureDiscard     = 1 << 13
	featureWriteZeroes = 1 << 14
)

// struct virtio_blk_config (virtio 1.2 §5.2.4): offsets, and its length up to the last field that this device has. The
// limits of discards and of write-zeroes are sectors and segments, of a request; then the alignment, and whether space may be freed.
const (
	configCapacity = 0
	configSegMax   = 12
	configDiscard  = 36
	configZeroes   = 48
	configLen      = 60
)

// Device is a drive. The methods of virtio.Device must not be called at the same time; the transport sees to that.
type Device struct {
	id        string
	readOnly  bool
	writeback bool
	limiter   ratelimit.Limiter
	worker    virtio.Worker
	counts    metrics.Block
	timed     bool    // its requests' latencies are wanted
	async     *engine // nil: requests are carried out one after another

	mu      sync.Mutex
	backing *Backing
	config  [configLen]byte
}

// New opens the drive that cfg describes. A size that is no multiple of SectorSize is rounded down.
func New(cfg config.Drive) (*Device, error) {
	d := &Device{id: cfg.DriveID, readOnly: cfg.IsReadOnly}
	switch cfg.CacheType {
	case "", "Unsafe":
	case "Writeback":
		d.writeback = true
	default:
		return nil, fmt.Errorf("drive %q: cache_type %q: want Unsafe or Writeback: %w", cfg.DriveID, cfg.CacheType, errdefs.ErrInvalidArgument)
	}
	b, err := d.Open(cfg.PathOnHost)
	if err != nil {
		return nil, err
	}
	d.worker.Events, d.worker.Empty, d.worker.Fails = &d.counts.QueueEvents, &d.counts.NoAvailBuffer, &d.counts.EventFails
	d.limiter.Throttled, d.limiter.Events = &d.counts.RateLimiterThrottled, &d.counts.RateLimiterEvents
	if cfg.IOEngine == config.IOAsync {
		if d.async, err = newEngine(d); err != nil {
			b.Close()
			return nil, err
		}
	}
	d.limiter.Update(cfg.RateLimiter)
	d.setBacking(b)
	binary.LittleEndian.PutUint32(d.config[configSegMax:], QueueSize-2) // beside the header and the status
	if !d.readOnly {
		binary.LittleEndian.PutUint32(d.config[configDiscard:], maxDiscardSectors)
		binary.LittleEndian.PutUint32(d.config[configDiscard+4:], maxSegments)
		binary.LittleEndian.PutUint32(d.config[configDiscard+8:], discardAlignment)
		binary.LittleEndian.PutUint32(d.config[configZeroes:], maxZeroesSectors)
		binary.LittleEndian.PutUint32(d.config[configZeroes+4:], maxSegments)
		d.config[configZeroes+8] = 1 // the driver may let space be freed
	}
	return d, nil
}

func (d *Device) setBacking(b *Backing) {
	d.backing = b
	binary.LittleEndian.PutUint64(d.config[configCapacity:], b.sectors)
}

// ID is the drive's.
func (d *Device) ID() string { return d.id }

// Limit changes the buckets that c has. It may be called from any goroutine.
func (d *Device) Limit(c *config.RateLimiter) { d.limiter.Update(c) }

// Type is the device's type number.
func (d *Device) Type() uint32 { return virtio.TypeBlock }

// Features offers FLUSH only where a flush does something: without it the driver sends none.
func (d *Device) Features() uint64 {
	f := uint64(featureSegMax)
	if d.readOnly {
		f |= featureRO
	} else {
		f |= featureDiscard | featureWriteZeroes
	}
	if d.writeback {
		f |= featureFlush
	}
	return f
}

// QueueSizes is one queue of QueueSize.
func (d *Device) QueueSizes() []uint16 { return []uint16{QueueSize} }

// ReadConfig reads struct virtio_blk_config.
func (d *Device) ReadConfig(off uint64, p []byte) {
	clear(p)
	d.mu.Lock()
	defer d.mu.Unlock()
	if off < uint64(len(d.config)) {
		copy(p, d.config[off:])
	}
}

// WriteConfig does nothing: a driver may write no field of the configuration that this device has.
func (d *Device) WriteConfig(uint64, []byte) {}

// Activate serves the queue from one goroutine, or from two.
func (d *Device) Activate(a virtio.Activation) error {
	if d.async != nil {
		return d.async.start(a)
	}
	q := a.Queues[0]
	s := d.serve(a.Features)
	return d.worker.Start("drive "+d.id, q, a.Interrupt, func(c *queue.Chain) (uint32, error) { return s.handle(c, q) })
}

// serve is d at work for a driver that accepted features.
func (d *Device) serve(features uint64) *server {
	return &server{
		Device:       d,
		writeThrough: d.writeback && features&featureFlush == 0,
		canDiscard:   !d.readOnly && features&featureDiscard != 0,
		canZero:      !d.readOnly && features&featureWriteZeroes != 0,
		fallocate:    unix.Fallocate,
	}
}

// Reset waits for the system call in work, up to virtio.ResetTimeout. One moves at most maxChunk bytes, or frees or zeroes at most
// maxPiece; but there is no telling how long the host takes for that, or for a flush.
func (d *Device) Reset() error {
	if d.async != nil {
		return d.async.stop()
	}
	return d.worker.Stop()
}

// Close closes the drive; the device must have been reset. A drive that is still in use stays open. Swap must not follow.
func (d *Device) Close() error {
	if err := d.Reset(); err != nil {
		return err
	}
	if d.async != nil {
		return errors.Join(d.async.ring.Close(), d.backing.Close())
	}
	return d.backing.Close()
}
