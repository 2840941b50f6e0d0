package shim

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/fifo"
	"github.com/containerd/log"
	"golang.org/x/sys/unix"

	"github.com/fcshim/containerd-shim-fc-v2/pkg/agent"
	"github.com/fcshim/containerd-shim-fc-v2/pkg/agent/agentpb"
)

const (
	// fifoTimeout bounds the wait for the client to open its end of an output FIFO.
	fifoTimeout = 10 * time.Second
	// drainTimeout is how long output may stand still after a process has ended, because its client does not read or
	// because something in the guest still holds the stream, before the exit is reported without the rest.
	drainTimeout = 10 * time.Second
	// deadDrainTimeout is the same when the VM has died, whose end must be reported within 5 s.
	deadDrainTimeout = time.Second
)

// stdioPaths is where a client wants a process's streams: a FIFO, a file, "file://…", "binary://…" (a logger), or nothing.
type stdioPaths struct {
	// ID is what a logger knows the process by: the container's id, or the exec's.
	ID                    string
	Stdin, Stdout, Stderr string
	Terminal              bool
	// Mounts is the mount namespace that a logger runs in; nil for this process's own.
	Mounts *os.File
}

// stdio joins a process's streams in the guest to the client's files.
type stdio struct {
	streams agentpb.Streams
	ctx     context.Context // of all copying
	cancel  context.CancelFunc

	mu           sync.Mutex
	stdinPath    string          // the client's FIFO; empty for no input
	stdinTo      *agent.Expected // where it goes
	stdinClosed  bool            // closeStdin has been called
	stdin        *os.File        // the read side of the FIFO
	stdinHolder  *os.File        // its write side, so that only closeStdin ends it
	out          []*pump
	expectations []*agent.Expected
	files        []*os.File
	logger       *logger // nil if the outputs go elsewhere
}

// openStdio opens the client's ends of the outputs and reserves the streams; attach then starts the outputs' traffic and
// feedStdin the input's. The caller must close it.
func openStdio(ctx context.Context, paths stdioPaths, streams *agent.StreamBroker) (_ *stdio, err error) {
	s := &stdio{streams: agentpb.Streams{Terminal: paths.Terminal}}
	s.ctx, s.cancel = context.WithCancel(context.WithoutCancel(ctx))
	defer func() {
		if err != nil {
			s.abandon()
		}
	}()
	if isLogger(paths.Stdout) || isLogger(paths.Stderr) {
		if s.logger, err = startLogger(ctx, paths); err != nil {
			return nil, err
		}
	}
	if paths.Terminal {
		paths.Stderr = "" // a terminal has one output
	}
	if paths.Stdin != "" {
		if ok, err := fifo.IsFifo(paths.Stdin); err != nil || !ok {
			return nil, fmt.Errorf("stdin %s: %w", paths.Stdin, errors.Join(err, fmt.Errorf("not a FIFO: %w", errdefs.ErrInvalidArgument)))
		}
		e, err := s.expect(streams)
		if err != nil {
			return nil, err
		}
		s.streams.Stdin, s.stdinPath, s.stdinTo = e.ID(), paths.Stdin, e
	}
	for i, o := range []struct {
		name, path string
		id         *uint64
	}{{"stdout", paths.Stdout, &s.streams.Stdout}, {"stderr", paths.Stderr, &s.streams.Stderr}} {
		var f *os.File
		switch {
		case s.logger != nil:
			f = s.logger.streams[i]
		case o.path != "":
			if f, err = openOutput(ctx, o.path); err != nil {
				return nil, fmt.Errorf("%s %s: %w", o.name, o.path, err)
			}
		}
		if f == nil {
			continue
		}
		s.files = append(s.files, f)
		e, err := s.expect(streams)
		if err != nil {
			return nil, err
		}
		*o.id = e.ID()
		p := newPump(o.name, e, f)
		if s.logger != nil {
			p.lost = s.logger.lost
		}
		s.out = append(s.out, p)
	}
	return s, nil
}

func (s *stdio) expect(streams *agent.StreamBroker) (*agent.Expected, error) {
	e, err := streams.Expect()
	if err != nil {
		return nil, fmt.Errorf("reserve a stream: %w: %w", err, errdefs.ErrUnavailable)
	}
	s.expectations = append(s.expectations, e)
	return e, nil
}

