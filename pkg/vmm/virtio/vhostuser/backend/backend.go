// Package backend serves a virtio device to a VMM in another process, over a vhost-user socket (QEMU's docs/interop/vhost-user.rst): it is
// the other end of package vhostuser, and of any other front-end. The device is the same code that runs inside fc-vmm; here it gets guest
// RAM, queues and interrupts from messages. Neither the guest nor the front-end is believed: no message makes it panic, allocate
// without a bound, or map what is not there; one that breaks the protocol costs its sender the connection.
package backend

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"time"

	"github.com/containerd/log"
	"golang.org/x/sys/unix"

	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/virtio"
	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/virtio/vhostuser/wire"
)

// Serve serves dev to one front-end after another that connects to l, until ctx ends, which is no error. A front-end that breaks the protocol,
// or whose driver breaks a queue, loses its connection, and the next one is waited for; only the first is logged, as a guest could do that again
// and again. An error that wraps virtio.ErrBusy says that guest RAM is in use for longer than a front-end may
// be kept waiting: only the end of the process takes it back then.
func Serve(ctx context.Context, l *net.UnixListener, dev virtio.Device) error {
	defer context.AfterFunc(ctx, func() { l.Close() })()
	logged := false
	for {
		c, err := l.AcceptUnix()
		if err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return fmt.Errorf("vhost-user: accept: %w", err)
		}
		stop := context.AfterFunc(ctx, func() { _ = c.SetReadDeadline(past()) })
		err = (&Session{Dev: dev}).Serve(c)
		stop()
		switch {
		case errors.Is(err, virtio.ErrBusy):
			return err
		case err != nil && !logged:
			logged = true
			log.G(ctx).WithError(err).Warn("vhost-user: the front-end's connection has ended; what ends later ones is not logged")
		}
	}
}

// replyTimeout bounds how long a front-end may leave a reply unread.
const replyTimeout = 3 * time.Second

// past is a deadline that wakes whoever waits. The front-end sees nothing of it: to it, the end of the connection is the word that nobody uses guest
// RAM any more.
func past() time.Time { return time.Unix(1, 0) }

// Session is a device and a front-end. Set Dev, and then call Serve once.
type Session struct {
	Dev virtio.Device

	conn     *net.UnixConn
	offered  uint64 // features
	accepted uint64
	protocol uint64
	ram      ram
	vrings   []vring
	active   bool
	irq      interrupt
}

// protocolFeatures are those that the back-end has.
const protocolFeatures = wire.ProtocolMQ | wire.ProtocolReplyAck | wire.ProtocolConfig | wire.ProtocolBackendReq

// errRefused is wrapped by the errors for messages that are well-formed and ask for what cannot be.
var errRefused = errors.New("refused")

// Serve obeys the messages that come by c until the front-end closes it, which is no error, c's read deadline is over, which is none either, or the
// device stops to serve a queue. Then it resets the device, and closes c; but not if the reset's error wraps virtio.ErrBusy.
func (s *Session) Serve(c *net.UnixConn) error {
	s.conn = c
	s.vrings = make([]vring, len(s.Dev.QueueSizes()))
	for i := range s.vrings {
		s.vrings[i].call = -1
	}
	s.offered = s.Dev.Features() | virtio.FeatureVersion1 | virtio.FeatureEventIdx | virtio.FeatureIndirectDesc | wire.FeatureProtocol
	s.irq = interrupt{s: s, channel: -1}
	var err error
	for err == nil {
		err = s.next()
	}
	if errors.Is(err, io.EOF) || errors.Is(err, os.ErrDeadlineExceeded) && !errors.Is(err, errUnread) {
		err = s.irq.failure()
	}
	return errors.Join(err, s.close())
}

// close gives back all that the front-end has given. What the device may still use stays.
func (s *Session) close() error {
	if err := s.deactivate(); err != nil {
		return err
	}
	defer s.conn.Close()
	s.irq.setChannel(-1)
	s.irq.raising.Lock()
	s.irq.calls = nil
	for i := range s.vrings {
		s.vrings[i].close()
	}
	s.irq.raising.Unlock()
	return s.ram.close()
}

