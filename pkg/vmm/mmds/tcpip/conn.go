package tcpip

import "time"

// conn is a TCP connection that the guest has opened. Sequence numbers wrap around; their differences do not, as windows are small.
type conn struct {
	peer peer
	port uint16 // here
	mac  mac    // the guest's, to which frames go
	mss  uint32 // data in a segment to the guest

	// What comes: its next sequence number, what is there of a request, and whether nothing more will come.
	rcv    uint32
	buf    []byte
	finIn  bool
	deaf   bool // what comes is thrown away
	ackDue bool

	// What goes: [una, nxt) has been sent and not acknowledged; max is the end of what has ever been sent, where nxt has been put back.
	una, nxt, max uint32
	wnd           uint32 // the guest's window, from una on
	open          bool   // the handshake is over
	answer        Answer
	base          uint32 // the sequence number of the answer's first byte
	finOut        bool   // the answer is the last
	dups          int    // acknowledgements of una in a row that bring nothing
	probe         bool   // send a byte though the window is closed

	rto      time.Duration
	deadline time.Duration // when una has to be acknowledged; 0 for never
	tries    int           // that it has been missed
	heard    time.Duration
	odd      bool // the last segment is not what an undisturbed conversation has
}

// verdict on a connection after a segment.
type verdict int

const (
	keep verdict = iota
	drop
	reset // tell the guest, and drop
)

func newConn(seg *segment, port uint16, iss uint32, now time.Duration) *conn {
	mss := uint32(seg.mss)
	if mss == 0 {
		mss = defaultMSS
	}
	return &conn{
		peer: seg.from, port: port, mac: seg.mac, mss: min(max(mss, minMSS), maxMSS),
		rcv: seg.seq + 1, wnd: uint32(seg.window),
		una: iss, nxt: iss, max: iss, base: iss + 1,
		rto: firstRTO, heard: now,
	}
}

// opens says whether a SYN is the one that the connection began with, and has it answered again.
func (c *conn) opens(seg *segment) bool {
	if c.open || seg.seq+1 != c.rcv {
		return false
	}
	c.nxt = c.una
	return true
}

// end is the sequence number behind the answer, of a FIN if one follows.
func (c *conn) end() uint32 { return c.base + uint32(c.answer.size()) }

// done says that both sides have said all and know it.
func (c *conn) done() bool {
	return c.tries > maxTries || c.finIn && c.finOut && !c.ackDue && c.una == c.end()+1
}

// resetting is the segment that ends the connection.
func (c *conn) resetting() outgoing {
	return outgoing{mac: c.mac, to: c.peer, port: c.port, seq: c.nxt, ack: c.rcv, flags: rst | ack}
}

func (c *conn) receive(seg *segment, server Server) verdict {
	offset := int32(seg.seq - c.rcv)
	c.odd = true
	switch {
	case seg.flags&rst != 0:
		if offset < 0 || offset > MaxRequest {
			return keep
		}
		return drop
	case seg.flags&ack == 0:
		return keep
	case !c.open && seg.ack != c.una+1, seg.flags&syn != 0:
		return reset
	case int32(seg.ack-c.max) > 0: // of what was never sent
		c.ackDue = true
		return keep
	}
	c.odd = false
	c.mac = seg.mac
	c.acknowledge(seg)
	c.take(seg, offset)
	return c.serve(server)
}

// acknowledge takes note of what has arrived.
func (c *conn) acknowledge(seg *segment) {
	news := int32(seg.ack - c.una)
	if news < 0 {
		c.odd = true
		return
	}
	window := uint32(seg.window)
	if news == 0 {
		if window == c.wnd && seg.size() == 0 && c.una != c.max {
			c.odd = true
			if c.dups++; c.dups == 3 {
				c.nxt = c.una
			}
		}
		if c.wnd == 0 && window > 0 {
			c.nxt, c.rto, c.deadline = c.una, firstRTO, 0 // what was sent into a closed window is lost
		}
		c.wnd = window
		return
	}
	c.open = true
	c.una, c.wnd = seg.ack, window
	c.dups, c.probe = 0, false
	c.rto, c.deadline, c.tries = firstRTO, 0, 0
	if int32(c.nxt-c.una) < 0 {
		c.nxt = c.una
	}
	if c.una != c.max {
		c.deadline = c.heard + c.rto
	}
}

