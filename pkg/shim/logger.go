package shim

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"golang.org/x/sys/unix"

	"github.com/fcshim/containerd-shim-fc-v2/pkg/nsthread"
)

const (
	// loggerReadyTimeout is how long a logger may take to say that it is ready.
	loggerReadyTimeout = 30 * time.Second
	// loggerDeathTimeout is how long the end of a logger is awaited that has closed the ready pipe without a word: it may have
	// died, or be an old one that says so by closing.
	loggerDeathTimeout = 250 * time.Millisecond
	// loggerGrace is how long a logger may live on after the end of both streams before it gets a SIGTERM.
	loggerGrace = 10 * time.Second
	// loggerTermTimeout is how long it may take to heed that, and then to die of SIGKILL.
	loggerTermTimeout = 2 * time.Second
)

// The schemes of a logger's URI. With binary-v2 a ready pipe that is closed without a byte is an error; with binary it is
// containerd's old way of saying ready.
const (
	schemeBinary   = "binary"
	schemeBinaryV2 = "binary-v2"
)

// isLogger says whether a stream's place is a program's input.
func isLogger(path string) bool {
	scheme, _, ok := strings.Cut(path, "://")
	return ok && (scheme == schemeBinary || scheme == schemeBinaryV2)
}

// logger is a program that takes both outputs of one process, by containerd's contract (core/runtime/v2/logging): it reads
// stdout as file 3 and stderr as file 4, and tells by file 5 that it is ready. It is a child of the shim, whose death ends its
// streams, since nobody else has their write ends.
type logger struct {
	path    string
	cmd     *exec.Cmd
	streams [2]*os.File // the write ends of stdout and stderr; the second is nil with a terminal
	output  *tailWriter

	done      chan struct{} // closed when it has been reaped
	err       error         // how it ended; read it after done
	serving   atomic.Bool   // it has been ready, and its streams have not ended
	broken    sync.Once
	dismissal sync.Once
	dismissed chan struct{} // closed when it has ended or has been given up
}

// parseLogger checks the places of a process's outputs, one of which is a logger.
func parseLogger(paths stdioPaths) (*url.URL, error) {
	fail := func(format string, args ...any) (*url.URL, error) {
		return nil, fmt.Errorf("%s: %w", fmt.Sprintf(format, args...), errdefs.ErrInvalidArgument)
	}
	if !isLogger(paths.Stdout) || (paths.Stderr != "" && paths.Stderr != paths.Stdout) {
		return fail("stderr %q, stdout %q: a logger takes both streams, so both must be its URI", paths.Stderr, paths.Stdout)
	}
	u, err := url.Parse(paths.Stdout)
	if err != nil {
		return fail("stdout: %v", err)
	}
	if u.Host != "" || !filepath.IsAbs(u.Path) {
		return fail("stdout %s: a logger is named by an absolute path: %s:///path/to/logger?key=value", paths.Stdout, u.Scheme)
	}
	return u, nil
}

// loggerArgs are each key of the URI's query and its first value, empty ones too, as containerd passes them; containerd's
// order is random, this one is the keys'.
func loggerArgs(u *url.URL) []string {
	var args []string
	query := u.Query()
	for _, key := range slices.Sorted(maps.Keys(query)) {
		args = append(args, key, query[key][0])
	}
	return args
}

// startLogger runs the logger that paths name and returns when it is ready. The write ends of its streams are the caller's to
// close; dismiss must follow that.
func startLogger(ctx context.Context, paths stdioPaths) (*logger, error) {
	u, err := parseLogger(paths)
	if err != nil {
		return nil, err
	}
	ns, err := namespaces.NamespaceRequired(ctx)
	if err != nil {
		return nil, err
	}
	l := &logger{
		path: u.Path, output: &tailWriter{log: log.G(ctx).WithField("source", u.Path)},
		done: make(chan struct{}), dismissed: make(chan struct{}),
	}
	stdout, toStdout, err1 := os.Pipe()
	stderr, toStderr, err2 := os.Pipe()
	ready, toReady, err3 := os.Pipe()
	theirs := []*os.File{stdout, stderr, toReady}
	defer ready.Close()
	defer closeFiles(theirs)
	l.streams = [...]*os.File{toStdout, toStderr}
	if err := errors.Join(err1, err2, err3); err != nil {
		closeFiles(l.streams[:])
		return nil, fmt.Errorf("make pipes for %s: %w", u.Path, err)
	}
	if paths.Terminal { // which has one output: the other stream ends at once
		toStderr.Close()
		l.streams[1] = nil
	}
	l.cmd = exec.Command(u.Path, loggerArgs(u)...)
	l.cmd.Env = []string{"CONTAINER_ID=" + paths.ID, "CONTAINER_NAMESPACE=" + ns}
	l.cmd.ExtraFiles = theirs
	l.cmd.Stderr = l.output
	l.cmd.WaitDelay = time.Second // a helper of the logger's that outlives it must not hold us
	l.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	var in []nsthread.Namespace
	if paths.Mounts != nil {
		// In ours, one that outlived our death would keep the container's mounts.
		in = append(in, nsthread.Namespace{File: paths.Mounts, Kind: unix.CLONE_NEWNS})
		l.cmd.Dir, _ = os.Getwd() // the bundle, as ever: who enters a mount namespace is at its root
	}
	if err := nsthread.Do(l.cmd.Start, in...); err != nil {
		closeFiles(l.streams[:])
		return nil, fmt.Errorf("start logger %s: %w: %w", u.Path, reason(err), errdefs.ErrInvalidArgument)
	}
	closeFiles(theirs) // or the end of a stream, or of the logger, would not be seen
	go l.reap(ctx)
	if err := l.awaitReady(ctx, ready, u.Scheme); err != nil {
		closeFiles(l.streams[:])
		l.dismiss(0)
		return nil, err
	}
	l.serving.Store(true)
	return l, nil
}

