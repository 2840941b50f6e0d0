// Package vhosttest is a vhost-user back-end for tests: it serves any virtio.Device to one front-end, and misbehaves where it is told to.
// It is for tests only.
package vhosttest

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/memory"
	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/virtio"
	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/virtio/queue"
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

	conn     *net.UnixConn
	protocol uint64
	accepted uint64
	mem      *memory.Memory
	regions  []wire.Region
	vrings   []vring
	active   bool

	mu      sync.Mutex
	channel *os.File
}

type vring struct {
	cfg     queue.Config
	addr    wire.VringAddr
	kick    *os.File
	call    *os.File
	enabled bool
}

// Serve serves c until the front-end closes it, or breaks the protocol. It closes c.
func (b *Backend) Serve(c *net.UnixConn) error {
	b.conn = c
	b.vrings = make([]vring, len(b.Dev.QueueSizes()))
	defer b.close()
	for {
		if err := b.next(); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
	}
}

func (b *Backend) close() {
	if b.active {
		b.Dev.Reset()
	}
	if b.mem != nil {
		b.mem.Close()
	}
	for _, v := range b.vrings {
		v.kick.Close()
		v.call.Close()
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.channel.Close()
	b.conn.Close()
}

// next receives one message, with its descriptors, and obeys it.
func (b *Backend) next() error {
	var head [wire.HeaderSize]byte
	oob := make([]byte, unix.CmsgSpace(4*wire.MaxRegions))
	n, oobn, _, _, err := b.conn.ReadMsgUnix(head[:], oob)
	if err == nil && n == 0 {
		err = io.EOF
	}
	if err == nil {
		_, err = io.ReadFull(b.conn, head[n:])
	}
	if err != nil {
		return err
	}
	files, err := received(oob[:oobn])
	if err != nil {
		return err
	}
	h, err := wire.ParseHeader(&head)
	if err != nil {
		return err
	}
	payload := make([]byte, h.Size)
	if _, err := io.ReadFull(b.conn, payload); err != nil {
		return err
	}
	if b.Before != nil {
		if raw, ok := b.Before(h, payload); !ok {
			_, err := b.conn.Write(raw)
			return err
		}
	}
	reply, err := b.obey(h, payload, files)
	if err != nil {
		return fmt.Errorf("message %d: %w", h.Request, err)
	}
	if reply == nil && h.Flags&wire.FlagNeedReply != 0 {
		reply = wire.U64(0)
	}
	if reply != nil {
		_, err = b.conn.Write(wire.Message(h.Request, wire.FlagReply, reply))
	}
	return err
}

func received(oob []byte) ([]*os.File, error) {
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil || len(messages) == 0 {
		return nil, err
	}
	fds, err := unix.ParseUnixRights(&messages[0])
	var files []*os.File
	for _, fd := range fds {
		files = append(files, os.NewFile(uintptr(fd), "received"))
	}
	return files, err
}

// obey does what a message asks for; its reply is nil if it has none of its own.
func (b *Backend) obey(h wire.Header, payload []byte, files []*os.File) (reply []byte, err error) {
	switch h.Request {
	case wire.SetOwner:
		return nil, nil
	case wire.GetFeatures:
		f := b.Dev.Features() | virtio.FeatureVersion1 | virtio.FeatureEventIdx | virtio.FeatureIndirectDesc | wire.FeatureProtocol
		if b.Features != nil {
			f = b.Features(f)
		}
		return wire.U64(f), nil
	case wire.SetFeatures:
		b.accepted, err = wire.ParseU64(payload)
		return nil, err
	case wire.GetProtocolFeatures:
		f := uint64(wire.ProtocolMQ | wire.ProtocolReplyAck | wire.ProtocolConfig | wire.ProtocolBackendReq)
		if b.Protocol != nil {
			f = b.Protocol(f)
		}
		return wire.U64(f), nil
	case wire.SetProtocolFeatures:
		b.protocol, err = wire.ParseU64(payload)
		return nil, err
	case wire.GetQueueNum:
		if b.Queues != 0 {
			return wire.U64(b.Queues), nil
		}
		return wire.U64(uint64(len(b.vrings))), nil
	case wire.SetMemTable:
		return nil, b.setMemory(payload, files)
	case wire.GetConfig, wire.SetConfig:
		off, space, err := wire.ParseConfig(payload)
		if err != nil {
			return nil, err
		}
		if h.Request == wire.SetConfig {
			b.Dev.WriteConfig(uint64(off), space)
			return nil, nil
		}
		b.Dev.ReadConfig(uint64(off), space)
		return wire.Config(off, space), nil
	case wire.SetBackendReqFD:
		if len(files) != 1 {
			return nil, fmt.Errorf("%d descriptors: want one", len(files))
		}
		b.mu.Lock()
		defer b.mu.Unlock()
		b.channel = files[0]
		return nil, nil
	}
	return b.obeyVring(h, payload, files)
}

func (b *Backend) obeyVring(h wire.Header, payload []byte, files []*os.File) (reply []byte, err error) {
	var s wire.VringState
	var a wire.VringAddr
	switch h.Request {
	case wire.SetVringAddr:
		a, err = wire.ParseVringAddr(payload)
		s.Index = a.Index
	case wire.SetVringKick, wire.SetVringCall:
		var n uint64
		n, err = wire.ParseU64(payload)
		s.Index = uint32(n & 0xff)
		if err == nil && (len(files) != 1 || n&wire.NoFD != 0) {
			err = fmt.Errorf("%d descriptors: want one", len(files))
		}
	default:
		s, err = wire.ParseVringState(payload)
	}
	if err == nil && s.Index >= uint32(len(b.vrings)) {
		err = fmt.Errorf("no queue %d", s.Index)
	}
	if err != nil {
		return nil, err
	}
	v := &b.vrings[s.Index]
	switch h.Request {
	case wire.SetVringNum:
		v.cfg.Size = uint16(s.Num)
	case wire.SetVringBase:
		if s.Num != 0 {
			return nil, fmt.Errorf("a queue that begins at %d", s.Num)
		}
	case wire.SetVringAddr:
		v.addr = a
	case wire.SetVringKick:
		v.kick.Close()
		v.kick = files[0]
	case wire.SetVringCall:
		v.call.Close()
		v.call = files[0]
	case wire.SetVringEnable:
		if v.enabled = s.Num != 0; v.enabled {
			return nil, b.activate()
		}
	case wire.GetVringBase:
		if b.active {
			b.active = false
			if err := b.Dev.Reset(); err != nil {
				return nil, err
			}
		}
		return s.Bytes(), nil
	default:
		return nil, errors.New("unknown")
	}
	return nil, nil
}

func (b *Backend) setMemory(payload []byte, files []*os.File) error {
	regions, err := wire.ParseMemTable(payload)
	if err != nil {
		return err
	}
	if len(files) != len(regions) {
		return fmt.Errorf("%d regions, %d descriptors", len(regions), len(files))
	}
	var areas []memory.Area
	for i, r := range regions {
		defer files[i].Close()
		areas = append(areas, memory.Area{Addr: r.Guest, Size: r.Size, Offset: r.Offset, File: files[i]})
	}
	m, err := memory.Attach(areas)
	if err != nil {
		return err
	}
	if b.mem != nil {
		b.mem.Close()
	}
	b.mem, b.regions = m, regions
	return nil
}

// guest turns an address of VringAddr into one of the guest's.
func (b *Backend) guest(user uint64) uint64 {
	for _, r := range b.regions {
		if user >= r.User && user-r.User < r.Size {
			return user - r.User + r.Guest
		}
	}
	return 1 << 60
}

// activate starts the device when all of its queues are enabled.
func (b *Backend) activate() error {
	a := virtio.Activation{Features: b.accepted, Memory: b.mem}
	var calls []*os.File
	for _, v := range b.vrings {
		if !v.enabled {
			return nil
		}
		cfg := v.cfg
		cfg.Desc, cfg.Avail, cfg.Used = b.guest(v.addr.Desc), b.guest(v.addr.Avail), b.guest(v.addr.Used)
		cfg.EventIdx, cfg.Notify = b.accepted&virtio.FeatureEventIdx != 0, v.kick
		q, err := queue.New(b.mem, cfg)
		if err != nil {
			return err
		}
		a.Queues = append(a.Queues, q)
		calls = append(calls, v.call)
	}
	b.active = true
	a.Interrupt = interrupt{b, calls[0]}
	return b.Dev.Activate(a)
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
func (b *Backend) Call(queue int) { interrupt{b, b.vrings[queue].call}.Queue() }

type interrupt struct {
	b    *Backend
	call *os.File
}

func (i interrupt) Queue()       { _, _ = i.call.Write(binary.LittleEndian.AppendUint64(nil, 1)) }
func (i interrupt) Config()      {}
func (i interrupt) Broken(error) { i.b.conn.Close() }
