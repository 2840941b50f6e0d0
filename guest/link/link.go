// Package link is the guest's end of the connections to its host: it dials, over vsock, and serves the one control
// connection. See package agent for the shim's end.
package link

import (
	"context"
	"fmt"
	"net"
	"sync"
	"time"

	"github.com/mdlayher/vsock"

	"github.com/fcshim/containerd-shim-fc-v2/pkg/agent"
)

// DialTimeout bounds each dial; the host's side answers at once or is gone.
const DialTimeout = 10 * time.Second

// Conn is a byte stream whose directions end separately.
type Conn interface {
	net.Conn
	CloseWrite() error
}

// Dialer opens a connection to a port of the host.
type Dialer func(ctx context.Context, port uint32) (Conn, error)

// Vsock dials the host over vsock.
func Vsock(ctx context.Context, port uint32) (Conn, error) {
	conn, err := vsock.DialContext(ctx, vsock.Host, port, nil)
	if err != nil {
		return nil, err // a nil *vsock.Conn must not become a Conn
	}
	return conn, nil
}

// Control opens the control connection.
func (d Dialer) Control(ctx context.Context) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, DialTimeout)
	defer cancel()
	conn, err := d(ctx, agent.ControlPort)
	if err != nil {
		return nil, fmt.Errorf("dial the shim on host port %d: %w", agent.ControlPort, err)
	}
	return conn, nil
}

// Stream opens the stream with this id.
func (d Dialer) Stream(ctx context.Context, id uint64) (Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, DialTimeout)
	defer cancel()
	conn, err := d(ctx, agent.StreamPort)
	if err != nil {
		return nil, fmt.Errorf("dial stream %d on host port %d: %w", id, agent.StreamPort, err)
	}
	if err := agent.WriteHeader(conn, id); err != nil {
		conn.Close()
		return nil, err
	}
	return conn, nil
}

// Once is a listener that accepts one connection, which is open already, and ends with it: a server that serves it returns
// from Serve when the connection is over.
type Once struct {
	conn   chan net.Conn
	addr   net.Addr
	closed chan struct{}
	close  func()
}

// NewOnce makes a listener of conn.
func NewOnce(conn net.Conn) *Once {
	o := &Once{conn: make(chan net.Conn, 1), addr: conn.LocalAddr(), closed: make(chan struct{})}
	o.close = sync.OnceFunc(func() { close(o.closed) })
	o.conn <- onceConn{conn, o.close}
	return o
}

// Accept returns the connection, and then waits for its end and returns net.ErrClosed.
func (o *Once) Accept() (net.Conn, error) {
	select {
	case conn := <-o.conn:
		return conn, nil
	case <-o.closed:
		return nil, net.ErrClosed
	}
}

// Close ends Accept; it leaves the connection alone.
func (o *Once) Close() error { o.close(); return nil }

// Addr is the connection's own.
func (o *Once) Addr() net.Addr { return o.addr }

type onceConn struct {
	net.Conn
	closed func()
}

func (c onceConn) Close() error { defer c.closed(); return c.Conn.Close() }
