// Package block is a virtio block device (virtio 1.2 §5.2) backed by a file or a block device of the host. It moves data
// straight between the file and guest memory, one request after another. It must never touch a byte outside the drive,
// nor write to a drive that is read-only.
package block

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/config"
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
)

// Device is a drive. Its methods must not be called at the same time; the transport sees to that.
type Device struct {
	id        string
	file      *os.File
	fd        int
	readOnly  bool
	writeback bool
	sectors   uint64
	config    [16]byte

	worker virtio.Worker
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
	if err := d.open(cfg.PathOnHost); err != nil {
		return nil, fmt.Errorf("drive %q: path_on_host %q: %w", cfg.DriveID, cfg.PathOnHost, err)
	}
	// struct virtio_blk_config: capacity, size_max, seg_max. A request has a header and a status beside its data.
	binary.LittleEndian.PutUint64(d.config[0:], d.sectors)
	binary.LittleEndian.PutUint32(d.config[12:], QueueSize-2)
	return d, nil
}

func (d *Device) open(path string) error {
	flags := os.O_RDWR
	if d.readOnly {
		flags = os.O_RDONLY
	}
	// Without O_NONBLOCK a FIFO would block here.
	f, err := os.OpenFile(path, flags|unix.O_NONBLOCK, 0)
	if err != nil {
		var pe *os.PathError
		if errors.As(err, &pe) {
			err = pe.Err // the caller names the path
		}
		return err
	}
	var size uint64
	switch fi, err := f.Stat(); {
	case err != nil:
		f.Close()
		return err
	case fi.Mode().IsRegular():
		size = uint64(fi.Size())
	case fi.Mode()&os.ModeType == os.ModeDevice:
		if size, err = blockDeviceSize(f); err != nil {
			f.Close()
			return err
		}
	default:
		f.Close()
		return fmt.Errorf("%v: want a regular file or a block device: %w", fi.Mode().Type(), errdefs.ErrInvalidArgument)
	}
	if size < SectorSize {
		f.Close()
		return fmt.Errorf("size %d: want at least %d bytes: %w", size, SectorSize, errdefs.ErrInvalidArgument)
	}
	d.file, d.fd, d.sectors = f, int(f.Fd()), size/SectorSize
	return nil
}

// Type is the device's type number.
func (d *Device) Type() uint32 { return virtio.TypeBlock }

// Features offers FLUSH only where a flush does something: without it the driver sends none.
func (d *Device) Features() uint64 {
	f := uint64(featureSegMax)
	if d.readOnly {
		f |= featureRO
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
	if off < uint64(len(d.config)) {
		copy(p, d.config[off:])
	}
}

// WriteConfig does nothing: a driver may write no field of the configuration that this device has.
func (d *Device) WriteConfig(uint64, []byte) {}

// Activate serves the queue from one goroutine.
func (d *Device) Activate(a virtio.Activation) error {
	q := a.Queues[0]
	s := &server{Device: d, writeThrough: d.writeback && a.Features&featureFlush == 0}
	return d.worker.Start("drive "+d.id, q, a.Interrupt, func(c *queue.Chain) (uint32, error) { return s.handle(c, q) })
}

// Reset waits for the request in work, at most one chunk of maxChunk bytes.
func (d *Device) Reset() error { return d.worker.Stop() }

// Close closes the drive; the device must have been reset. A drive that is still in use stays open.
func (d *Device) Close() error {
	if err := d.worker.Stop(); err != nil {
		return err
	}
	return d.file.Close()
}
