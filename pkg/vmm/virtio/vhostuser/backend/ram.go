package backend

import (
	"fmt"
	"os"

	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/memory"
	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/virtio/vhostuser/wire"
)

// ram is guest RAM as the front-end has described it.
type ram struct {
	mem     *memory.Memory // nil until there is one
	regions []wire.Region
}

// replace maps what a table describes, in the place of what was there. After an error that stays.
func (r *ram) replace(payload []byte, files []*file) error {
	regions, err := wire.ParseMemTable(payload)
	if err != nil {
		return err
	}
	if len(files) != len(regions) || len(regions) == 0 {
		return fmt.Errorf("%w: %d regions of guest RAM and %d descriptors", wire.ErrMalformed, len(regions), len(files))
	}
	areas := make([]memory.Area, len(regions))
	for i, g := range regions {
		f := os.NewFile(uintptr(files[i].take()), "guest-ram")
		defer f.Close()
		areas[i] = memory.Area{Addr: g.Guest, Size: g.Size, Offset: g.Offset, File: f}
	}
	m, err := memory.Attach(areas)
	if err != nil {
		return err
	}
	if err := r.close(); err != nil {
		return err
	}
	r.mem, r.regions = m, regions
	return nil
}

// guest turns the front-end's address of a piece of a queue into the guest's.
func (r *ram) guest(user uint64) (uint64, error) {
	for _, g := range r.regions {
		if user >= g.User && user-g.User < g.Size {
			return user - g.User + g.Guest, nil
		}
	}
	return 0, fmt.Errorf("%w: queue at %#x, where there is no guest RAM", errRefused, user)
}

// close unmaps guest RAM. Nothing may use it any more.
func (r *ram) close() error {
	m := r.mem
	r.mem, r.regions = nil, nil
	if m == nil {
		return nil
	}
	return m.Close()
}
