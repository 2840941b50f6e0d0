package vsock

import (
	"strconv"

	"golang.org/x/sys/unix"
)

// receive handles a packet of the guest that belongs to c. Valid says whether its length is right.
func (c *conn) receive(h *header, bufs [][]byte, valid bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.state != stateConnecting && c.state != stateOpen {
		c.s.refuse(h) // it ended while the packet was on its way
		return
	}
	if !valid {
		c.reset()
		return
	}
	if c.peerAlloc, c.peerFwd = h.bufAlloc, h.fwdCnt; c.state == stateOpen {
		c.changed.Broadcast()
	}
	switch h.op {
	case opRST:
		c.lost()
		return
	case opResponse:
		if c.state == stateConnecting {
			c.accepted()
			return
		}
	case opShutdown:
		if c.state == stateOpen {
			c.shutdown(h.flags)
			return
		}
	case opRW:
		if c.state == stateOpen && !c.guestNoSend {
			c.data(bufs, int(h.len))
			return
		}
	case opCreditUpdate:
		return
	case opCreditRequest:
		c.pend(pendCredit)
		return
	}
	c.reset() // a packet that has no place here
}

// accepted tells the host's program that it is connected.
func (c *conn) accepted() {
	c.timer.Stop()
	line := append(strconv.AppendUint([]byte("OK "), uint64(c.key.host), 10), '\n')
	// Nothing has been written to the socket yet: the line fits, unless the host has gone.
	if n, err := unix.Write(c.fd, line); err != nil || n != len(line) {
		c.reset()
		return
	}
	c.state = stateOpen
	c.changed.Broadcast()
}

// lost is the guest's end of the connection. The guest may have ended it because the host is slow to take its last bytes;
// they still go out.
func (c *conn) lost() {
	if c.state == stateConnecting {
		c.close()
		return
	}
	c.state, c.pends = stateDraining, 0
	c.guestNoSend, c.guestNoRecv = true, true
	c.s.forget(c)
	c.settle()
	c.changed.Broadcast()
}

func (c *conn) shutdown(flags uint32) {
	c.guestNoSend = c.guestNoSend || flags&shutdownSend != 0
	if flags&shutdownReceive != 0 && !c.guestNoRecv {
		c.guestNoRecv = true
		_ = c.sock.CloseRead() // so that the host's writer learns of it; fails only where the host has gone
		c.changed.Broadcast()
	}
	c.settle()
}

// data takes n bytes of the guest behind the header in bufs.
func (c *conn) data(bufs [][]byte, n int) {
	c.s.counts.TxBytes.Add(uint64(n))
	if c.received += uint32(n); c.received-c.forwarded > bufferSize {
		c.reset() // more than its credit
		return
	}
	done := 0
	if c.buf.n == 0 && !c.hostNoRecv {
		v := &c.s.txVec
		v.Set(bufs, headerSize, n)
		for v.Len() > 0 && !c.hostNoRecv {
			m, err := v.Writev(c.fd)
			if err == unix.EAGAIN {
				break
			}
			if err != nil {
				c.s.counts.TxWriteFails.Inc()
				c.hostGone()
				break
			}
			v.Advance(m)
			done += m
		}
	}
	if c.state == stateClosed {
		return
	}
	if c.hostNoRecv {
		done = n
	}
	c.forward(done)
	if done == n {
		return
	}
	if c.buf.b == nil {
		c.buf.b = c.s.bufs.Get().(*[bufferSize]byte)
	}
	c.buf.add(bufs, headerSize+done, n-done)
	if !c.writing && c.s.spawn(c.write) {
		c.writing = true
		c.users++
	}
	c.filled.Broadcast()
}

// forward accounts for n bytes that have left for the host, or for nowhere.
func (c *conn) forward(n int) {
	if c.forwarded += uint32(n); c.forwarded-c.told >= creditStep && c.state == stateOpen {
		c.pend(pendCredit)
	}
}

// hostGone is the host's end of taking data: what the guest has sent or will send is dropped.
func (c *conn) hostGone() {
	if c.hostNoRecv {
		return
	}
	c.hostNoRecv = true
	c.forward(c.buf.n)
	c.freeBuffer()
	if c.state == stateOpen {
		c.pend(pendShutdown)
	}
	c.settle()
	c.changed.Broadcast()
}

// write is the goroutine that works the buffer off; it starts with the first byte that is ever buffered.
func (c *conn) write() {
	defer c.leave()
	for {
		c.mu.Lock()
		for c.buf.n == 0 && c.state != stateClosed {
			c.filled.Wait()
		}
		closed := c.state == stateClosed
		c.mu.Unlock()
		if closed || c.raw.Write(c.writeFn) != nil {
			return
		}
		c.s.rx.kick()
	}
}

// tryWrite writes what is buffered; it returns false when the socket must get room first.
func (c *conn) tryWrite(uintptr) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	for c.buf.n > 0 && c.state != stateClosed {
		n, err := unix.Write(c.fd, c.buf.head())
		switch err {
		case nil:
			c.buf.drop(n)
			c.forward(n)
			if c.pends != 0 {
				c.s.rx.kick()
			}
		case unix.EINTR:
		case unix.EAGAIN:
			return false
		default:
			c.s.counts.TxFlushFails.Inc()
			c.hostGone()
		}
	}
	if c.buf.n == 0 {
		c.freeBuffer()
		c.settle()
	}
	return true
}
