package backend_test

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/memory"
	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/virtio"
	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/virtio/queue"
	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/virtio/vhostuser/backend"
	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/virtio/vhostuser/wire"
	vt "github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/virtio/virtiotest"
)

// counter is a device with two queues that only counts what happens to it.
type counter struct {
	activated, reset atomic.Int32
	enabled          atomic.Int32 // queues of the last Activate
	irq              virtio.Interrupt
	busy             atomic.Bool
}

func (*counter) Type() uint32                     { return virtio.TypeFS }
func (*counter) Features() uint64                 { return 1 << 5 }
func (*counter) QueueSizes() []uint16             { return []uint16{8, 16} }
func (*counter) ReadConfig(off uint64, p []byte)  { clear(p) }
func (*counter) WriteConfig(off uint64, p []byte) {}
func (c *counter) Activate(a virtio.Activation) error {
	n := int32(0)
	for _, q := range a.Queues {
		if q != nil {
			n++
		}
	}
	c.enabled.Store(n)
	c.irq = a.Interrupt
	c.activated.Add(1)
	a.Interrupt.Queue()
	return nil
}
func (c *counter) Reset() error {
	if c.busy.Load() {
		return fmt.Errorf("stuck: %w", virtio.ErrBusy)
	}
	c.reset.Add(1)
	return nil
}

// front is a front-end's end of a connection.
type front struct {
	t    testing.TB
	conn *net.UnixConn
	mem  *memory.Memory
}

// session serves dev to a front-end.
func session(t testing.TB, dev virtio.Device) (front, <-chan error) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	var conns [2]*net.UnixConn
	for i, fd := range fds {
		f := os.NewFile(uintptr(fd), "vhost-user")
		c, err := net.FileConn(f)
		f.Close()
		if err != nil {
			t.Fatal(err)
		}
		conns[i] = c.(*net.UnixConn)
		t.Cleanup(func() { c.Close() })
	}
	served := make(chan error, 1)
	go func() { served <- (&backend.Session{Dev: dev}).Serve(conns[1]) }()
	return front{t: t, conn: conns[0], mem: vt.Memory(t, 1<<20)}, served
}

// send sends a message and does not look whether it is obeyed.
func (f front) send(r wire.Request, flags uint32, payload []byte, fds ...int) {
	f.t.Helper()
	var oob []byte
	if len(fds) > 0 {
		oob = unix.UnixRights(fds...)
	}
	if _, _, err := f.conn.WriteMsgUnix(wire.Message(r, flags, payload), oob, nil); err != nil {
		f.t.Fatal(err)
	}
}

// reply is the payload of the next message.
func (f front) reply(r wire.Request) []byte {
	f.t.Helper()
	if err := f.conn.SetReadDeadline(time.Now().Add(vt.Timeout)); err != nil {
		f.t.Fatal(err)
	}
	var b [wire.HeaderSize]byte
	if _, err := io.ReadFull(f.conn, b[:]); err != nil {
		f.t.Fatalf("reply to message %d: %v", r, err)
	}
	h, err := wire.ParseHeader(&b)
	if err != nil || h.Request != r || h.Flags&wire.FlagReply == 0 {
		f.t.Fatalf("reply to message %d: %+v, %v", r, h, err)
	}
	payload := make([]byte, h.Size)
	if _, err := io.ReadFull(f.conn, payload); err != nil {
		f.t.Fatal(err)
	}
	return payload
}

// set sends a message, and wants it to be obeyed.
func (f front) set(r wire.Request, payload []byte, fds ...int) {
	f.t.Helper()
	f.send(r, wire.FlagNeedReply, payload, fds...)
	if status, err := wire.ParseU64(f.reply(r)); err != nil || status != 0 {
		f.t.Fatalf("message %d: status %d, %v", r, status, err)
	}
}

const accepted = virtio.FeatureVersion1 | wire.FeatureProtocol

func (f front) table() (payload []byte, fd int) {
	r := f.mem.Regions()[0]
	return wire.MemTable([]wire.Region{{Guest: r.Addr, Size: uint64(len(r.Mem)), User: 1 << 40, Offset: r.Offset}}), int(f.mem.File().Fd())
}