// take keeps what the segment has that comes next, as much as there is room for.
func (c *conn) take(seg *segment, offset int32) {
	if seg.size() == 0 && offset == 0 {
		return
	}
	c.ackDue = true
	data, last := seg.data, seg.flags&fin != 0
	if offset > 0 || offset < 0 && -int64(offset) > int64(len(data)) || c.finIn {
		c.odd = true
		return // nothing, or nothing new
	}
	data = data[-offset:]
	if room := MaxRequest - len(c.buf); len(data) > room {
		data, last, c.odd = data[:room], false, true
	}
	c.rcv += uint32(len(data))
	if !c.deaf {
		c.buf = append(c.buf, data...)
	}
	if last {
		c.rcv++
		c.finIn = true
	}
}

// serve has requests answered, one after another.
func (c *conn) serve(server Server) verdict {
	if size := uint32(c.answer.size()); size > 0 && c.una-c.base >= size {
		c.base += size
		c.answer = Answer{}
	}
	for c.answer.size() == 0 && !c.finOut {
		n := server.Request(c.buf)
		if n == 0 {
			if len(c.buf) >= MaxRequest {
				return reset
			}
			c.finOut = c.finIn
			break
		}
		c.answer = server.Respond(c.buf[:n])
		if c.buf = c.buf[:copy(c.buf, c.buf[n:])]; len(c.buf) == 0 {
			c.buf = nil // most connections have one request
		}
		if c.answer.Close {
			c.finOut, c.deaf, c.buf = true, true, nil
		}
	}
	if c.done() {
		return drop
	}
	return keep
}

// next makes the connection's next frame in p and returns its size, 0 if there is none yet.
func (c *conn) next(p []byte, now time.Duration, from ipv4) int {
	if c.deadline != 0 && now >= c.deadline {
		c.deadline = 0
		c.rto = min(2*c.rto, maxRTO)
		c.nxt, c.probe = c.una, true
		if c.tries++; c.tries > maxTries {
			o := c.resetting()
			return o.write(p, from, 0)
		}
	}
	o := outgoing{mac: c.mac, to: c.peer, port: c.port, seq: c.nxt, ack: c.rcv, flags: ack, window: uint16(MaxRequest - len(c.buf))}
	n, used := 0, uint32(0)
	switch {
	case !c.open:
		if c.nxt != c.una {
			return 0
		}
		o.flags, o.mss, used = syn|ack, maxMSS, 1
	case int32(c.end()-c.nxt) > 0:
		n = c.fill(p[dataAt:])
		if used = uint32(n); n > 0 {
			o.flags |= psh
		} else if c.deadline == 0 {
			c.deadline = now + c.rto // until the closed window is looked into
		}
	}
	if c.open && c.finOut && c.nxt+used == c.end() {
		o.flags |= fin
		used++
	}
	if used == 0 && !c.ackDue {
		return 0
	}
	if used == 0 {
		o.seq = c.max
	}
	c.ackDue = false
	if c.nxt += used; int32(c.nxt-c.max) > 0 {
		c.max = c.nxt
	}
	if used > 0 && c.deadline == 0 {
		c.deadline = now + c.rto
	}
	return o.write(p, from, n)
}

// fill copies to p what of the answer comes next and fits into the guest's window.
func (c *conn) fill(p []byte) int {
	room := int32(c.una + c.wnd - c.nxt)
	if c.probe {
		room, c.probe = max(room, 1), false
	}
	if room <= 0 {
		return 0
	}
	n := min(c.mss, uint32(room))
	return c.answer.copyTo(p[:n], int(c.nxt-c.base))
}
