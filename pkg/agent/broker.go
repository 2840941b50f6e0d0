package agent

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"
)

// Bounds of a StreamBroker.
const (
	// HeaderTimeout is how long a new connection may take to say which stream it is.
	HeaderTimeout = 5 * time.Second
	// MaxUnnamed is how many connections may be in that state; further ones are closed at once.
	MaxUnnamed = 64
)

// ErrBrokerClosed is what waiting for a stream gives when the broker has been closed.
var ErrBrokerClosed = errors.New("stream broker closed")

// StreamBroker takes the connections that the guest opens to StreamPort and gives each to whoever expects its id. A
// connection that nobody expects is closed: the guest cannot make the shim keep anything that the shim has not asked for.
type StreamBroker struct {
	l             net.Listener
	headerTimeout time.Duration
	unnamed       chan struct{}

	mu       sync.Mutex
	expected map[uint64]*Expected
	naming   map[net.Conn]struct{}
	closed   bool
}

// NewStreamBroker makes a broker on the listener of StreamPort, which it owns. Run Serve to have it work.
func NewStreamBroker(l net.Listener) *StreamBroker {
	return &StreamBroker{
		l: l, headerTimeout: HeaderTimeout, unnamed: make(chan struct{}, MaxUnnamed),
		expected: map[uint64]*Expected{}, naming: map[net.Conn]struct{}{},
	}
}

// Serve accepts connections until Close, and then returns nil.
func (b *StreamBroker) Serve() error {
	for {
		conn, err := b.l.Accept()
		if err != nil {
			b.mu.Lock()
			closed := b.closed
			b.mu.Unlock()
			if closed {
				return nil
			}
			b.Close()
			return fmt.Errorf("accept the guest's streams: %w", err)
		}
		select {
		case b.unnamed <- struct{}{}:
			go func() {
				defer func() { <-b.unnamed }()
				b.deliver(conn)
			}()
		default:
			conn.Close()
		}
	}
}

func (b *StreamBroker) deliver(conn net.Conn) {
	b.mu.Lock()
	if b.closed {
		b.mu.Unlock()
		conn.Close()
		return
	}
	b.naming[conn] = struct{}{}
	b.mu.Unlock()

	id, err := ReadHeader(conn, b.headerTimeout)

	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.naming, conn)
	e := b.expected[id]
	if err != nil || e == nil {
		conn.Close()
		return
	}
	delete(b.expected, id)
	e.conn <- conn // has room for one, and an Expected leaves the map with its first connection
}

// Expect opens the door to one more stream, and chooses its id, which nobody can guess. Call it before the request that
// carries the id to the agent.
func (b *StreamBroker) Expect() (*Expected, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		return nil, ErrBrokerClosed
	}
	e := &Expected{id: b.newID(), b: b, conn: make(chan net.Conn, 1), gone: make(chan struct{})}
	b.expected[e.id] = e
	return e, nil
}

// newID chooses an id that is not 0 and not in use. A chance of one in 2^64 that it was in use before does not matter.
func (b *StreamBroker) newID() uint64 {
	for {
		var raw [HeaderLen]byte
		rand.Read(raw[:]) // never fails, says crypto/rand
		id := binary.BigEndian.Uint64(raw[:])
		if id != 0 && b.expected[id] == nil {
			return id
		}
	}
}

// Close ends Serve and every wait, and closes the connections that nobody has been given.
func (b *StreamBroker) Close() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		return nil
	}
	b.closed = true
	for conn := range b.naming {
		conn.Close()
	}
	for id, e := range b.expected {
		delete(b.expected, id)
		close(e.gone)
	}
	return b.l.Close()
}

// Expected is a stream that the guest has been, or will be, asked to open.
type Expected struct {
	id   uint64
	b    *StreamBroker
	conn chan net.Conn
	gone chan struct{}
}

// ID is the stream's id, for agentpb.Streams; never 0.
func (e *Expected) ID() uint64 { return e.id }

// Wait returns the stream's connection, which belongs to the caller, once; ctx bounds the wait.
func (e *Expected) Wait(ctx context.Context) (net.Conn, error) {
	select {
	case conn := <-e.conn:
		return conn, nil
	default:
	}
	select {
	case conn := <-e.conn:
		return conn, nil
	case <-e.gone:
		return nil, fmt.Errorf("wait for the guest to open stream %d: %w", e.id, ErrBrokerClosed)
	case <-ctx.Done():
		return nil, fmt.Errorf("wait for the guest to open stream %d: %w", e.id, context.Cause(ctx))
	}
}

// Cancel takes the expectation back, and closes the connection if it had come and nobody has taken it.
func (e *Expected) Cancel() {
	e.b.mu.Lock()
	delete(e.b.expected, e.id)
	e.b.mu.Unlock()
	select {
	case conn := <-e.conn:
		conn.Close()
	default:
	}
}
