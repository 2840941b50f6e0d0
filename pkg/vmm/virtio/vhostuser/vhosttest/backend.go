// Package vhosttest is a vhost-user back-end for tests: package backend's, behind a go-between that misbehaves where it is told to.
// It is for tests only.
package vhosttest

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/virtio"
	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/virtio/vhostuser/backend"
	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/virtio/vhostuser/wire"
)

// Backend serves a device to one front-end. Set its fields before Serve.
type Backend struct {
	Dev virtio.Device
	// Features and Protocol change what is offered, if they are there.
	Features func(uint64) uint64
	Protocol func(uint64) uint64
	// Queues is the answer to GetQueueNum; 0 for what the device has.
	Queues uint64
	// Before is called before a message is obeyed. If it returns false the message is not, and raw is sent instead of a reply.
	Before func(h wire.Header, payload []byte) (raw []byte, ok bool)

	front, back *net.UnixConn

	mu      sync.Mutex
	channel *os.File
	calls   map[byte]*os.File // by queue
}

// Serve serves c until the front-end closes it, or breaks the protocol. It closes c.
func (b *Backend) Serve(c *net.UnixConn) error {
	theirs, err := b.connect()
	if err != nil {
		c.Close()
		return err
	}
	b.front, b.calls = c, make(map[byte]*os.File)
	served := make(chan error, 1)
	go func() {
		err := (&backend.Session{Dev: b.Dev}).Serve(theirs)
		c.CloseRead() // a session that gives up has the front-end's connection end
		served <- err
	}()
	for err == nil {
		err = b.pass()
	}
	b.back.Close()
	err = <-served
	c.Close()
	b.mu.Lock()
	defer b.mu.Unlock()
	b.channel.Close()
	for _, f := range b.calls {
		f.Close()
	}
	return err
}

// connect makes a connection to the session.
func (b *Backend) connect() (theirs *net.UnixConn, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	var conns [2]*net.UnixConn
	for i, fd := range fds {
		f := os.NewFile(uintptr(fd), "vhost-user")
		defer f.Close()
		c, err := net.FileConn(f)
		if err != nil {
			return nil, err
		}
		conns[i] = c.(*net.UnixConn)
	}
	b.back = conns[0]
	return conns[1], nil
}

// pass takes one message to the session, and its reply, if it has one, back.
func (b *Backend) pass() error {
	var head [wire.HeaderSize]byte
	oob := make([]byte, unix.CmsgSpace(4*wire.MaxRegions))
	n, oobn, _, _, err := b.front.ReadMsgUnix(head[:], oob)
	if err == nil && n == 0 {
		err = io.EOF
	}
	if err != nil {
		return err
	}
	h, payload, err := wire.Read(io.MultiReader(bytes.NewReader(head[:n]), b.front))
	if err != nil {
		return err
	}
	fds, err := received(oob[:oobn])
	defer func() {
		for _, fd := range fds {
			unix.Close(fd)
		}
	}()
	if err != nil {
		return err
	}
	if b.Before != nil {
		if raw, ok := b.Before(h, payload); !ok {
			_, err := b.front.Write(raw)
			return err
		}
	}
	if err := b.keep(h, payload, fds); err != nil {
		return err
	}
	if _, _, err := b.back.WriteMsgUnix(wire.Message(h.Request, h.Flags, payload), unix.UnixRights(fds...), nil); err != nil {
		return err
	}
	if !replies(h) {
		return nil
	}
	return b.reply(h)
}

func received(oob []byte) ([]int, error) {
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil || len(messages) == 0 {
		return nil, err
	}
	return unix.ParseUnixRights(&messages[0])
}

// keep keeps the descriptors by which a back-end speaks first.
func (b *Backend) keep(h wire.Header, payload []byte, fds []int) error {
	if h.Request != wire.SetBackendReqFD && h.Request != wire.SetVringCall {
		return nil
	}
	if len(fds) != 1 {
		return fmt.Errorf("message %d has %d descriptors", h.Request, len(fds))
	}
	fd, err := unix.FcntlInt(uintptr(fds[0]), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return err
	}
	f := os.NewFile(uintptr(fd), "kept")
	b.mu.Lock()
	defer b.mu.Unlock()
	if h.Request == wire.SetVringCall {
		b.calls[payload[0]].Close()
		b.calls[payload[0]] = f
	} else {
		b.channel = f
	}
	return nil
}

func replies(h wire.Header) bool {
	switch h.Request {
	case wire.GetFeatures, wire.GetProtocolFeatures, wire.GetQueueNum, wire.GetVringBase, wire.GetConfig:
		return true
	}
	return h.Flags&wire.FlagNeedReply != 0
}

// reply takes a reply back, changed as the fields say.
func (b *Backend) reply(h wire.Header) error {
	r, payload, err := wire.Read(b.back)
	if err != nil {
		return err
	}
	change := func(f func(uint64) uint64) {
		if f != nil && len(payload) == 8 {
			binary.LittleEndian.PutUint64(payload, f(binary.LittleEndian.Uint64(payload)))
		}
	}
	switch h.Request {
	case wire.GetFeatures:
		change(b.Features)
	case wire.GetProtocolFeatures:
		change(b.Protocol)
	case wire.GetQueueNum:
		if b.Queues != 0 {
			change(func(uint64) uint64 { return b.Queues })
		}
	}
	_, err = b.front.Write(wire.Message(r.Request, r.Flags, payload))
	return err
}

// Changed tells the front-end that the configuration space has changed, and waits until it has taken note.
func (b *Backend) Changed() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if _, err := b.channel.Write(wire.Message(wire.BackendConfigChange, wire.FlagNeedReply, nil)); err != nil {
		return err
	}
	reply := make([]byte, wire.HeaderSize+8)
	if _, err := io.ReadFull(b.channel, reply); err != nil {
		return err
	}
	if want := wire.Message(wire.BackendConfigChange, wire.FlagReply, wire.U64(0)); string(reply) != string(want) {
		return fmt.Errorf("answer % x, want % x", reply, want)
	}
	return nil
}

// Channel sends raw on the back-end's own channel.
func (b *Backend) Channel(raw []byte) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	_, err := b.channel.Write(raw)
	return err
}

// Call raises an interrupt out of turn.
func (b *Backend) Call(queue int) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	f := b.calls[byte(queue)]
	if f == nil {
		return errors.New("the queue has no interrupt")
	}
	_, err := f.Write(binary.LittleEndian.AppendUint64(nil, 1))
	return err
}
