package vsock

import (
	"bytes"
	"errors"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// maxLine bounds the host's CONNECT line, in bytes.
const maxLine = 32

// fromHost is the goroutine of a connection that a host program asked for.
func (c *conn) fromHost() {
	port, err := c.connectLine()
	c.mu.Lock()
	if err != nil || c.state != stateHandshake {
		c.close()
		c.mu.Unlock()
		c.leave()
		return
	}
	c.state = stateConnecting
	c.s.name(c, port)
	c.pend(pendRequest)
	c.timer = time.AfterFunc(requestTimeout, func() {
		c.mu.Lock()
		if c.state == stateConnecting {
			c.reset()
		}
		c.mu.Unlock()
		c.s.rx.kick()
	})
	c.mu.Unlock()
	c.s.rx.kick()
	c.read()
}

// connectLine reads "CONNECT <port>\n" and not a byte more: what follows is the guest's.
func (c *conn) connectLine() (uint32, error) {
	if err := c.sock.SetReadDeadline(time.Now().Add(requestTimeout)); err != nil {
		return 0, err
	}
	line := make([]byte, 0, maxLine)
	for !bytes.HasSuffix(line, []byte{'\n'}) {
		if len(line) == maxLine {
			return 0, errors.New("line too long")
		}
		if _, err := c.sock.Read(line[len(line) : len(line)+1]); err != nil {
			return 0, err
		}
		line = line[:len(line)+1]
	}
	word, ok := bytes.CutPrefix(line[:len(line)-1], []byte("CONNECT "))
	if !ok {
		return 0, errors.New("no CONNECT")
	}
	port, err := strconv.ParseUint(string(word), 10, 32)
	if err != nil {
		return 0, err
	}
	return uint32(port), c.sock.SetReadDeadline(time.Time{})
}

// read is the goroutine that carries the host's data to the guest.
func (c *conn) read() {
	defer c.leave()
	for {
		c.mu.Lock()
		// Linux tells of new credit on its own; a request for it at each stall would only cut data into small packets.
		for c.state == stateConnecting || (c.state == stateOpen && !c.guestNoRecv && c.creditLocked() == 0) {
			c.changed.Wait()
		}
		stop := c.state != stateOpen || c.guestNoRecv
		c.mu.Unlock()
		if stop {
			return
		}
		err := c.raw.Read(c.readFn)
		if err == nil {
			err = c.err
		}
		switch {
		case err == errNoCredit || (err == nil && c.n > 0):
			continue
		case errors.As(err, new(fatal)):
			c.s.end("rx", err)
			return
		}
		break
	}
	// The end of the host's data. Full closing is told from half by the hang-up, now or later.
	gone := c.pollHost()&(unix.POLLHUP|unix.POLLERR) != 0
	c.hostEnded(gone)
	if !gone && c.raw.Read(c.hangFn) == nil {
		c.hostEnded(true)
	}
}

// hostEnded says that the host sends nothing any more and, when gone, takes nothing either.
func (c *conn) hostEnded(gone bool) {
	c.mu.Lock()
	if c.state == stateOpen {
		if !c.hostNoSend {
			c.hostNoSend = true
			c.pend(pendShutdown)
		}
	}
	if gone && c.state != stateClosed {
		c.hostGone()
	}
	c.settle()
	c.mu.Unlock()
	c.s.rx.kick()
}

// tryRead moves what the host sent to the guest; it returns false when there is nothing to read yet.
func (c *conn) tryRead(uintptr) bool {
	// Without this look an idle connection would ask for a turn, and for a buffer, to learn that it is idle.
	if !c.hot && c.pollHost() == 0 {
		return false
	}
	c.n, c.hot, c.err = c.s.rx.fill(c)
	return c.err != unix.EAGAIN
}

// hungUp says whether the host has closed its side wholly.
func (c *conn) hungUp(uintptr) bool { return c.pollHost()&(unix.POLLHUP|unix.POLLERR) != 0 }

// pollHost asks for the state of the socket without waiting. Only the reader calls it.
func (c *conn) pollHost() int16 {
	c.pfd[0] = unix.PollFd{Fd: int32(c.fd), Events: unix.POLLIN | unix.POLLRDHUP}
	for {
		n, err := unix.Poll(c.pfd[:], 0)
		if err == unix.EINTR {
			continue
		}
		if err != nil || n == 0 {
			return 0
		}
		return c.pfd[0].Revents
	}
}
