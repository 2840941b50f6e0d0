package vsock

import (
	"errors"
	"net"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// requestTimeout bounds how long a host program may take for its CONNECT line, and then the guest for its answer.
const requestTimeout = 2 * time.Second

// creditStep is how much the guest's credit may grow before the guest is told: half of the buffer keeps data moving
// while the news travels.
const creditStep = bufferSize / 2

// maxDiscard bounds what is read of the host's data to close a connection cleanly, in bytes.
const maxDiscard = 4 << 20

type state int

const (
	stateHandshake  state = iota // the host's CONNECT line is awaited
	stateConnecting              // the guest's answer is awaited
	stateOpen
	stateDraining // the guest has forgotten the connection; what it sent is still on the way to the host
	stateClosed
)

// Packets without data that wait to be sent to the guest, in the order of their sending.
const (
	pendRequest = 1 << iota
	pendResponse
	pendCredit
	pendShutdown
	pendRST
)

// errNoCredit says that the guest takes no data now.
var errNoCredit = errors.New("no credit")

// fatal is an error of the rx queue, which ends the whole session.
type fatal struct{ error }

func (f fatal) Unwrap() error { return f.error }

// conn is one connection.
type conn struct {
	s    *session
	key  key
	sock *net.UnixConn
	raw  syscall.RawConn
	fd   int // for use under mu while state != stateClosed, or by a goroutine that is counted in users

	// List of rx; rx.mu.
	next   *conn
	queued bool

	mu      sync.Mutex
	changed sync.Cond // state or credit: wakes the reader
	filled  sync.Cond // state or buffer: wakes the writer
	state   state
	pends   uint
	timer   *time.Timer
	writing bool // the writer has been started
	users   int  // goroutines that use the socket without mu: reader and writer

	// Credit (virtio 1.2 §5.10.6.3); all counters wrap.
	peerAlloc, peerFwd uint32
	sent               uint32 // to the guest
	received           uint32 // from the guest
	forwarded          uint32 // of what was received, to the host or nowhere
	told               uint32 // forwarded, as the guest last heard
	buf                buffer

	guestNoSend, guestNoRecv bool // the guest shut its side down
	hostNoSend, hostNoRecv   bool // the host did
	wrShut                   bool // the host has seen the end of the guest's data

	// What belongs to the reader.
	hot            bool // the last read took all it could, so there may be more
	n              int
	err            error
	pfd            [1]unix.PollFd
	readFn, hangFn func(uintptr) bool
	writeFn        func(uintptr) bool
}

func newConn(s *session, sock *net.UnixConn) (*conn, error) {
	c := &conn{s: s, sock: sock, users: 1}
	c.changed.L, c.filled.L = &c.mu, &c.mu
	var err error
	if c.raw, err = sock.SyscallConn(); err != nil {
		return nil, err
	}
	if err := c.raw.Control(func(fd uintptr) { c.fd = int(fd) }); err != nil {
		return nil, err
	}
	c.readFn, c.hangFn, c.writeFn = c.tryRead, c.hungUp, c.tryWrite
	return c, nil
}

// pend has packets sent to the guest. The caller holds c.mu, and calls rx.kick or rx.answer later.
func (c *conn) pend(what uint) {
	c.pends |= what
	c.s.rx.enqueue(c)
}

// control makes the next pending packet; it returns false if there is none.
func (c *conn) control(h *header) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	defer c.unlisted()
	if c.pends == 0 {
		return false
	}
	what := c.pends & -c.pends
	c.pends &^= what
	c.header(h)
	switch what {
	case pendRequest:
		h.op = opRequest
	case pendResponse:
		h.op = opResponse
	case pendCredit:
		h.op = opCreditUpdate
	case pendShutdown:
		h.op = opShutdown
		if c.hostNoRecv {
			h.flags |= shutdownReceive
		}
		if c.hostNoSend {
			h.flags |= shutdownSend
		}
	case pendRST:
		h.op = opRST
	}
	if c.pends != 0 {
		c.s.rx.enqueue(c)
	}
	return true
}

