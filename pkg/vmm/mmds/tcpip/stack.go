// Package tcpip is one server on one IPv4 address in the guest's own network, so small that nothing but ARP for that address and TCP
// to one port exists. It answers frames with frames, and has no goroutine, no timer and no file: whoever carries the frames also asks
// when to come again.
//
// All that comes in is a hostile guest's. The package must never keep a frame, hold more for a connection than an unfinished
// request of MaxRequest bytes and one answer, hold more than MaxConns connections, or keep one for ever that gets no answer.
//
// Its TCP (RFC 9293) makes use of where it is: nothing on the way to the guest reorders or damages segments, and few are lost. It opens
// no connection, takes what arrives in order, does without options but for MSS, and sends as much as the guest's window allows;
// what is lost is sent again from there on.
package tcpip

import (
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/metrics"
)

// Bounds on what the guest can have held for it, and on waits.
const (
	// MaxConns is how many connections there are. While there are that many, a new one takes the place of one that has been silent for
	// evictAfter; else its SYN is dropped, and the guest tries again.
	MaxConns = 30
	// MaxRequest bounds a request, in bytes; a connection with a longer one is reset.
	MaxRequest = 4096
	// MaxFrame is the largest frame that Next makes.
	MaxFrame = ethLen + 1500
	// MaxReceive is the largest frame that can be of use: one with a request and the longest headers.
	MaxReceive = ethLen + 60 + 60 + MaxRequest
	// HeadLen is how many bytes Wants needs to see of a frame.
	HeadLen = ethLen + arpLen

	maxMSS     = MaxFrame - dataAt
	minMSS     = 88 // for a guest that has its data in crumbs: as in Linux
	defaultMSS = 536

	maxARPs   = 8  // answers that have not been sent
	maxResets = 64 // segments without a connection that have not been sent

	firstRTO   = 300 * time.Millisecond // until a segment is sent again; twice as long each time
	maxRTO     = 10 * time.Second
	maxTries   = 15 // some 100 s
	evictAfter = 10 * time.Second
)

// serverMAC is the server's hardware address, Firecracker's for this.
var serverMAC = mac{0x06, 0x01, 0x23, 0x45, 0x67, 0x01}

// Server is what the connections are for. It is called with the Stack locked, and must not wait.
type Server interface {
	// Request is how many bytes of b the first request takes, or 0 if it is not whole yet.
	Request(b []byte) int
	// Respond answers a whole request, of which it must keep nothing.
	Respond(request []byte) Answer
}

// Answer is what a Server says to a request: Head, then Body. Both must not change any more.
type Answer struct {
	Head []byte
	Body string
	// Close ends the connection after this answer: whatever else the guest sends is thrown away.
	Close bool
}

// size is that of the answer in bytes.
func (a *Answer) size() int { return len(a.Head) + len(a.Body) }

// copyTo fills p from offset off of the answer, and returns how many bytes that were.
func (a *Answer) copyTo(p []byte, off int) int {
	n := 0
	if off < len(a.Head) {
		n = copy(p, a.Head[off:])
	}
	return n + copy(p[n:], a.Body[max(off+n-len(a.Head), 0):])
}

// Stack is a server's address on one network interface. It is safe for concurrent use.
type Stack struct {
	addr   ipv4
	port   uint16
	server Server
	counts *metrics.MMDS
	epoch  time.Time
	// since is the time since epoch; nil for that of the monotonic clock.
	since func() time.Duration

	mu     sync.Mutex
	arps   []arpReply
	resets []outgoing
	conns  []*conn
	turn   int // the connection to be asked first
}

// New makes a stack for a TCP port of addr. It counts frames and connections in counts, to which other stacks may add, too.
func New(addr [4]byte, port uint16, server Server, counts *metrics.MMDS) *Stack {
	return &Stack{addr: addr, port: port, server: server, counts: counts, epoch: time.Now()}
}

// Reset forgets all connections: the guest's interface has begun anew.
func (s *Stack) Reset() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.counts.ConnectionsDestroyed.Add(uint64(len(s.conns)))
	s.arps, s.resets, s.conns, s.turn = nil, nil, nil, 0
}

// Wants says of the beginning of a frame, HeadLen bytes if it has so many, whether the frame is for the stack's address and thus
// nobody else's matter.
func (s *Stack) Wants(head []byte) bool {
	if len(head) < ethLen+ipLen {
		return false
	}
	switch be.Uint16(head[ethType:]) {
	case typeIPv4:
		return ipv4(head[ethLen+ipDst:]) == s.addr
	case typeARP:
		return len(head) >= ethLen+arpLen && ipv4(head[ethLen+arpTPA:]) == s.addr
	}
	return false
}

