package legacy

import (
	"fmt"
	"io"
	"os"
	"sync"
	"time"
)

// consoleBuffer is how many bytes wait for a slow sink before further ones are dropped.
const consoleBuffer = 64 << 10

// overrun stands where the writer did not take output in time.
const overrun = "\n[output dropped]\n"

// Console carries a serial port's output to a writer, from a goroutine of its own: a guest that prints never waits for the
// host's disk or terminal. What the writer does not take in time is dropped, and a note says so. How much is kept is the
// writer's business (Log).
type Console struct {
	w io.Writer

	mu     sync.Mutex
	wake   sync.Cond
	buf    []byte
	lost   bool // something was dropped
	failed bool
	closed bool
	done   chan struct{}
}

// NewConsole starts a console that writes to w. A failed write ends the output, not the machine.
func NewConsole(w io.Writer) *Console {
	c := &Console{w: w, done: make(chan struct{}), buf: make([]byte, 0, 512)}
	c.wake.L = &c.mu
	go c.drain()
	return c
}

// put queues a byte, or drops it and says so.
func (c *Console) put(b byte) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed || c.failed {
		return false
	}
	if len(c.buf) >= consoleBuffer {
		c.lost = true
		return false
	}
	c.buf = append(c.buf, b)
	if len(c.buf) == 1 {
		c.wake.Signal()
	}
	return true
}

func (c *Console) drain() {
	defer close(c.done)
	spare := make([]byte, 0, 512)
	for {
		c.mu.Lock()
		for len(c.buf) == 0 && !c.closed {
			c.wake.Wait()
		}
		p := c.buf
		if c.lost {
			c.lost = false
			p = append(p, overrun...)
		}
		c.buf = spare[:0]
		c.mu.Unlock()
		if len(p) == 0 {
			return
		}
		if _, err := c.w.Write(p); err != nil {
			c.mu.Lock()
			c.failed = true
			c.mu.Unlock()
		}
		spare = p
	}
}

// Close writes what is queued and stops; it waits for the writer for at most timeout. It does not close the writer. A second
// Close waits again and is harmless.
func (c *Console) Close(timeout time.Duration) error {
	c.mu.Lock()
	c.closed = true
	c.wake.Signal()
	c.mu.Unlock()
	t := time.NewTimer(timeout)
	defer t.Stop()
	select {
	case <-c.done:
		return nil
	case <-t.C:
		return fmt.Errorf("serial console: its output was not taken within %s: %w", timeout, os.ErrDeadlineExceeded)
	}
}
