package vhostuser

import (
	"context"
	"fmt"

	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/config"
	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/virtio"
)

// Features of a block device that pass from the back-end to the driver (virtio 1.2 §5.2.3).
const (
	blockRO        = 1 << 5
	blockFlush     = 1 << 9
	blockConfigWCE = 1 << 11

	// SIZE_MAX, SEG_MAX, GEOMETRY, RO, BLK_SIZE, TOPOLOGY, DISCARD, WRITE_ZEROES.
	blockFeatures = 1<<1 | 1<<2 | 1<<4 | blockRO | 1<<6 | 1<<10 | 1<<13 | 1<<14
)

const (
	// blockQueueSize is the size of a drive's only virtqueue.
	blockQueueSize = 256
	// blockSpaceLen is struct virtio_blk_config up to what write-zeroes requests need (virtio 1.2 §5.2.4), in bytes: back-ends that know
	// less of it refuse to give more.
	blockSpaceLen = 60
	// blockWCE is the offset of the one byte that a driver may write: whether its writes may stay in a cache.
	blockWCE = 32
)

// Drive is a block device.
type Drive struct {
	*Device
	id string
}

// NewDrive connects to the back-end of the drive that cfg describes by its socket.
func NewDrive(ctx context.Context, cfg config.Drive) (*Drive, error) {
	features := uint64(blockFeatures)
	if cfg.CacheType == config.CacheWriteback {
		features |= blockFlush | blockConfigWCE
	}
	d, err := New(ctx, Config{
		Name:       fmt.Sprintf("drive %q", cfg.DriveID),
		Socket:     cfg.Socket,
		Type:       virtio.TypeBlock,
		Features:   features,
		QueueSizes: []uint16{blockQueueSize},
		SpaceLen:   blockSpaceLen,
		Writable:   [2]uint64{blockWCE, blockWCE + 1},
	})
	if err != nil {
		return nil, err
	}
	return &Drive{Device: d, id: cfg.DriveID}, nil
}

// ID is the drive's.
func (d *Drive) ID() string { return d.id }

// Socket is the back-end's.
func (d *Drive) Socket() string { return d.cfg.Socket }

// ReadOnly is what the back-end says.
func (d *Drive) ReadOnly() bool { return d.Features()&blockRO != 0 }