// negotiate comes before all that concerns queues.
func (f front) negotiate() {
	f.t.Helper()
	f.send(wire.SetProtocolFeatures, 0, wire.U64(wire.ProtocolReplyAck|wire.ProtocolMQ|wire.ProtocolBackendReq))
	f.set(wire.SetFeatures, wire.U64(accepted))
	table, fd := f.table()
	f.set(wire.SetMemTable, table, fd)
}

// ring describes queue n, and gives its interrupts.
func (f front) ring(n uint32) *os.File {
	f.t.Helper()
	at := uint64(1<<40) + 0x1000*uint64(4*n+1)
	f.set(wire.SetVringNum, wire.VringState{Index: n, Num: 8}.Bytes())
	f.set(wire.SetVringBase, wire.VringState{Index: n}.Bytes())
	f.set(wire.SetVringAddr, wire.VringAddr{Index: n, Desc: at, Avail: at + 0x1000, Used: at + 0x2000}.Bytes())
	call, kick := vt.Eventfd(f.t), vt.Eventfd(f.t)
	f.set(wire.SetVringCall, wire.U64(uint64(n)), int(call.Fd()))
	f.set(wire.SetVringKick, wire.U64(uint64(n)), int(kick.Fd()))
	return call
}

// TestLives takes a device through several lives: with both queues, with one, and once more after a stop.
func TestLives(t *testing.T) {
	dev := new(counter)
	f, served := session(t, dev)
	f.send(wire.GetFeatures, 0, nil)
	if v, _ := wire.ParseU64(f.reply(wire.GetFeatures)); v != virtio.FeatureVersion1|virtio.FeatureEventIdx|virtio.FeatureIndirectDesc|wire.FeatureProtocol|1<<5 {
		t.Errorf("features %#x", v)
	}
	f.send(wire.GetQueueNum, 0, nil)
	if n, _ := wire.ParseU64(f.reply(wire.GetQueueNum)); n != 2 {
		t.Errorf("%d queues", n)
	}
	f.negotiate()
	for life, queues := range []uint32{2, 1, 2} {
		var calls []*os.File
		for n := range queues {
			calls = append(calls, f.ring(1-n))
		}
		for n := range queues {
			if got := dev.activated.Load(); got != int32(life) {
				t.Fatalf("life %d: active with %d of %d queues", life, n, queues)
			}
			f.set(wire.SetVringEnable, wire.VringState{Index: 1 - n, Num: 1}.Bytes())
		}
		if dev.activated.Load() != int32(life+1) || dev.enabled.Load() != int32(queues) {
			t.Fatalf("life %d: activated %d times, %d queues", life, dev.activated.Load(), dev.enabled.Load())
		}
		for n, c := range calls {
			var b [8]byte
			if err := c.SetReadDeadline(time.Now().Add(vt.Timeout)); err != nil {
				t.Fatal(err)
			}
			if _, err := c.Read(b[:]); err != nil {
				t.Errorf("life %d, queue %d: no interrupt: %v", life, n, err)
			}
		}
		for n := range queues {
			f.send(wire.GetVringBase, 0, wire.VringState{Index: 1 - n}.Bytes())
			if s, err := wire.ParseVringState(f.reply(wire.GetVringBase)); err != nil || s.Index != 1-n {
				t.Errorf("%+v, %v", s, err)
			}
		}
		if got := dev.reset.Load(); got != int32(life+1) {
			t.Fatalf("life %d: reset %d times", life, got)
		}
	}
	f.ring(1)
	f.set(wire.SetVringEnable, wire.VringState{Index: 1, Num: 1}.Bytes())
	f.conn.Close()
	if err := <-served; err != nil {
		t.Error(err)
	}
	if dev.reset.Load() != 4 {
		t.Error("the device was not reset at the connection's end")
	}
}

// TestOneInterrupt: queues that share their interrupt have it raised once.
func TestOneInterrupt(t *testing.T) {
	f, _ := session(t, new(counter))
	f.negotiate()
	call := f.ring(0)
	f.ring(1)
	f.set(wire.SetVringCall, wire.U64(1), int(call.Fd()))
	for n := range uint32(2) {
		f.set(wire.SetVringEnable, wire.VringState{Index: n, Num: 1}.Bytes())
	}
	if err := call.SetReadDeadline(time.Now().Add(vt.Timeout)); err != nil {
		t.Fatal(err)
	}
	var b [8]byte
	if _, err := call.Read(b[:]); err != nil || b[0] != 1 {
		t.Errorf("raised %d times, %v", b[0], err)
	}
}