// header starts a packet to the guest, which tells it of its credit. The caller holds c.mu.
func (c *conn) header(h *header) {
	c.told = c.forwarded
	c.pends &^= pendCredit
	*h = header{
		srcCID: hostCID, dstCID: uint64(c.s.cid), srcPort: c.key.host, dstPort: c.key.guest,
		typ: typeStream, bufAlloc: bufferSize, fwdCnt: c.forwarded,
	}
}

// credit is how many bytes the guest takes now.
func (c *conn) credit() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.creditLocked()
}

func (c *conn) creditLocked() int {
	if c.state != stateOpen || c.guestNoRecv {
		return 0
	}
	// A guest that counts wrongly, or takes credit back, gets nothing.
	if flying := c.sent - c.peerFwd; flying < c.peerAlloc {
		return int(c.peerAlloc - flying)
	}
	return 0
}

// deliver accounts for n bytes that lie in the guest's buffers and starts their header; it returns false if the guest does
// not want them any more.
func (c *conn) deliver(n int, h *header) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.state != stateOpen {
		return false
	}
	c.sent += uint32(n)
	c.header(h)
	h.op = opRW
	return true
}

// settle does what the state asks for. The caller holds c.mu.
func (c *conn) settle() {
	if c.state == stateClosed {
		return
	}
	if c.guestNoSend && c.buf.n == 0 && !c.wrShut {
		c.wrShut = true
		_ = c.sock.CloseWrite() // fails only where the host has gone, which the reader finds out
	}
	noneToHost := c.wrShut || c.hostNoRecv
	switch {
	case c.state == stateDraining && noneToHost:
		c.close()
	case c.state == stateOpen && noneToHost && (c.hostNoSend || c.guestNoRecv):
		c.reset()
	}
}

// reset ends the connection on both sides now. The caller holds c.mu.
func (c *conn) reset() {
	c.s.counts.ConnectionsKilled.Inc()
	c.close()
	c.pends = 0
	c.pend(pendRST)
}

// close ends the connection on the host's side and gives all that it holds free; the socket's descriptor and the slot
// follow when reader and writer have left, and the slot when the guest has taken the last packet. The caller holds c.mu.
func (c *conn) close() {
	if c.state == stateClosed {
		return
	}
	// Wakes the reader and the writer, and the host; fails only where the host has gone.
	_ = unix.Shutdown(c.fd, unix.SHUT_RDWR)
	if c.state != stateHandshake {
		c.discard()
	}
	c.state = stateClosed
	c.pends = 0
	if c.timer != nil {
		c.timer.Stop()
	}
	c.freeBuffer()
	c.s.forget(c)
	c.changed.Broadcast()
	c.filled.Broadcast()
	if c.users == 0 {
		c.free()
	}
}

// leave is the end of a goroutine that used the socket.
func (c *conn) leave() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.users--; c.users == 0 && c.state == stateClosed {
		c.free()
	}
}

// free closes the socket. Nobody may be using it: Close waits for them. The slot is kept until what is pending has been
// sent: a guest that takes no packets could else have any number of connections end.
func (c *conn) free() {
	c.sock.Close()
	if !c.s.rx.listed(c) {
		c.s.release(c)
	}
}

// unlisted makes the slot of a connection free that only waited for its last packet. The caller holds c.mu.
func (c *conn) unlisted() {
	if c.state == stateClosed && c.users == 0 && c.pends == 0 {
		c.s.release(c)
	}
}

// discard reads what the host sent and nobody wants: closing a socket with unread data would turn the end of stream that
// the host sees, behind the guest's last bytes, into ECONNRESET. The socket has been shut down, so no more can come.
func (c *conn) discard() {
	b := c.s.bufs.Get().(*[bufferSize]byte)
	defer c.s.bufs.Put(b)
	for range maxDiscard / bufferSize {
		if n, err := unix.Read(c.fd, b[:]); n <= 0 && err != unix.EINTR {
			return
		}
	}
}

func (c *conn) freeBuffer() {
	if c.buf.b != nil {
		c.s.bufs.Put(c.buf.b)
		c.buf = buffer{}
	}
}
