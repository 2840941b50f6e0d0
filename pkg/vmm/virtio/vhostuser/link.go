package vhostuser

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/virtio"
	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/virtio/vhostuser/wire"
)

// ErrBackend is wrapped when the back-end lacks or refuses something.
var ErrBackend = errors.New("the back-end will not do")

// link is a connection with a back-end, and what has been negotiated over it.
type link struct {
	*conn
	channel  *os.File // the back-end's own messages come here; nil without ProtocolBackendReq
	features uint64   // the back-end's
	protocol uint64   // the protocol features in use
}

// connect makes a link, and fetches the configuration space if it is the back-end's.
func (d *Device) connect(ctx context.Context) (_ *link, space []byte, err error) {
	c, err := dial(ctx, d.cfg.Socket)
	if err != nil {
		return nil, nil, err
	}
	l := &link{conn: c}
	d.readers.Go(func() {
		d.lost(l, c.run())
		c.drain()
	})
	if space, err = d.negotiate(ctx, l); err != nil {
		l.close()
		return nil, nil, err
	}
	return l, space, nil
}

// close ends the connection; its readers end on their own.
func (l *link) close() {
	l.conn.close()
	if l.channel != nil {
		l.channel.Close()
	}
}

// negotiate learns what the back-end can do, and its configuration space.
func (d *Device) negotiate(ctx context.Context, l *link) (space []byte, err error) {
	if err := l.send(ctx, wire.SetOwner, nil); err != nil {
		return nil, err
	}
	if l.features, err = l.askU64(ctx, wire.GetFeatures); err != nil {
		return nil, err
	}
	if l.features&virtio.FeatureVersion1 == 0 {
		return nil, fmt.Errorf("%w: features %#x: want VIRTIO_F_VERSION_1 (bit 32) among them", ErrBackend, l.features)
	}
	offered := uint64(0)
	if l.features&wire.FeatureProtocol != 0 {
		if offered, err = l.askU64(ctx, wire.GetProtocolFeatures); err != nil {
			return nil, err
		}
		l.protocol = offered & (wire.ProtocolMQ | wire.ProtocolReplyAck)
		if d.cfg.Space == nil {
			l.protocol |= offered & (wire.ProtocolConfig | wire.ProtocolBackendReq)
		}
		if err := l.send(ctx, wire.SetProtocolFeatures, wire.U64(l.protocol)); err != nil {
			return nil, err
		}
	}
	if err := l.checkQueues(ctx, uint64(len(d.cfg.QueueSizes))); err != nil {
		return nil, err
	}
	if d.cfg.Space != nil {
		return d.cfg.Space, nil
	}
	if l.protocol&wire.ProtocolConfig == 0 {
		return nil, fmt.Errorf("%w: protocol features %#x: want CONFIG (bit 9) among them", ErrBackend, offered)
	}
	if space, err = l.fetchSpace(ctx, d.cfg.SpaceLen); err != nil {
		return nil, err
	}
	return space, d.openChannel(ctx, l)
}

// checkQueues wants as many queues as the device has.
func (l *link) checkQueues(ctx context.Context, want uint64) error {
	if want <= 1 {
		return nil
	}
	has := uint64(1)
	if l.protocol&wire.ProtocolMQ != 0 {
		var err error
		if has, err = l.askU64(ctx, wire.GetQueueNum); err != nil {
			return err
		}
	}
	if has < want {
		return fmt.Errorf("%w: it has %d queues: want at least %d", ErrBackend, has, want)
	}
	return nil
}

// askU64 asks for a number.
func (l *link) askU64(ctx context.Context, r wire.Request) (uint64, error) {
	b, err := l.ask(ctx, r, 0, nil)
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
func (l *link) set(ctx context.Context, r wire.Request, payload []byte, fds ...int) error {
	if l.protocol&wire.ProtocolReplyAck == 0 {
		return l.send(ctx, r, payload, fds...)
	}
	b, err := l.ask(ctx, r, wire.FlagNeedReply, payload, fds...)
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

// fetchSpace asks for the n bytes of the configuration space.
func (l *link) fetchSpace(ctx context.Context, n int) ([]byte, error) {
	b, err := l.ask(ctx, wire.GetConfig, 0, wire.Config(0, make([]byte, n)))
	if err != nil {
		return nil, err
	}
	off, space, err := wire.ParseConfig(b)
	if err != nil {
		return nil, fmt.Errorf("reply to message %d: %w", wire.GetConfig, err)
	}
	if off != 0 || len(space) != n {
		return nil, fmt.Errorf("%w: it gives %d bytes of its configuration space from offset %d: want %d from 0", ErrBackend, len(space), off, n)
	}
	return space, nil
}
