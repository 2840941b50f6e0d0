package shim

import (
	"context"
	"io"
	"net"
	"os"
	"sync"
	"time"

	"github.com/containerd/log"

	"github.com/fcshim/containerd-shim-fc-v2/pkg/agent"
)

const copyBufferSize = 64 << 10

// newBuffers makes the pool that all copies of a shim share.
func newBuffers() *sync.Pool {
	return &sync.Pool{New: func() any {
		b := make([]byte, copyBufferSize)
		return &b
	}}
}

// pump carries one output stream from the guest to a client's file, and shows whether it moves.
type pump struct {
	name     string
	from     *agent.Expected
	to       *os.File
	progress chan struct{} // has room for one: "something moved since you last looked"
	done     chan struct{} // closed at the stream's end
	// lost is called when the file takes no more; then the rest is dropped. Without it the process's own writes fail.
	lost func(ctx context.Context, stream string, err error)

	mu      sync.Mutex
	conn    net.Conn
	aborted bool
}

func newPump(name string, from *agent.Expected, to *os.File) *pump {
	return &pump{name: name, from: from, to: to, progress: make(chan struct{}, 1), done: make(chan struct{})}
}

func (p *pump) run(ctx context.Context, buffers *sync.Pool) {
	defer close(p.done)
	conn, err := p.from.Wait(ctx)
	if err != nil {
		return // the process has ended or never was: there is no output
	}
	p.mu.Lock()
	p.conn = conn
	if p.aborted {
		conn.Close()
	}
	p.mu.Unlock()
	defer conn.Close()

	buf := buffers.Get().(*[]byte)
	defer buffers.Put(buf)
	dropping := false
	for {
		n, rerr := conn.Read(*buf)
		if n > 0 {
			p.moved()
			if !dropping {
				err := p.write(ctx, (*buf)[:n])
				if dropping = err != nil && p.lost != nil; err != nil && !dropping {
					return // closing the connection tells the process, as a broken pipe would
				}
			}
			p.moved()
		}
		if rerr != nil {
			return
		}
	}
}

// write hands output to the client; an error means that it takes no more.
func (p *pump) write(ctx context.Context, data []byte) error {
	_, err := p.to.Write(data)
	if err == nil {
		return nil
	}
	p.mu.Lock()
	aborted := p.aborted
	p.mu.Unlock()
	switch {
	case aborted:
	case p.lost != nil:
		p.lost(ctx, p.name, err)
	default:
		log.G(ctx).WithError(err).WithField("stream", p.name).Warn("cannot write a process's output")
	}
	return err
}

func (p *pump) moved() {
	select {
	case p.progress <- struct{}{}:
	default:
	}
}

// wait reports whether the stream came to its end; false means that it stood still for the given time.
func (p *pump) wait(stall time.Duration) bool {
	timer := time.NewTimer(stall)
	defer timer.Stop()
	for {
		select {
		case <-p.done:
			return true
		case <-p.progress:
			timer.Reset(stall)
		case <-timer.C:
			return false
		}
	}
}

// abort ends the pump without a wait.
func (p *pump) abort() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.aborted = true
	if p.conn != nil {
		p.conn.Close()
	}
}

// feed carries the client's input to the guest, and its end as a half-close.
func feed(ctx context.Context, to *agent.Expected, from *os.File, buffers *sync.Pool) {
	conn, err := to.Wait(ctx)
	if err != nil {
		return
	}
	// The guest sends nothing this way, so an end of the other direction means that the process reads no more.
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	defer conn.Close()
	buf := buffers.Get().(*[]byte)
	defer buffers.Put(buf)
	if _, err := io.CopyBuffer(writerOnly{conn}, readerOnly{from}, *buf); err != nil {
		return // the process does not read on, or is gone
	}
	if h, ok := conn.(interface{ CloseWrite() error }); ok && h.CloseWrite() == nil {
		// Closing now could reset the connection under bytes that are still on their way: the guest closes first.
		_, _ = io.CopyBuffer(io.Discard, readerOnly{conn}, *buf)
	}
}

// readerOnly and writerOnly keep io.CopyBuffer to the pooled buffer.
type (
	readerOnly struct{ io.Reader }
	writerOnly struct{ io.Writer }
)