// TestMisbehaviour: what a front-end may not say ends its connection, with the reason, and the device is as it was.
func TestMisbehaviour(t *testing.T) {
	state := func(n, v uint32) []byte { return wire.VringState{Index: n, Num: v}.Bytes() }
	region := func(r ...wire.Region) []byte { return wire.MemTable(r) }
	for _, tt := range []struct {
		name string
		say  func(f front)
		want string
	}{
		{"unknown", func(f front) { f.send(99, 0, nil) }, "unknown here"},
		{"version", func(f front) { f.conn.Write([]byte{1, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0}) }, "version 2: want 1"},
		{"length", func(f front) { f.conn.Write([]byte{1, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 1}) }, "want at most 4096"},
		{"cut off", func(f front) { f.conn.Write([]byte{1, 0, 0, 0, 1, 0, 0, 0, 8, 0, 0, 0, 1}); f.conn.CloseWrite() }, "unexpected EOF"},
		{"features", func(f front) { f.send(wire.SetFeatures, 0, wire.U64(1<<6)) }, "features 0x40: want some of"},
		{"protocol features", func(f front) { f.send(wire.SetProtocolFeatures, 0, wire.U64(1<<1)) }, "features 0x2: want some of"},
		{"short features", func(f front) { f.send(wire.SetFeatures, 0, []byte{1}) }, "number of 1 bytes"},
		{"no descriptor of guest RAM", func(f front) { p, _ := f.table(); f.send(wire.SetMemTable, 0, p) }, "1 regions of guest RAM and 0 descriptors"},
		{"two descriptors", func(f front) { p, fd := f.table(); f.send(wire.SetMemTable, 0, p, fd, fd) }, "1 regions of guest RAM and 2 descriptors"},
		{"no guest RAM", func(f front) { f.send(wire.SetMemTable, 0, region()) }, "0 regions"},
		{"nine regions", func(f front) { f.send(wire.SetMemTable, 0, region(make([]wire.Region, 9)...)) }, "9 regions: want at most 8"},
		{"nine descriptors", func(f front) {
			p, fd := f.table()
			f.send(wire.SetMemTable, 0, p, fd, fd, fd, fd, fd, fd, fd, fd, fd)
		}, "more than 8 descriptors"},
		{"more guest RAM than there is", func(f front) {
			_, fd := f.table()
			f.send(wire.SetMemTable, 0, region(wire.Region{Size: 2 << 20, User: 1 << 40}), fd)
		}, "want it within the file"},
		{"two on top of each other", func(f front) {
			_, fd := f.table()
			f.send(wire.SetMemTable, 0, region(wire.Region{Size: 1 << 20}, wire.Region{Guest: 4096, Size: 4096}), fd, fd)
		}, "areas 0 and 1 overlap"},
		{"queue without", func(f front) { f.send(wire.SetVringNum, 0, state(2, 8)) }, "queue 2 of 2"},
		{"queue far without", func(f front) { f.send(wire.SetVringKick, 0, wire.U64(255), int(f.mem.File().Fd())) }, "queue 255 of 2"},
		{"base", func(f front) { f.send(wire.SetVringBase, 0, state(0, 7)) }, "from entry 7 on: want 0"},
		{"no kick", func(f front) { f.negotiate(); f.send(wire.SetVringKick, 0, wire.U64(wire.NoFD)) }, "without a descriptor for its notifications"},
		{"kick before features", func(f front) { f.send(wire.SetVringKick, 0, wire.U64(wire.NoFD)) }, "VHOST_USER_F_PROTOCOL_FEATURES"},
		{"kick forgotten", func(f front) { f.send(wire.SetVringKick, 0, wire.U64(0)) }, "0 descriptors: want 1"},
		{"enabled by 2", func(f front) { f.send(wire.SetVringEnable, 0, state(0, 2)) }, "enabled by 2"},
		{"enabled before kick", func(f front) { f.negotiate(); f.send(wire.SetVringEnable, 0, state(0, 1)) }, "enabled without a descriptor"},
		{"enabled before guest RAM", func(f front) {
			f.send(wire.SetProtocolFeatures, 0, wire.U64(wire.ProtocolReplyAck))
			f.set(wire.SetFeatures, wire.U64(accepted))
			f.ring(0)
			f.send(wire.SetVringEnable, 0, state(0, 1))
		}, "queues before guest RAM"},
		{"enabled again after a stop", func(f front) {
			f.negotiate()
			f.ring(0)
			f.ring(1)
			f.set(wire.SetVringEnable, state(0, 1))
			f.set(wire.SetVringEnable, state(1, 1))
			f.set(wire.SetVringEnable, state(1, 0)) // of both
			f.send(wire.SetVringEnable, 0, state(0, 1))
		}, "enabled without a descriptor"},
		{"size", func(f front) {
			f.negotiate()
			f.ring(0)
			f.send(wire.SetVringNum, 0, state(0, 2048))
			f.send(wire.SetVringEnable, 0, state(0, 1))
		}, "2048 entries: want at most 1024"},
		{"size of zero", func(f front) {
			f.negotiate()
			f.ring(0)
			f.send(wire.SetVringNum, 0, state(0, 0))
			f.send(wire.SetVringEnable, 0, state(0, 1))
		}, "size 0"},
		{"a queue elsewhere", func(f front) {
			f.negotiate()
			f.ring(0)
			f.send(wire.SetVringAddr, 0, wire.VringAddr{Desc: 1 << 41}.Bytes())
			f.send(wire.SetVringEnable, 0, state(0, 1))
		}, "queue at 0x20000000000, where there is no guest RAM"},
		{"a queue over the end", func(f front) {
			f.negotiate()
			f.ring(0)
			at := uint64(1<<40 + 1<<20 - 64)
			f.send(wire.SetVringAddr, 0, wire.VringAddr{Desc: at, Avail: at, Used: at}.Bytes())
			f.send(wire.SetVringEnable, 0, state(0, 1))
		}, "outside guest RAM"},
		{"a kick that is none", func(f front) {
			f.negotiate()
			f.ring(0)
			f.send(wire.SetVringKick, 0, wire.U64(0), int(f.mem.File().Fd()))
			f.send(wire.SetVringEnable, 0, state(0, 1))
		}, "virtqueue notification"},
		{"changed while served", func(f front) {
			f.negotiate()
			f.ring(0)
			f.set(wire.SetVringEnable, state(0, 1))
			f.send(wire.SetVringNum, 0, state(0, 8))
		}, "queue 0 is being served"},
		{"guest RAM changed while served", func(f front) {
			f.negotiate()
			f.ring(0)
			f.set(wire.SetVringEnable, state(0, 1))
			p, fd := f.table()
			f.send(wire.SetMemTable, 0, p, fd)
		}, "while the queues are served"},
		{"configuration", func(f front) { f.send(wire.GetConfig, 0, make([]byte, 5)) }, "configuration of 5 bytes"},
		{"channel", func(f front) { f.send(wire.SetBackendReqFD, 0, nil) }, "0 descriptors: want 1"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dev := new(counter)
			f, served := session(t, dev)
			tt.say(f)
			select {
			case err := <-served:
				if err == nil || !strings.Contains(err.Error(), tt.want) {
					t.Errorf("%v, want %q in it", err, tt.want)
				}
			case <-time.After(vt.Timeout):
				t.Fatal("the connection goes on")
			}
			if dev.activated.Load() != dev.reset.Load() {
				t.Errorf("activated %d times, reset %d times", dev.activated.Load(), dev.reset.Load())
			}
		})
	}
}