// next receives one message and obeys it.
func (s *Session) next() error {
	h, payload, files, err := s.receive()
	defer func() {
		for _, f := range files {
			f.Close() // what has been taken is nil
		}
	}()
	if err != nil {
		return err
	}
	reply, err := s.obey(h, payload, files)
	if reply == nil && s.protocol&wire.ProtocolReplyAck != 0 && h.Flags&wire.FlagNeedReply != 0 {
		status := uint64(0)
		if err != nil {
			status = 1
		}
		reply = wire.U64(status)
	}
	if reply != nil {
		err = errors.Join(err, s.send(wire.Message(h.Request, wire.FlagReply, reply)))
	}
	if err != nil {
		return fmt.Errorf("vhost-user: message %d: %w", h.Request, err)
	}
	return nil
}

// errUnread is wrapped when a front-end does not read its replies.
var errUnread = errors.New("the front-end does not read its replies")

func (s *Session) send(m []byte) error {
	err := s.conn.SetWriteDeadline(time.Now().Add(replyTimeout))
	if err == nil {
		_, err = s.conn.Write(m)
	}
	if errors.Is(err, os.ErrDeadlineExceeded) {
		err = fmt.Errorf("%w within %v: %w", errUnread, replyTimeout, err)
	}
	return err
}

// obey does what a message asks for. Its reply is nil if the message has none of its own.
func (s *Session) obey(h wire.Header, payload []byte, files []*file) (reply []byte, err error) {
	switch h.Request {
	case wire.SetOwner:
		return nil, nil
	case wire.GetFeatures:
		return wire.U64(s.offered), nil
	case wire.SetFeatures:
		return nil, accept(&s.accepted, payload, s.offered)
	case wire.GetProtocolFeatures:
		return wire.U64(protocolFeatures), nil
	case wire.SetProtocolFeatures:
		return nil, accept(&s.protocol, payload, protocolFeatures)
	case wire.GetQueueNum:
		return wire.U64(uint64(len(s.vrings))), nil
	case wire.SetMemTable:
		if s.active {
			return nil, fmt.Errorf("%w: another guest RAM while the queues are served", errRefused)
		}
		return nil, s.ram.replace(payload, files)
	case wire.GetConfig, wire.SetConfig:
		return s.config(h.Request, payload)
	case wire.SetBackendReqFD:
		f, err := one(files)
		if err == nil {
			s.irq.setChannel(f.take())
		}
		return nil, err
	}
	return s.obeyVring(h.Request, payload, files)
}

// accept takes features over, of which none may be beyond what was offered.
func accept(to *uint64, payload []byte, offered uint64) error {
	v, err := wire.ParseU64(payload)
	if err == nil && v&^offered != 0 {
		err = fmt.Errorf("%w: features %#x: want some of %#x", errRefused, v, offered)
	}
	if err == nil {
		*to = v
	}
	return err
}

// config reads or writes the configuration space.
func (s *Session) config(r wire.Request, payload []byte) (reply []byte, err error) {
	off, space, err := wire.ParseConfig(payload)
	switch {
	case err != nil:
		return nil, err
	case r == wire.SetConfig:
		s.Dev.WriteConfig(uint64(off), space)
		return nil, nil
	}
	s.Dev.ReadConfig(uint64(off), space)
	return wire.Config(off, space), nil
}

// receive reads one message with its descriptors, which are the caller's to close.
func (s *Session) receive() (h wire.Header, payload []byte, files []*file, err error) {
	var head [wire.HeaderSize]byte
	oob := make([]byte, unix.CmsgSpace(4*wire.MaxRegions))
	n, oobn, flags, _, err := s.conn.ReadMsgUnix(head[:], oob)
	if err == nil && n == 0 {
		err = io.EOF
	}
	if err != nil {
		return h, nil, nil, err
	}
	if files, err = descriptors(oob[:oobn]); err != nil {
		return h, nil, files, err
	}
	if flags&unix.MSG_CTRUNC != 0 {
		return h, nil, files, fmt.Errorf("%w: more than %d descriptors in a message", wire.ErrMalformed, wire.MaxRegions)
	}
	h, payload, err = wire.Read(io.MultiReader(bytes.NewReader(head[:n]), s.conn))
	return h, payload, files, err
}
