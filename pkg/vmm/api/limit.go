package api

import (
	"fmt"
	"net"
	"net/http"
	"sync"
	"time"
)

// connLimit bounds a server's connections. When a new one would be too many, the one that has been silent longest is
// closed for it; a connection with a request under way is never touched, so that only if all of them are busy the new
// one is sent away, with 503 as Firecracker does.
type connLimit struct {
	net.Listener
	max int

	mu    sync.Mutex
	conns map[net.Conn]connUse

	refusals chan struct{} // bounds the refusals under way
}

type connUse struct {
	silent bool // no part of a request has come since then
	since  time.Time
}

func newConnLimit(l net.Listener, max int) *connLimit {
	return &connLimit{Listener: l, max: max, conns: make(map[net.Conn]connUse), refusals: make(chan struct{}, max)}
}

// Accept gives the next connection that there is room for.
func (l *connLimit) Accept() (net.Conn, error) {
	for {
		c, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		if c = (&faultConn{c}); l.admit(c) {
			return c, nil
		}
		select {
		case l.refusals <- struct{}{}:
			go func() {
				refuse(c)
				<-l.refusals
			}()
		default:
			c.Close()
		}
	}
}

// refuse answers c's request with 503, and closes c. The request is read first: a client that is still writing it when the
// connection ends would be told of a broken pipe and not of the reason.
func refuse(c net.Conn) {
	defer c.Close()
	c.SetDeadline(time.Now().Add(time.Second))
	c.Read(make([]byte, 4096))
	const body = `{"fault_message":"Too many open connections."}`
	fmt.Fprintf(c, "HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%s", len(body), body)
}

func (l *connLimit) admit(c net.Conn) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.conns) >= l.max {
		var victim net.Conn
		for other, use := range l.conns {
			if use.silent && (victim == nil || use.since.Before(l.conns[victim].since)) {
				victim = other
			}
		}
		if victim == nil {
			return false
		}
		delete(l.conns, victim)
		victim.Close()
	}
	l.conns[c] = connUse{silent: true, since: time.Now()}
	return true
}

// connState is the server's hook.
func (l *connLimit) connState(c net.Conn, state http.ConnState) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if _, known := l.conns[c]; !known {
		return // closed to make room
	}
	switch state {
	case http.StateActive:
		l.conns[c] = connUse{}
	case http.StateIdle:
		l.conns[c] = connUse{silent: true, since: time.Now()}
	case http.StateClosed, http.StateHijacked:
		delete(l.conns, c)
	}
}