// Receive takes a frame, which nobody else may write to meanwhile; it is not kept. It says whether Next may have something to
// send now.
func (s *Stack) Receive(frame []byte) bool {
	kind := uint16(0)
	if len(frame) >= ethLen {
		kind = be.Uint16(frame[ethType:])
	}
	switch kind {
	case typeARP:
		r, is := parseARP(frame, s.addr)
		if is != good {
			s.note(is)
			return false
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		if len(s.arps) < maxARPs {
			s.arps = append(s.arps, r)
		} else {
			s.counts.TxErrors.Inc()
		}
	case typeIPv4:
		seg, is := parseTCP(frame, s.addr)
		if is != good {
			s.note(is)
			return false
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		s.receive(&seg)
	default:
		s.counts.RxBadEth.Inc()
		return false
	}
	return true
}

// note counts a frame that is not served.
func (s *Stack) note(is finding) {
	if is == malformed {
		s.counts.RxAcceptedErr.Inc()
	} else {
		s.counts.RxAcceptedUnusual.Inc()
	}
}

// Next makes the next frame for the guest in p, of at least MaxFrame bytes, and returns its size; or 0, and the time after which
// there may be one, if that is known: 0 if it takes a call of Receive.
func (s *Stack) Next(p []byte) (n int, wait time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if n, wait = s.next(p); n > 0 {
		s.counts.Tx.Inc()
	}
	return n, wait
}

func (s *Stack) next(p []byte) (n int, wait time.Duration) {
	if len(s.arps) > 0 {
		r := s.arps[0]
		s.arps = slices.Delete(s.arps, 0, 1)
		return r.write(p, s.addr), 0
	}
	now := s.now()
	for range s.conns {
		if len(s.conns) == 0 {
			break
		}
		s.turn %= len(s.conns)
		c := s.conns[s.turn]
		n := c.next(p, now, s.addr)
		if c.done() {
			if c.tries > maxTries {
				s.counts.TxErrors.Inc()
			}
			s.remove(c) // and what was behind it is at its place
		} else {
			s.turn++
		}
		if n > 0 {
			return n, 0
		}
	}
	// Behind the connections, some of which may just have been given up.
	if len(s.resets) > 0 {
		r := s.resets[0]
		s.resets = slices.Delete(s.resets, 0, 1)
		return r.write(p, s.addr, 0), 0
	}
	for _, c := range s.conns {
		if c.deadline != 0 && (wait == 0 || c.deadline-now < wait) {
			wait = max(c.deadline-now, time.Millisecond)
		}
	}
	return 0, wait
}

func (s *Stack) now() time.Duration {
	if s.since != nil {
		return s.since()
	}
	return time.Since(s.epoch)
}

func (s *Stack) remove(c *conn) {
	s.counts.ConnectionsDestroyed.Inc()
	s.conns = slices.DeleteFunc(s.conns, func(other *conn) bool { return other == c })
}

// receive finds the connection that a segment belongs to (RFC 9293 §3.10.7).
func (s *Stack) receive(seg *segment) {
	var c *conn
	if seg.port != s.port {
		s.counts.RxAcceptedErr.Inc()
	} else {
		s.counts.Rx.Inc()
		for _, other := range s.conns {
			if other.peer == seg.from {
				c = other
				break
			}
		}
	}
	if seg.flags&(syn|ack|rst) == syn && seg.port == s.port {
		if c != nil && c.opens(seg) {
			return
		}
		if c != nil {
			s.remove(c) // the guest has begun anew, as nobody else can send this
		}
		s.open(seg)
		return
	}
	if c == nil {
		s.refuse(seg)
		return
	}
	c.heard = s.now()
	v := c.receive(seg, s.server)
	if c.odd {
		s.counts.RxAcceptedUnusual.Inc()
	}
	switch v {
	case drop:
		s.remove(c)
	case reset:
		s.remove(c)
		s.reset(c.resetting())
	}
}

// open makes a connection for a SYN, if there is room for one.
func (s *Stack) open(seg *segment) {
	now := s.now()
	if len(s.conns) == MaxConns {
		oldest := slices.MinFunc(s.conns, func(a, b *conn) int { return int(a.heard - b.heard) })
		if now-oldest.heard < evictAfter {
			return
		}
		s.remove(oldest)
		s.reset(oldest.resetting())
	}
	s.counts.ConnectionsCreated.Inc()
	s.conns = append(s.conns, newConn(seg, s.port, rand.Uint32(), now))
}

// refuse answers a segment that belongs to no connection (RFC 9293 §3.5.2).
func (s *Stack) refuse(seg *segment) {
	if seg.flags&rst != 0 {
		return
	}
	o := outgoing{mac: seg.mac, to: seg.from, port: seg.port, flags: rst | ack, ack: seg.seq + seg.size()}
	if seg.flags&ack != 0 {
		o.flags, o.ack, o.seq = rst, 0, seg.ack
	}
	s.reset(o)
}

// reset has a segment sent, unless too many wait already.
func (s *Stack) reset(o outgoing) {
	if len(s.resets) < maxResets {
		s.resets = append(s.resets, o)
	} else {
		s.counts.TxErrors.Inc()
	}
}
