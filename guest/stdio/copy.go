package stdio

import (
	"errors"
	"io"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/fcshim/containerd-shim-fc-v2/guest/link"
)

// bufferSize is a pipe's default capacity: what one read can find.
const bufferSize = 64 << 10

// buffers are shared by all copies. Package level, because that is what a sync.Pool is for; it has no state to speak of.
var buffers = sync.Pool{New: func() any { return new([bufferSize]byte) }}

// input copies from the host to the process.
type input struct {
	src link.Conn
	dst *os.File
	// closeDst: the end of src is the end of dst. A terminal's input has no end.
	closeDst bool
}

// run copies until the host ends the stream, the process no longer reads, or stop.
func (c *input) run() {
	buf := buffers.Get().(*[bufferSize]byte)
	defer buffers.Put(buf)
	for {
		n, err := c.src.Read(buf[:])
		if n > 0 {
			if _, werr := c.dst.Write(buf[:n]); werr != nil {
				c.src.Close() // tells the host that nobody reads
				break
			}
		}
		if err != nil {
			break
		}
	}
	if c.closeDst {
		c.dst.Close()
	}
}

// stop ends run wherever it is.
func (c *input) stop() {
	c.src.Close()
	if c.closeDst {
		c.dst.Close()
	}
}

// output copies from the process to the host.
type output struct {
	src   *os.File
	dst   link.Conn   // nil: nobody wants to see it, but a terminal must be read all the same
	tty   bool        // src is a terminal
	after atomic.Bool // the process has ended
}

func newOutput(src *os.File, dst link.Conn, tty bool) *output {
	return &output{src: src, dst: dst, tty: tty}
}

// run copies until the last holder of the other end has closed it, the host closes, or one of the bounds set by ended has
// passed; then it ends the host's stream.
func (c *output) run() {
	buf := buffers.Get().(*[bufferSize]byte)
	defer buffers.Put(buf)
	defer c.src.Close()
	for {
		n, err := c.src.Read(buf[:])
		ok := c.write(buf[:n])
		if ok && errors.Is(err, os.ErrDeadlineExceeded) {
			ok = c.rest(buf)
		}
		if ok && err == nil { // else io.EOF, or EIO from a terminal
			continue
		}
		if c.dst == nil {
			return
		}
		if ok {
			c.dst.CloseWrite()
		} else {
			c.dst.Close()
		}
		return
	}
}

// ended bounds what is left for run to do.
func (c *output) ended() {
	c.after.Store(true)
	c.src.SetReadDeadline(time.Now().Add(Grace))
	if c.dst != nil {
		c.dst.SetWriteDeadline(time.Now().Add(Stall))
	}
}

func (c *output) write(b []byte) bool {
	if len(b) == 0 || c.dst == nil {
		return true
	}
	if c.after.Load() { // each write that succeeds is progress, so the next has the full time again
		c.dst.SetWriteDeadline(time.Now().Add(Stall))
	}
	n, err := c.dst.Write(b)
	return n == len(b) && err == nil
}

// rest hands over what is in the pipe now, and not what its holders go on writing. The host may have been slow for longer
// than Grace, and then it is the process's own last words.
func (c *output) rest(buf *[bufferSize]byte) bool {
	if c.tty {
		return c.restOfTerminal(buf)
	}
	left := pending(c.src)
	for left > 0 {
		if err := c.src.SetReadDeadline(time.Now().Add(Grace)); err != nil {
			return false
		}
		n, err := c.src.Read(buf[:min(left, bufferSize)])
		if !c.write(buf[:n]) {
			return false
		}
		if left -= n; err != nil {
			return errors.Is(err, io.EOF)
		}
	}
	return true
}

// A terminal holds 64 KiB at most, of which it shows 4 KiB at a time and brings up more as those are read, a moment later.
const (
	terminalChunk  = 4 << 10
	terminalReads  = 32
	terminalMoment = 50 * time.Millisecond
)

// restOfTerminal is rest for a terminal, which cannot tell how much it holds: it reads until nothing comes for a moment, but,
// since a survivor may write without end, not more than twice of what a terminal can hold.
func (c *output) restOfTerminal(buf *[bufferSize]byte) bool {
	for range terminalReads {
		if err := c.src.SetReadDeadline(time.Now().Add(terminalMoment)); err != nil {
			return false
		}
		n, err := c.src.Read(buf[:terminalChunk])
		if !c.write(buf[:n]) {
			return false
		}
		if err != nil {
			return true // nothing more in time, or EIO: the last holder of the terminal has closed it
		}
	}
	return true
}