func closeFiles(files []*os.File) {
	for _, f := range files {
		f.Close() // fails if there is none, or if it has been closed
	}
}

func (l *logger) reap(ctx context.Context) {
	err := l.cmd.Wait()
	l.output.flush()
	l.err = errors.New(l.cmd.ProcessState.String())
	if l.cmd.ProcessState == nil {
		l.err = err
	}
	if last := l.output.last(); last != "" {
		l.err = fmt.Errorf("%w: %s", l.err, last)
	}
	if l.serving.Load() {
		log.G(ctx).WithError(l.err).WithField("logger", l.path).Warn("a logger has ended before its container")
	}
	close(l.done)
}

// awaitReady waits until the logger has written a byte, or closed its end.
func (l *logger) awaitReady(ctx context.Context, ready *os.File, scheme string) error {
	ctx, cancel := context.WithTimeoutCause(ctx, loggerReadyTimeout,
		fmt.Errorf("logger %s did not write to file 5, or close it, within %v, and so is not ready: %w", l.path, loggerReadyTimeout, context.DeadlineExceeded))
	defer cancel()
	defer context.AfterFunc(ctx, func() { ready.Close() })()
	n, err := ready.Read(make([]byte, 1))
	switch {
	case n > 0:
		return nil
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case !errors.Is(err, io.EOF):
		return fmt.Errorf("wait until logger %s is ready: %w", l.path, err)
	}
	select {
	case <-l.done:
		return fmt.Errorf("logger %s has ended (%w) before it was ready: %w", l.path, l.err, errdefs.ErrFailedPrecondition)
	case <-time.After(loggerDeathTimeout):
	}
	if scheme == schemeBinaryV2 {
		return fmt.Errorf("logger %s closed file 5 without having written to it, and so is not ready: %w", l.path, errdefs.ErrFailedPrecondition)
	}
	return nil
}

// lost takes note that the logger does not read a stream any more, though there is output; it is dropped from then on.
func (l *logger) lost(ctx context.Context, stream string, err error) {
	l.broken.Do(func() {
		log.G(ctx).WithError(err).WithFields(log.Fields{"logger": l.path, "stream": stream}).Error("a logger reads no more: what the container writes is dropped")
	})
}

// dismiss sees a logger off whose streams have been closed: it may live on for grace, then it is told to end, and then killed.
// It returns when the logger has ended or, which only a logger in an uninterruptible wait brings about, has been given up.
func (l *logger) dismiss(grace time.Duration) {
	l.dismissal.Do(func() {
		defer close(l.dismissed)
		for _, step := range []struct {
			wait   time.Duration
			signal os.Signal // after it
		}{{grace, unix.SIGTERM}, {loggerTermTimeout, unix.SIGKILL}, {loggerTermTimeout, nil}} {
			select {
			case <-l.done:
				return
			case <-time.After(step.wait):
			}
			if step.signal == nil {
				log.L.WithField("logger", l.path).Error("a logger has outlived its SIGKILL: it is given up")
				return
			}
			if step.wait > 0 {
				log.L.WithField("logger", l.path).Warnf("a logger has lived on for %v: it gets a signal, %v", step.wait, step.signal)
			}
			_ = l.cmd.Process.Signal(step.signal)
		}
	})
	<-l.dismissed
}

// awaitLoggers waits, within a bound, for the loggers of a container's processes, which have all ended. It kills them if ctx
// ends before.
func (c *container) awaitLoggers(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, loggerGrace+3*loggerTermTimeout) // longer than any dismissal
	defer cancel()
	c.mu.Lock()
	all := append(slices.Collect(maps.Values(c.execs)), c.init)
	c.mu.Unlock()
	for _, p := range all {
		if io := p.stdio(); io != nil {
			io.settle(ctx)
		}
	}
}