// TestMasked: a queue's interrupt may be taken away and given back, or another one, while it is served.
func TestMasked(t *testing.T) {
	dev := new(counter)
	f, _ := session(t, dev)
	f.negotiate()
	first := f.ring(0)
	f.set(wire.SetVringEnable, wire.VringState{Num: 1}.Bytes())
	raised := func(call *os.File) bool {
		t.Helper()
		if err := call.SetReadDeadline(time.Now().Add(50 * time.Millisecond)); err != nil {
			t.Fatal(err)
		}
		var b [8]byte
		_, err := call.Read(b[:])
		return err == nil
	}
	if !raised(first) {
		t.Error("no interrupt at first")
	}
	f.set(wire.SetVringCall, wire.U64(wire.NoFD))
	dev.irq.Queue()
	if raised(first) {
		t.Error("an interrupt that was taken away")
	}
	second := vt.Eventfd(t)
	f.set(wire.SetVringCall, wire.U64(0), int(second.Fd()))
	dev.irq.Queue()
	if !raised(second) || raised(first) {
		t.Error("not the interrupt that was given")
	}
	f.set(wire.SetVringErr, wire.U64(0), int(first.Fd()))
}

// TestUnread: a front-end that does not read its replies holds nobody up for long.
func TestUnread(t *testing.T) {
	f, served := session(t, new(counter))
	go func() {
		for {
			if _, err := f.conn.Write(wire.Message(wire.GetFeatures, 0, nil)); err != nil {
				return
			}
		}
	}()
	select {
	case err := <-served:
		if err == nil || !strings.Contains(err.Error(), "the front-end does not read its replies within 3s") {
			t.Error(err)
		}
	case <-time.After(vt.Timeout):
		t.Fatal("it waits for ever")
	}
}

