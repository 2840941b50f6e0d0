package vhostuser

import (
	"context"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/memory"
	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/virtio"
	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/virtio/vhostuser/wire"
)

// userBase is where guest RAM begins among the addresses by which queues are named. Any place will do, as both the regions and the queues
// are named by it; where guest RAM really is in this process is nobody else's business.
const userBase = 1 << 40

// start tells the back-end all that it needs to serve the queues that the driver has enabled.
func (d *Device) start(ctx context.Context, l *link, a virtio.Activation) error {
	if err := l.set(ctx, wire.SetFeatures, wire.U64(a.Features|l.features&wire.FeatureProtocol)); err != nil {
		return err
	}
	if err := l.shareMemory(ctx, a.Memory); err != nil {
		return err
	}
	for i, q := range a.Queues {
		if q == nil {
			continue
		}
		n := uint32(i)
		d.rings = append(d.rings, n)
		cfg := q.Config()
		for _, m := range []struct {
			request wire.Request
			payload []byte
			fds     []int
		}{
			{wire.SetVringNum, wire.VringState{Index: n, Num: uint32(cfg.Size)}.Bytes(), nil},
			{wire.SetVringBase, wire.VringState{Index: n}.Bytes(), nil},
			{wire.SetVringAddr, wire.VringAddr{Index: n, Desc: userBase + cfg.Desc, Used: userBase + cfg.Used, Avail: userBase + cfg.Avail}.Bytes(), nil},
			{wire.SetVringCall, wire.U64(uint64(n)), []int{d.callFD}},
			{wire.SetVringKick, wire.U64(uint64(n)), []int{d.kickFDs[i]}},
		} {
			if err := l.set(ctx, m.request, m.payload, m.fds...); err != nil {
				return fmt.Errorf("queue %d: %w", i, err)
			}
		}
	}
	if len(d.rings) == 0 {
		return errors.New("driver left all queues disabled")
	}
	return d.enable(ctx, l, 1)
}

// shareMemory gives the back-end the file behind guest RAM.
func (l *link) shareMemory(ctx context.Context, m *memory.Memory) error {
	var regions []wire.Region
	var fds []int
	fd := int(m.File().Fd())
	for _, r := range m.Regions() {
		regions = append(regions, wire.Region{Guest: r.Addr, Size: uint64(len(r.Mem)), User: userBase + r.Addr, Offset: r.Offset})
		fds = append(fds, fd)
	}
	return l.set(ctx, wire.SetMemTable, wire.MemTable(regions), fds...)
}

// enable switches the queues on or off. A back-end without protocol features serves them from their kick's coming on.
func (d *Device) enable(ctx context.Context, l *link, on uint32) error {
	if l.features&wire.FeatureProtocol == 0 {
		return nil
	}
	for _, n := range d.rings {
		if err := l.set(ctx, wire.SetVringEnable, wire.VringState{Index: n, Num: on}.Bytes()); err != nil {
			return fmt.Errorf("queue %d: %w", n, err)
		}
	}
	return nil
}

// stop has the back-end end its work on the queues: its reply says that it has.
func (d *Device) stop(ctx context.Context, l *link) error {
	if err := d.enable(ctx, l, 0); err != nil {
		return err
	}
	for _, n := range d.rings {
		b, err := l.ask(ctx, wire.GetVringBase, 0, wire.VringState{Index: n}.Bytes())
		if err != nil {
			return fmt.Errorf("queue %d: %w", n, err)
		}
		if _, err := wire.ParseVringState(b); err != nil {
			return fmt.Errorf("queue %d: %w", n, err)
		}
	}
	return nil
}

// openChannel gives the back-end a way to say that its configuration space has changed, if it has use for one.
func (d *Device) openChannel(ctx context.Context, l *link) error {
	if l.protocol&wire.ProtocolBackendReq == 0 {
		return nil
	}
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return fmt.Errorf("socketpair: %w", err)
	}
	l.channel = os.NewFile(uintptr(pair[0]), "vhost-user-channel")
	defer unix.Close(pair[1])
	d.readers.Go(func() { d.listen(l) })
	return l.set(ctx, wire.SetBackendReqFD, nil, pair[1])
}
