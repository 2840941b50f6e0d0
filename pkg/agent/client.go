package agent

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"time"

	"github.com/containerd/ttrpc"

	"github.com/fcshim/containerd-shim-fc-v2/pkg/agent/agentpb"
)

// Client calls the agent. Its errors are gRPC statuses: errgrpc.ToNative turns them into errdefs classes.
type Client struct {
	agentpb.AgentClient
	conn *ttrpc.Client
	done chan struct{}
}

// writeTimeout is how long a request may take to leave, which it does at once unless the guest has left some hundred unread.
const writeTimeout = 10 * time.Second

// NewClient makes a client on an accepted control connection, which it owns from then on.
func NewClient(conn net.Conn) *Client { return newClient(conn, writeTimeout) }

func newClient(conn net.Conn, timeout time.Duration) *Client {
	c := &Client{done: make(chan struct{})}
	c.conn = ttrpc.NewClient(&impatientConn{conn, timeout}, ttrpc.WithOnClose(func() { close(c.done) }))
	c.AgentClient = agentpb.NewAgentClient(c.conn)
	return c
}

// impatientConn gives up a connection whose peer does not read: ttrpc waits for it with no regard to a call's context, and all calls
// wait for the one that writes.
type impatientConn struct {
	net.Conn
	timeout time.Duration
}

func (c *impatientConn) Write(p []byte) (int, error) {
	if err := c.SetWriteDeadline(time.Now().Add(c.timeout)); err != nil {
		return 0, err
	}
	n, err := c.Conn.Write(p)
	if errors.Is(err, os.ErrDeadlineExceeded) {
		c.Close() // half a message may have gone
		err = fmt.Errorf("the guest's agent has not read for %v: %w", c.timeout, err)
	}
	return n, err
}

// Done is closed when the connection has ended, from whichever side; every call fails from then on.
func (c *Client) Done() <-chan struct{} { return c.done }

// Close ends the connection. The agent powers its VM off when it notices.
func (c *Client) Close() error { return c.conn.Close() }

// Accept waits until the guest dials l, the listener of ControlPort, and makes a client on that connection. The connection is
// the sign that the agent is ready. It waits until ctx ends, and closes l in any case: there is one agent, and it dials once.
func Accept(ctx context.Context, l net.Listener) (*Client, error) {
	start := time.Now()
	stop := context.AfterFunc(ctx, func() { l.Close() })
	conn, err := l.Accept()
	if !stop() && err == nil {
		conn.Close()
		err = net.ErrClosed
	}
	l.Close()
	if err != nil {
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		return nil, fmt.Errorf("no call from the guest's agent after %v: %w", time.Since(start).Round(time.Millisecond), err)
	}
	return NewClient(conn), nil
}