// TestRefusalIsTold: who asks is told that a message was refused.
func TestRefusalIsTold(t *testing.T) {
	f, served := session(t, new(counter))
	f.send(wire.SetProtocolFeatures, 0, wire.U64(wire.ProtocolReplyAck))
	f.send(wire.SetVringBase, wire.FlagNeedReply, wire.VringState{Num: 3}.Bytes())
	if status, err := wire.ParseU64(f.reply(wire.SetVringBase)); status == 0 || err != nil {
		t.Errorf("status %d, %v", status, err)
	}
	if err := <-served; err == nil {
		t.Error("it goes on")
	}
}

// TestDescriptors: whatever a front-end gives and how it ends, nothing of it stays open.
func TestDescriptors(t *testing.T) {
	open := func() int {
		entries, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Fatal(err)
		}
		return len(entries)
	}
	before := 0
	for round := range 3 {
		t.Run("", func(t *testing.T) {
			f, served := session(t, new(counter))
			f.negotiate()
			for n := range uint32(2) {
				f.ring(n)
				f.ring(n) // in the place of what was
				f.set(wire.SetVringEnable, wire.VringState{Index: n, Num: 1}.Bytes())
				f.send(wire.GetVringBase, 0, wire.VringState{Index: n}.Bytes())
				f.reply(wire.GetVringBase)
			}
			fd := int(f.mem.File().Fd())
			f.set(wire.SetBackendReqFD, nil, fd)
			f.set(wire.SetBackendReqFD, nil, fd)
			f.set(wire.SetOwner, nil, fd, fd) // that nobody wants
			f.send(wire.SetVringKick, 0, wire.U64(9), fd)
			if err := <-served; err == nil {
				t.Error("no error")
			}
		})
		if n := open(); round == 0 {
			before = n // the poller's own come with the first
		} else if n != before {
			t.Errorf("%d descriptors are open, %d were", n, before)
		}
	}
}

// TestServe: one front-end after another is served, a bad one among them, until the end; a device that is stuck ends it.
func TestServe(t *testing.T) {
	path := filepath.Join(t.TempDir(), "socket")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path})
	if err != nil {
		t.Fatal(err)
	}
	dial := func() front {
		c, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: path})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		return front{t: t, conn: c, mem: vt.Memory(t, 1<<20)}
	}
	ctx, cancel := context.WithCancel(t.Context())
	served := make(chan error, 1)
	dev := new(counter)
	go func() { served <- backend.Serve(ctx, l, dev) }()
	for range 3 {
		f := dial()
		f.send(99, 0, nil)
		g := dial()
		g.negotiate()
		g.ring(0)
		g.set(wire.SetVringEnable, wire.VringState{Num: 1}.Bytes())
		g.conn.Close()
	}
	// The end comes in the midst of a connection.
	dial().negotiate()
	cancel()
	if err := <-served; err != nil {
		t.Errorf("at the end: %v", err)
	}
	if dev.activated.Load() != 3 || dev.reset.Load() != 3 {
		t.Errorf("activated %d times, reset %d times", dev.activated.Load(), dev.reset.Load())
	}

	if l, err = net.ListenUnix("unix", &net.UnixAddr{Name: path}); err != nil {
		t.Fatal(err)
	}
	go func() { served <- backend.Serve(t.Context(), l, dev) }()
	f := dial()
	f.negotiate()
	f.ring(0)
	f.set(wire.SetVringEnable, wire.VringState{Num: 1}.Bytes())
	dev.busy.Store(true)
	f.conn.Close()
	if err := <-served; !errors.Is(err, virtio.ErrBusy) {
		t.Errorf("stuck: %v", err)
	}
	l.Close()
}

