package vsock

import (
	"errors"
	"fmt"
	"net"
	"strconv"
	"sync"

	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/metrics"
	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/virtio"
	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/virtio/iov"
	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/virtio/queue"
)

// firstHostPort is where the ports of connections from the host begin; Firecracker's.
const firstHostPort = 1 << 30

// key names a connection: there is only one address on either side.
type key struct{ host, guest uint32 }

// session is the device between an activation and the reset that ends it. Locks are taken in this order: rx.turn,
// conn.mu, then session.mu or rx.mu.
type session struct {
	cid    uint32
	path   string
	counts *metrics.Vsock
	tx     *queue.Queue
	irq    virtio.Interrupt
	rx     rx
	done   sync.WaitGroup
	bufs   sync.Pool // of *[bufferSize]byte

	// What the goroutine of the tx queue works with.
	txVec    iov.Vec
	txHeader [headerSize]byte

	mu       sync.Mutex
	stopped  bool
	slots    map[*conn]struct{} // all connections: the draining ones too, and those with a packet pending
	conns    map[key]*conn      // those that the guest knows
	nextPort uint32
}

func newSession(cid uint32, path string, a virtio.Activation) *session {
	s := &session{
		cid:      cid,
		path:     path,
		counts:   new(metrics.Vsock), // nobody's, unless it is replaced
		tx:       a.Queues[1],
		irq:      a.Interrupt,
		slots:    make(map[*conn]struct{}),
		conns:    make(map[key]*conn),
		nextPort: firstHostPort,
	}
	s.bufs.New = func() any { return new([bufferSize]byte) }
	s.rx.init(s, a.Queues[0])
	return s
}

func (s *session) start() {
	s.spawn(func() { s.end("tx", s.serve()) })
	s.spawn(func() { s.end("rx", s.rx.serve()) })
}

// spawn runs f unless the session has been stopped.
func (s *session) spawn(f func()) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.stopped {
		s.done.Go(f)
	}
	return !s.stopped
}

// end stops serving a guest that broke one of its queues.
func (s *session) end(name string, err error) {
	if err == nil || errors.Is(err, queue.ErrStopped) {
		return
	}
	if s.halt() {
		fails := &s.counts.RxQueueEventFails
		if name == "tx" {
			fails = &s.counts.TxQueueEventFails
		}
		fails.Inc()
		s.irq.Broken(fmt.Errorf("vsock: %s queue: %w", name, err))
	}
}

// halt stops the queues and closes all connections. It returns false if that has been done before.
func (s *session) halt() bool {
	s.mu.Lock()
	if s.stopped {
		s.mu.Unlock()
		return false
	}
	s.stopped = true
	conns := make([]*conn, 0, len(s.slots))
	for c := range s.slots {
		conns = append(conns, c)
	}
	s.mu.Unlock()
	s.rx.q.Stop()
	s.tx.Stop()
	close(s.rx.stop)
	for _, c := range conns {
		c.mu.Lock()
		c.close()
		c.mu.Unlock()
	}
	s.rx.drop()
	return true
}

func (s *session) stop() {
	s.halt()
	s.done.Wait()
}

// take registers a new connection unless there are MaxConns, or it is not the first by its name.
func (s *session) take(c *conn, named bool) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.stopped || len(s.slots) >= MaxConns || (named && s.conns[c.key] != nil) {
		return false
	}
	s.slots[c] = struct{}{}
	s.counts.ConnectionsAdded.Inc()
	if named {
		s.conns[c.key] = c
	}
	return true
}

// name gives a connection from the host to a guest's port a free host port.
func (s *session) name(c *conn, guest uint32) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for {
		c.key = key{host: s.nextPort, guest: guest}
		if s.nextPort++; s.nextPort == 1<<32-1 {
			s.nextPort = firstHostPort
		}
		if s.conns[c.key] == nil {
			s.conns[c.key] = c
			return
		}
	}
}

// forget makes a connection's name free.
func (s *session) forget(c *conn) {
	s.mu.Lock()
	if s.conns[c.key] == c {
		delete(s.conns, c.key)
	}
	s.mu.Unlock()
}

// release makes a connection's slot free.
func (s *session) release(c *conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, ok := s.slots[c]; ok {
		delete(s.slots, c)
		s.counts.ConnectionsRemoved.Inc()
	}
}

// accept takes a connection of a host program over, or returns false.
func (s *session) accept(sock *net.UnixConn) bool {
	c, err := newConn(s, sock)
	if err != nil || !s.take(c, false) {
		return false
	}
	s.run(c, c.fromHost)
	return true
}

// serve works off the guest's packets.
func (s *session) serve() error {
	var c queue.Chain
	for {
		if err := s.tx.Wait(); err != nil {
			return err
		}
		s.counts.TxQueueEvents.Inc()
		for n := 1; ; n++ {
			ok, err := s.tx.Pop(&c)
			if err != nil {
				return err
			}
			if !ok {
				break
			}
			s.counts.TxPackets.Inc()
			s.packet(c.Readable)
			if err := s.tx.Push(c.Head, 0); err != nil {
				return err
			}
			if err := s.rx.answer(); err != nil {
				return err
			}
			// A driver that keeps the queue full gets its buffers back now and then.
			if n%32 == 0 && s.tx.NeedsInterrupt() {
				s.irq.Queue()
			}
		}
		if s.tx.NeedsInterrupt() {
			s.irq.Queue()
		}
	}
}

// packet handles one packet of the guest.
func (s *session) packet(bufs [][]byte) {
	var h header
	ok := h.parse(bufs, &s.txHeader)
	if h.srcCID != uint64(s.cid) || h.dstCID != hostCID {
		return // nobody to answer
	}
	if h.typ != typeStream {
		s.refuse(&h)
		return
	}
	k := key{host: h.dstPort, guest: h.srcPort}
	s.mu.Lock()
	c := s.conns[k]
	s.mu.Unlock()
	switch {
	case c != nil:
		c.receive(&h, bufs, ok)
	case ok && h.op == opRequest:
		s.fromGuest(k, &h)
	default:
		s.refuse(&h)
	}
}

// refuse answers a packet that has no connection.
func (s *session) refuse(h *header) {
	if h.op != opRST {
		s.rx.refuse(key{host: h.dstPort, guest: h.srcPort}, h.typ)
	}
}

// fromGuest connects the guest to the host's socket for the port.
func (s *session) fromGuest(k key, h *header) {
	// A local socket connects at once or, when its backlog is full, not at all.
	sock, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: s.path + "_" + strconv.FormatUint(uint64(k.host), 10), Net: "unix"})
	if err != nil {
		s.refuse(h)
		return
	}
	c, err := newConn(s, sock)
	if err != nil {
		sock.Close()
		s.refuse(h)
		return
	}
	c.key, c.state, c.peerAlloc, c.peerFwd = k, stateOpen, h.bufAlloc, h.fwdCnt
	if !s.take(c, true) {
		sock.Close()
		s.refuse(h)
		return
	}
	c.mu.Lock()
	c.pend(pendResponse)
	c.mu.Unlock()
	s.run(c, c.read)
}

// run starts the reader of a connection that take has taken.
func (s *session) run(c *conn, read func()) {
	if !s.spawn(read) {
		c.leave() // closed by halt
	}
}
