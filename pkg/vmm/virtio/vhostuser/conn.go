package vhostuser

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/virtio/vhostuser/wire"
)

// maxPending bounds the requests that the back-end has not answered.
const maxPending = 16

var (
	errClosed = errors.New("the connection was closed by this side")
	// errLate is wrapped when an answer does not come in time.
	errLate = errors.New("the back-end does not answer")
)

// conn is the front-end's end of a connection: messages out, replies in, in the order of the messages. Its first failure is the end of that, and
// the back-end's to end the connection for good: only then is it known to have done with guest RAM.
type conn struct {
	c    *net.UnixConn
	lost chan struct{} // closed when err is set
	gone chan struct{} // closed when the connection has ended for good

	mu      sync.Mutex // orders the messages with pending
	pending []*call
	err     error
}

// call is a message that has a reply.
type call struct {
	request wire.Request
	reply   chan []byte // has room for it: nobody may be there to take it any more
}

func dial(ctx context.Context, path string) (*conn, error) {
	var d net.Dialer
	c, err := d.DialContext(ctx, "unix", path)
	if err != nil {
		var oe *net.OpError
		if errors.As(err, &oe) {
			err = oe.Err // the caller names the path
		}
		return nil, err
	}
	return &conn{c: c.(*net.UnixConn), lost: make(chan struct{}), gone: make(chan struct{})}, nil
}

// run takes the replies until the first failure, and gives its reason. drain comes next.
func (c *conn) run() error {
	for {
		h, payload, err := readMessage(c.c)
		if err == nil {
			err = c.deliver(h, payload)
		}
		if err != nil {
			c.fail(err)
			return c.failure()
		}
	}
}

// drain waits for the connection's end.
func (c *conn) drain() {
	if err := c.c.SetReadDeadline(time.Time{}); err == nil {
		_, _ = io.Copy(io.Discard, c.c)
	}
	close(c.gone)
}

// hasEnded reports whether the connection has ended for good.
func (c *conn) hasEnded() bool {
	select {
	case <-c.gone:
		return true
	default:
		return false
	}
}

// readMessage reads one message. Descriptors that come with it are closed by the kernel, as nobody receives them.
func readMessage(r io.Reader) (wire.Header, []byte, error) {
	h, payload, err := wire.Read(r)
	if err != nil {
		return h, nil, ended(err)
	}
	return h, payload, nil
}

func ended(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, unix.ECONNRESET) {
		return fmt.Errorf("the back-end has closed the connection: %w", err)
	}
	return err
}

func (c *conn) deliver(h wire.Header, payload []byte) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if h.Flags&wire.FlagReply == 0 || len(c.pending) == 0 || c.pending[0].request != h.Request {
		return fmt.Errorf("%w: message %d (flags %#x) is no reply that was asked for", wire.ErrMalformed, h.Request, h.Flags)
	}
	c.pending[0].reply <- payload
	c.pending = c.pending[1:]
	return nil
}

// fail ends the exchange of messages for the first reason that there is, which tells the back-end to end the connection.
func (c *conn) fail(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.failLocked(err)
}

func (c *conn) failLocked(err error) {
	if c.err != nil {
		return
	}
	c.err, c.pending = err, nil
	close(c.lost)
	_ = c.c.CloseWrite()
	_ = c.c.SetReadDeadline(time.Unix(1, 0)) // run takes note
}

// close ends the connection from this side.
func (c *conn) close() {
	c.fail(errClosed)
	c.c.Close()
}

// failure is nil as long as the connection lasts.
func (c *conn) failure() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.err
}

// send sends a message that has no reply. fds must stay open until it returns.
func (c *conn) send(ctx context.Context, r wire.Request, payload []byte, fds ...int) error {
	_, err := c.post(ctx, r, 0, payload, fds, false)
	return err
}

// ask sends a message and waits for its reply until ctx ends. A reply that comes later is dropped.
func (c *conn) ask(ctx context.Context, r wire.Request, flags uint32, payload []byte, fds ...int) ([]byte, error) {
	p, err := c.post(ctx, r, flags, payload, fds, true)
	if err != nil {
		return nil, err
	}
	select {
	case b := <-p.reply:
		return b, nil
	default:
	}
	select {
	case b := <-p.reply:
		return b, nil
	case <-c.lost:
		return nil, c.failure()
	case <-ctx.Done():
		return nil, fmt.Errorf("waiting for the reply to message %d: %w: %w", r, errLate, context.Cause(ctx))
	}
}

func (c *conn) post(ctx context.Context, r wire.Request, flags uint32, payload []byte, fds []int, reply bool) (*call, error) {
	var oob []byte
	if len(fds) > 0 {
		oob = unix.UnixRights(fds...)
	}
	deadline, ok := ctx.Deadline()
	if !ok {
		deadline = time.Now().Add(answerTimeout)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil {
		return nil, c.err
	}
	if len(c.pending) >= maxPending {
		return nil, fmt.Errorf("%w: %d messages are unanswered", errLate, maxPending)
	}
	b := wire.Message(r, flags, payload)
	err := c.c.SetWriteDeadline(deadline)
	if err == nil {
		var n int
		if n, _, err = c.c.WriteMsgUnix(b, oob, nil); err == nil && n != len(b) {
			err = io.ErrShortWrite
		}
	}
	if err != nil {
		// Nobody knows what has gone out.
		c.failLocked(fmt.Errorf("sending message %d: %w", r, err))
		return nil, c.err
	}
	if !reply {
		return nil, nil
	}
	p := &call{request: r, reply: make(chan []byte, 1)}
	c.pending = append(c.pending, p)
	return p, nil
}