// server is a device that answers each request by what fits into it.
type server struct{ queues [2]virtio.Worker }

func (*server) Type() uint32                  { return virtio.TypeFS }
func (*server) Features() uint64              { return 1 << 5 }
func (*server) QueueSizes() []uint16          { return []uint16{8, 16} }
func (*server) ReadConfig(_ uint64, p []byte) { clear(p) }
func (*server) WriteConfig(uint64, []byte)    {}
func (s *server) Activate(a virtio.Activation) error {
	for i, q := range a.Queues {
		if q == nil {
			continue
		}
		if err := s.queues[i].Start("server", q, a.Interrupt, func(c *queue.Chain) (uint32, error) {
			n := uint32(0)
			for _, p := range c.Writable {
				n += uint32(copy(p, "answer"))
			}
			return n, nil
		}); err != nil {
			return errors.Join(err, s.Reset())
		}
	}
	return nil
}
func (s *server) Reset() error { return errors.Join(s.queues[0].Stop(), s.queues[1].Stop()) }

// FuzzFrontend says anything, about guest RAM with anything in it, beside each message the descriptor that it wants, or now and then another
// one: the session goes on or ends, in time.
func FuzzFrontend(f *testing.F) {
	say := func(m ...[]byte) (all []byte) {
		for _, b := range m {
			all = append(all, b...)
		}
		return all
	}
	u64 := func(r wire.Request, v uint64) []byte { return wire.Message(r, wire.FlagNeedReply, wire.U64(v)) }
	state := func(r wire.Request, n, v uint32) []byte {
		return wire.Message(r, wire.FlagNeedReply, wire.VringState{Index: n, Num: v}.Bytes())
	}
	ready := say(u64(wire.SetFeatures, accepted), u64(wire.SetProtocolFeatures, wire.ProtocolReplyAck),
		wire.Message(wire.SetMemTable, 0, wire.MemTable([]wire.Region{{Size: 1 << 20, User: 1 << 40}})),
		state(wire.SetVringNum, 1, 8), wire.Message(wire.SetVringAddr, 0, wire.VringAddr{Index: 1, Desc: 1<<40 + 4096, Avail: 1<<40 + 8192, Used: 1<<40 + 12288}.Bytes()),
		u64(wire.SetVringCall, 1), u64(wire.SetVringKick, 1), state(wire.SetVringEnable, 1, 1))
	f.Add([]byte{})
	f.Add(ready)
	f.Add(say(ready, state(wire.GetVringBase, 1, 0), state(wire.SetVringEnable, 0, 1)))
	f.Add(say(wire.Message(wire.GetConfig, 0, wire.Config(30, make([]byte, 20))), wire.Message(wire.SetConfig, 0, wire.Config(1<<31, make([]byte, 256)))))
	f.Fuzz(func(t *testing.T, said []byte) {
		fr, served := session(t, new(server))
		for ram := fr.mem.Regions()[0].Mem[0x1000:0x9000]; len(said) > 0 && len(ram) > 0; {
			ram = ram[copy(ram, said):]
		}
		kick := vt.Eventfd(t)
		go func() { _, _ = io.Copy(io.Discard, fr.conn) }()
		_ = fr.conn.SetWriteDeadline(time.Now().Add(vt.Timeout))
		for len(said) > 0 {
			n := len(said)
			if n >= wire.HeaderSize {
				n = min(n, wire.HeaderSize+int(binary.LittleEndian.Uint32(said[8:])&(wire.MaxPayload-1)))
			}
			fd := kick
			if (said[0] == byte(wire.SetMemTable)) != (said[n-1]%16 == 1) {
				fd = fr.mem.File()
			}
			vt.Kick(kick)
			if _, _, err := fr.conn.WriteMsgUnix(said[:n], unix.UnixRights(int(fd.Fd())), nil); err != nil {
				break
			}
			said = said[n:]
		}
		fr.conn.CloseWrite()
		select {
		case <-served:
		case <-time.After(2 * vt.Timeout):
			t.Fatal("the session waits for ever")
		}
	})
}