// feedStdin opens the client's end of the input and starts copying; only the first call does anything. It comes with the
// process's start and not before: a client whose input has ended may call CloseIO only once its Create has been answered (ctr
// loses the end otherwise), and until the FIFO has a reader the client's copying, hence its noticing the end, waits.
func (s *stdio) feedStdin(buffers *sync.Pool) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.stdinPath == "" || s.stdin != nil {
		return nil
	}
	stdin, err := os.OpenFile(s.stdinPath, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return fmt.Errorf("stdin %s: %w", s.stdinPath, reason(err))
	}
	if !s.stdinClosed {
		if s.stdinHolder, err = os.OpenFile(s.stdinPath, os.O_WRONLY|unix.O_NONBLOCK, 0); err != nil {
			stdin.Close()
			return fmt.Errorf("stdin %s: %w", s.stdinPath, reason(err))
		}
	}
	s.stdin = stdin
	go feed(s.ctx, s.stdinTo, stdin, buffers)
	return nil
}

// openOutput opens a client's stdout or stderr for writing. A FIFO is opened when its reader has come, and kept open for
// reading too, so that a client that goes away and comes back (ctr task attach) breaks nothing.
func openOutput(ctx context.Context, path string) (*os.File, error) {
	if scheme, _, ok := strings.Cut(path, "://"); ok {
		u, err := url.Parse(path)
		if err != nil {
			return nil, fmt.Errorf("%w: %w", err, errdefs.ErrInvalidArgument)
		}
		switch scheme {
		case "file":
			if u.Host != "" || !filepath.IsAbs(u.Path) {
				return nil, fmt.Errorf("a file is named by an absolute path, file:///path/to/file: %w", errdefs.ErrInvalidArgument)
			}
			if err := os.MkdirAll(filepath.Dir(u.Path), 0o755); err != nil {
				return nil, reason(err)
			}
			return os.OpenFile(u.Path, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o644)
		case "fifo":
			path = u.Path
		default:
			return nil, fmt.Errorf("scheme %q is none of fifo, file, binary, binary-v2: %w", scheme, errdefs.ErrInvalidArgument)
		}
	}
	isFifo, err := fifo.IsFifo(path)
	if err != nil {
		return nil, reason(err)
	}
	if !isFifo {
		return os.OpenFile(path, os.O_WRONLY|os.O_APPEND, 0)
	}
	bounded, cancel := context.WithTimeout(ctx, fifoTimeout)
	defer cancel()
	first, err := fifo.OpenFifo(bounded, path, unix.O_WRONLY, 0)
	if err != nil {
		if bounded.Err() != nil {
			return nil, fmt.Errorf("the client did not open its end within %v: %w", fifoTimeout, bounded.Err())
		}
		return nil, err
	}
	defer first.Close()
	return os.OpenFile(path, os.O_RDWR|unix.O_NONBLOCK, 0)
}

// attach starts copying the outputs; it waits for the guest to open the streams in the background.
func (s *stdio) attach(buffers *sync.Pool) {
	for _, p := range s.out {
		go p.run(s.ctx, buffers)
	}
}

// closeStdin lets the process see the end of its input once the client has closed its end too. Idempotent.
func (s *stdio) closeStdin() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.stdinClosed = true
	if s.stdinHolder != nil {
		s.stdinHolder.Close()
		s.stdinHolder = nil
	}
}

// drain returns when the client has all output, or when nothing has moved for the given time.
func (s *stdio) drain(ctx context.Context, stall time.Duration) {
	for _, p := range s.out {
		if !p.wait(stall) {
			log.G(ctx).WithField("stream", p.name).Warnf("output stood still for %v after the process's end: the rest is dropped", stall)
		}
	}
}

// close ends all traffic; a logger sees the end of its streams, and settle waits for its own. Idempotent.
func (s *stdio) close() {
	s.end()
	if s.logger != nil {
		go s.logger.dismiss(loggerGrace)
	}
}

// abandon is close for a process that came to nothing: its logger has nothing to do any more.
func (s *stdio) abandon() {
	s.end()
	if s.logger != nil {
		s.logger.dismiss(0)
	}
}

// settle waits, within a bound, until nothing is left of a closed stdio: a logger may still have had work to do.
func (s *stdio) settle(ctx context.Context) {
	if s.logger == nil {
		return
	}
	select {
	case <-s.logger.dismissed:
	case <-ctx.Done():
		_ = s.logger.cmd.Process.Kill()
	}
}

func (s *stdio) end() {
	s.closeStdin()
	if s.logger != nil {
		s.logger.serving.Store(false)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.cancel()
	for _, e := range s.expectations {
		e.Cancel()
	}
	for _, p := range s.out {
		p.abort()
	}
	if s.stdin != nil {
		s.stdin.Close()
	}
	for _, f := range s.files {
		f.Close()
	}
}
