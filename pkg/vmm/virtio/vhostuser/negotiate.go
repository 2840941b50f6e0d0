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

// ErrBackend is wrapped when the back-end lacks or refuses something.
var ErrBackend = errors.New("the back-end will not do")

// negotiate learns what the back-end can do, and its configuration space.
func (d *Device) negotiate(ctx context.Context) error {
	if err := d.conn.send(ctx, wire.SetOwner, nil); err != nil {
		return err
	}
	var err error
	if d.features, err = d.askU64(ctx, wire.GetFeatures); err != nil {
		return err
	}
	if d.features&virtio.FeatureVersion1 == 0 {
		return fmt.Errorf("%w: features %#x: want VIRTIO_F_VERSION_1 (bit 32) among them", ErrBackend, d.features)
	}
	offered := uint64(0)
	if d.features&wire.FeatureProtocol != 0 {
		if offered, err = d.askU64(ctx, wire.GetProtocolFeatures); err != nil {
			return err
		}
		d.protocol = offered & (wire.ProtocolMQ | wire.ProtocolReplyAck)
		if d.cfg.Space == nil {
			d.protocol |= offered & (wire.ProtocolConfig | wire.ProtocolBackendReq)
		}
		if err := d.conn.send(ctx, wire.SetProtocolFeatures, wire.U64(d.protocol)); err != nil {
			return err
		}
	}
	if err := d.checkQueues(ctx); err != nil {
		return err
	}
	if d.cfg.Space != nil {
		return nil
	}
	if d.protocol&wire.ProtocolConfig == 0 {
		return fmt.Errorf("%w: protocol features %#x: want CONFIG (bit 9) among them", ErrBackend, offered)
	}
	if d.space, err = d.fetchSpace(ctx); err != nil {
		return err
	}
	return d.openChannel(ctx)
}

// checkQueues wants as many queues as the device has.
func (d *Device) checkQueues(ctx context.Context) error {
	want := uint64(len(d.cfg.QueueSizes))
	if want <= 1 {
		return nil
	}
	has := uint64(1)
	if d.protocol&wire.ProtocolMQ != 0 {
		var err error
		if has, err = d.askU64(ctx, wire.GetQueueNum); err != nil {
			return err
		}
	}
	if has < want {
		return fmt.Errorf("%w: it has %d queues: want at least %d", ErrBackend, has, want)
	}
	return nil
}

// askU64 asks for a number.
func (d *Device) askU64(ctx context.Context, r wire.Request) (uint64, error) {
	b, err := d.conn.ask(ctx, r, 0, nil)
	if err != nil {
		return 0, err
	}
	v, err := wire.ParseU64(b)
	if err != nil {
		err = fmt.Errorf("reply to message %d: %w", r, err)
	}
	return v, err
}

// set sends a message that has no reply of its own, and waits until it has been obeyed where the back-end says so.
func (d *Device) set(ctx context.Context, r wire.Request, payload []byte, fds ...int) error {
	if d.protocol&wire.ProtocolReplyAck == 0 {
		return d.conn.send(ctx, r, payload, fds...)
	}
	b, err := d.conn.ask(ctx, r, wire.FlagNeedReply, payload, fds...)
	if err != nil {
		return err
	}
	status, err := wire.ParseU64(b)
	if err == nil && status != 0 {
		err = fmt.Errorf("%w: it refuses, with %d", ErrBackend, status)
	}
	if err != nil {
		return fmt.Errorf("reply to message %d: %w", r, err)
	}
	return nil
}

// fetchSpace asks for the configuration space.
func (d *Device) fetchSpace(ctx context.Context) ([]byte, error) {
	b, err := d.conn.ask(ctx, wire.GetConfig, 0, wire.Config(0, make([]byte, d.cfg.SpaceLen)))
	if err != nil {
		return nil, err
	}
	off, space, err := wire.ParseConfig(b)
	if err != nil {
		return nil, fmt.Errorf("reply to message %d: %w", wire.GetConfig, err)
	}
	if off != 0 || len(space) != d.cfg.SpaceLen {
		return nil, fmt.Errorf("%w: it gives %d bytes of its configuration space from offset %d: want %d from 0", ErrBackend, len(space), off, d.cfg.SpaceLen)
	}
	return space, nil
}

// start tells the back-end all that it needs to serve the queues that the driver has enabled.
func (d *Device) start(ctx context.Context, a virtio.Activation) error {
	if err := d.set(ctx, wire.SetFeatures, wire.U64(a.Features|d.features&wire.FeatureProtocol)); err != nil {
		return err
	}
	if err := d.shareMemory(ctx, a.Memory); err != nil {
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
			if err := d.set(ctx, m.request, m.payload, m.fds...); err != nil {
				return fmt.Errorf("queue %d: %w", i, err)
			}
		}
	}
	if len(d.rings) == 0 {
		return errors.New("driver left all queues disabled")
	}
	return d.enable(ctx, 1)
}

// shareMemory gives the back-end the file behind guest RAM.
func (d *Device) shareMemory(ctx context.Context, m *memory.Memory) error {
	var regions []wire.Region
	var fds []int
	fd := int(m.File().Fd())
	for _, r := range m.Regions() {
		regions = append(regions, wire.Region{Guest: r.Addr, Size: uint64(len(r.Mem)), User: userBase + r.Addr, Offset: r.Offset})
		fds = append(fds, fd)
	}
	return d.set(ctx, wire.SetMemTable, wire.MemTable(regions), fds...)
}

// enable switches the queues on or off. A back-end without protocol features serves them from their kick's coming on.
func (d *Device) enable(ctx context.Context, on uint32) error {
	if d.features&wire.FeatureProtocol == 0 {
		return nil
	}
	for _, n := range d.rings {
		if err := d.set(ctx, wire.SetVringEnable, wire.VringState{Index: n, Num: on}.Bytes()); err != nil {
			return fmt.Errorf("queue %d: %w", n, err)
		}
	}
	return nil
}

// stop has the back-end end its work on the queues: its reply says that it has.
func (d *Device) stop(ctx context.Context) error {
	if err := d.enable(ctx, 0); err != nil {
		return err
	}
	for _, n := range d.rings {
		b, err := d.conn.ask(ctx, wire.GetVringBase, 0, wire.VringState{Index: n}.Bytes())
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
func (d *Device) openChannel(ctx context.Context) error {
	if d.protocol&wire.ProtocolBackendReq == 0 {
		return nil
	}
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return fmt.Errorf("socketpair: %w", err)
	}
	d.channel = os.NewFile(uintptr(pair[0]), "vhost-user-channel")
	defer unix.Close(pair[1])
	d.readers.Go(d.listen(d.channel))
	return d.set(ctx, wire.SetBackendReqFD, nil, pair[1])
}
