package vsock

import (
	"bytes"
	"fmt"
	"path/filepath"
	"testing"
	"time"

	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/config"
	vt "github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/virtio/virtiotest"
)

const guestCID = 3

// guest is a driver with the least of a socket layer. One goroutine uses it.
type guest struct {
	*vt.Machine
	dev     *Device
	path    string
	rx, tx  *vt.Ring
	rxBufs  map[uint16][]vt.Span
	txFree  []vt.Span // header and payload in one
	txBusy  map[uint16]vt.Span
	socks   map[key]*gsock
	strays  []header // packets of no socket
	noPost  bool     // do not give rx buffers back
	unpost  [][]vt.Span
	scratch [headerSize]byte
}

// gsock is a guest's socket.
type gsock struct {
	g                  *guest
	key                key
	connected, reset   bool
	shut               uint32
	in                 bytes.Buffer
	alloc, fwd         uint32
	sent               uint32
	peerAlloc, peerFwd uint32
	packets            int
	stalled            bool // leave what comes in unread: no credit back
}

func newGuest(tb testing.TB) *guest {
	tb.Helper()
	path := filepath.Join(tb.TempDir(), "v.sock")
	d, err := New(config.Vsock{GuestCID: guestCID, UDSPath: path})
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { d.Close() })
	g := &guest{Machine: vt.Start(tb, d, 64<<20), dev: d, path: path}
	g.setup()
	return g
}

func (g *guest) setup() {
	g.rx, g.tx = g.Rings[0], g.Rings[1]
	g.rxBufs, g.txBusy, g.socks = map[uint16][]vt.Span{}, map[uint16]vt.Span{}, map[key]*gsock{}
	g.txFree, g.strays, g.unpost = nil, nil, nil
	for range 64 {
		g.txFree = append(g.txFree, g.Arena.Alloc(headerSize+maxPacket))
	}
	for range QueueSize / 2 {
		g.post([]vt.Span{g.Arena.Alloc(headerSize), g.Arena.Alloc(4096)})
	}
	g.rx.Kick()
}

func (g *guest) post(bufs []vt.Span) {
	head, ok := g.rx.Add(nil, bufs)
	if !ok {
		g.TB.Fatal("rx queue full")
	}
	g.rxBufs[head] = bufs
}

// send gives a packet to the device.
func (g *guest) send(h header, payload []byte) {
	g.TB.Helper()
	h.srcCID, h.dstCID = guestCID, hostCID
	if h.typ == 0 {
		h.typ = typeStream
	}
	if h.len == 0 {
		h.len = uint32(len(payload))
	}
	for {
		if head, _, ok := g.tx.Used(); ok {
			g.txFree = append(g.txFree, g.txBusy[head])
			continue
		}
		if len(g.txFree) > 0 {
			break
		}
		head, _ := g.WaitUsed(g.tx)
		g.txFree = append(g.txFree, g.txBusy[head])
	}
	buf := g.txFree[len(g.txFree)-1]
	g.txFree = g.txFree[:len(g.txFree)-1]
	b := g.Bytes(buf)
	h.format([][]byte{b[:headerSize]}, &g.scratch)
	copy(b[headerSize:], payload)
	s := []vt.Span{{Addr: buf.Addr, Len: headerSize}, {Addr: buf.Addr + headerSize, Len: uint32(len(payload))}}
	if len(payload) == 0 {
		s = s[:1]
	}
	head, ok := g.tx.Add(s, nil)
	if !ok {
		g.TB.Fatal("tx queue full")
	}
	g.txBusy[head] = buf
	g.tx.Kick()
}

// step takes one packet of the device.
func (g *guest) step() header {
	g.TB.Helper()
	head, n := g.WaitUsed(g.rx)
	bufs := g.rxBufs[head]
	delete(g.rxBufs, head)
	var h header
	b := [][]byte{g.Bytes(bufs[0]), g.Bytes(bufs[1])}
	if !h.parse(b, &g.scratch) || n != headerSize+h.len || h.srcCID != hostCID || h.dstCID != guestCID {
		g.TB.Fatalf("packet of %d bytes: %+v", n, h)
	}
	k := key{host: h.srcPort, guest: h.dstPort}
	s := g.socks[k]
	if s == nil {
		g.strays = append(g.strays, h)
	} else {
		s.receive(&h, b[1][:h.len])
	}
	if g.noPost {
		g.unpost = append(g.unpost, bufs)
	} else {
		g.post(bufs)
		g.rx.Kick()
	}
	return h
}

func (s *gsock) receive(h *header, payload []byte) {
	s.packets++
	s.peerAlloc, s.peerFwd = h.bufAlloc, h.fwdCnt
	switch h.op {
	case opResponse:
		s.connected = true
	case opRST:
		s.reset = true
	case opShutdown:
		s.shut |= h.flags
	case opRW:
		if s.shut&shutdownSend != 0 {
			s.g.TB.Fatal("data behind the end")
		}
		s.in.Write(payload)
		if over := uint32(s.in.Len()); s.stalled && over > s.alloc {
			s.g.TB.Fatalf("%d bytes sent for a credit of %d", over, s.alloc)
		}
		if !s.stalled {
			s.fwd += h.len
			if s.fwd%(64<<10) < h.len {
				s.op(opCreditUpdate, 0)
			}
		}
	case opCreditRequest:
		s.op(opCreditUpdate, 0)
	}
}

func (s *gsock) op(op uint16, flags uint32) { s.packet(op, flags, nil) }

func (s *gsock) packet(op uint16, flags uint32, p []byte) {
	s.g.TB.Helper()
	s.g.send(header{srcPort: s.key.guest, dstPort: s.key.host, op: op, flags: flags, bufAlloc: s.alloc, fwdCnt: s.fwd}, p)
}

func (g *guest) sock(k key) *gsock {
	s := &gsock{g: g, key: k, alloc: 256 << 10}
	g.socks[k] = s
	return s
}

// dial connects to the host.
func (g *guest) dial(k key) *gsock {
	g.TB.Helper()
	s := g.sock(k)
	s.op(opRequest, 0)
	s.until("answer", func() bool { return s.connected || s.reset })
	return s
}

func (s *gsock) until(what string, done func() bool) {
	s.g.TB.Helper()
	for !done() {
		if s.reset {
			s.g.TB.Fatalf("connection reset before %s", what)
		}
		s.g.step()
	}
}

// write sends p in packets of at most max bytes, as credit allows.
func (s *gsock) write(p []byte, max int) {
	s.g.TB.Helper()
	for len(p) > 0 {
		s.until("credit", func() bool { return s.sent-s.peerFwd < s.peerAlloc })
		n := min(len(p), max, int(s.peerAlloc-(s.sent-s.peerFwd)))
		s.packet(opRW, 0, p[:n])
		s.sent += uint32(n)
		p = p[n:]
	}
}

// accept takes the next connection of the host to port.
func (g *guest) accept(port uint32) *gsock {
	g.TB.Helper()
	for {
		h := g.step()
		if h.op == opRequest && h.dstPort == port {
			s := g.sock(key{host: h.srcPort, guest: h.dstPort})
			s.peerAlloc, s.peerFwd, s.connected = h.bufAlloc, h.fwdCnt, true
			s.op(opResponse, 0)
			return s
		}
	}
}

// idle asserts that the device sends nothing for a while.
func (g *guest) idle() {
	g.TB.Helper()
	time.Sleep(20 * time.Millisecond)
	if _, _, ok := g.rx.Used(); ok {
		g.TB.Fatal("unexpected packet")
	}
}

func (k key) String() string { return fmt.Sprintf("%d<-%d", k.host, k.guest) }
