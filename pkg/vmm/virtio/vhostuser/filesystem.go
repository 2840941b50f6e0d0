package vhostuser

import (
	"context"
	"fmt"

	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/config"
	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/virtio"
	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/virtio/fs"
)

// Filesystem is a file system device.
type Filesystem struct {
	*Device
	id string
}

// NewFilesystem connects to the back-end of the file system that cfg describes by its socket. Its tag is the VMM's: back-ends know none.
func NewFilesystem(ctx context.Context, cfg config.Filesystem) (*Filesystem, error) {
	d, err := New(ctx, Config{
		Name:       fmt.Sprintf("filesystem %q", cfg.FSID),
		Socket:     cfg.Socket,
		Type:       virtio.TypeFS,
		QueueSizes: fs.QueueSizes(),
		Space:      fs.ConfigSpace(cfg.Tag),
	})
	if err != nil {
		return nil, err
	}
	return &Filesystem{Device: d, id: cfg.FSID}, nil
}

// ID is the file system's.
func (f *Filesystem) ID() string { return f.id }
