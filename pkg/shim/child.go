package shim

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"golang.org/x/sys/unix"

	"github.com/fcshim/containerd-shim-fc-v2/pkg/hold"
)

// child is a running process of fc-vmm's program, in one of its roles. It ends when this process does, however that happens: it holds
// the read end of a pipe whose other end is ours.
type child struct {
	name   string // as errors and the log have it
	cmd    *exec.Cmd
	parent *os.File
	output *tailWriter
	words  map[int]exitWords // by exit status

	done chan struct{} // closed when the process has been reaped
	err  error         // why it ended; read it after done
}

// exitWords is what an exit status means. An end that the child has explained itself, in its last line, has that added.
type exitWords struct {
	text      string
	explained bool
}

// role is how a child is called.
type role struct {
	name  string // as errors and the log have it
	args  []string
	words map[int]exitWords
	// files are the child's from descriptor 4 on; 3 is the pipe's.
	files []*os.File
	// in calls a function where the child shall begin; nil for where we are.
	in func(func() error) error
}

// fd is where the child finds the next of its files.
func (r *role) fd() int { return 4 + len(r.files) }

// hand gives the child a file, and tells it by an option where it is.
func (r *role) hand(option string, f *os.File) {
	r.args = append(r.args, option, strconv.Itoa(r.fd()))
	r.files = append(r.files, f)
}

// parentFD is where a child finds the pipe.
const parentFD = "3"

// startChild runs a child in the bundle, in the pod's cgroup.
func startChild(ctx context.Context, o vmOptions, r role) (*child, error) {
	pr, pw, err := os.Pipe()
	if err != nil {
		return nil, fmt.Errorf("make a pipe for %s: %w", r.name, err)
	}
	defer pr.Close()
	p := &child{name: r.name, parent: pw, words: r.words, output: &tailWriter{log: log.G(ctx).WithField("source", r.name)}, done: make(chan struct{})}
	p.cmd = exec.Command(o.Settings.VMM, r.args...)
	p.cmd.Dir = o.Bundle
	p.cmd.Env = []string{"PATH=" + os.Getenv("PATH"), goDebugEnv + "=" + hold.LeanHeap, "GOGC=" + hold.LeanGC}
	p.cmd.ExtraFiles = append([]*os.File{pr}, r.files...)
	p.cmd.Stdout, p.cmd.Stderr = p.output, p.output
	p.cmd.WaitDelay = time.Second // a helper of its own that outlives it must not hold us
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	start := func() error { return hold.StartLean(p.cmd.Start) }
	if lean := start; r.in != nil {
		start = func() error { return r.in(lean) }
	}
	if err := o.Cgroup.start(p.cmd, start); err != nil {
		pw.Close()
		return nil, fmt.Errorf("start %s (%s): %w", r.name, o.Settings.VMM, reason(err))
	}
	go p.reap()
	return p, nil
}

func (p *child) reap() {
	err := p.cmd.Wait()
	p.parent.Close()
	p.output.flush()
	p.err = p.exitReason(p.cmd.ProcessState, err, p.output.last())
	close(p.done)
}

func (p *child) pid() int { return p.cmd.Process.Pid }

// status is the exit status of a child that is done; -1 if a signal has ended it.
func (p *child) status() int { return p.cmd.ProcessState.ExitCode() }

// endTimeout is how long a killed child may take to end.
const endTimeout = 5 * time.Second

// kill ends processes, of which some may be nil, and returns when they are gone. A process cannot refuse SIGKILL, but it can be late: it dies when
// a system call that waits for hardware or for a file server (state D) returns. Then it is an error, and what is left of the
// VM is left to `delete`.
func kill(children ...*child) error {
	children = slices.DeleteFunc(children, func(p *child) bool { return p == nil })
	for _, p := range children {
		_ = p.cmd.Process.Kill()
	}
	ctx, cancel := context.WithTimeout(context.Background(), endTimeout)
	defer cancel()
	var errs []error
	for _, p := range children {
		select {
		case <-p.done:
			continue
		default:
		}
		select {
		case <-p.done:
		case <-ctx.Done():
			errs = append(errs, fmt.Errorf("%s (pid %d) has not ended within %v of its SIGKILL: %w", p.name, p.pid(), endTimeout, errdefs.ErrUnavailable))
		}
	}
	return errors.Join(errs...)
}

// exitReason puts an exit into words; last is what the child said last.
func (p *child) exitReason(state *os.ProcessState, err error, last string) error {
	if state == nil {
		return fmt.Errorf("%s: %w", p.name, err)
	}
	if ws, ok := state.Sys().(syscall.WaitStatus); ok && ws.Signaled() {
		return fmt.Errorf("%s was killed by %s", p.name, unix.SignalName(ws.Signal()))
	}
	w, ok := p.words[state.ExitCode()]
	if !ok {
		w = exitWords{fmt.Sprintf("%s ended with status %d", p.name, state.ExitCode()), true}
	}
	if w.explained && last != "" {
		return fmt.Errorf("%s: %s", w.text, last)
	}
	return errors.New(w.text)
}

// tailWriter logs lines and keeps the last one. It bounds both, whatever is written to it.
type tailWriter struct {
	log *log.Entry

	mu     sync.Mutex
	line   []byte
	latest string
	fatal  bool // latest tells why the process ends, what follows is Go's stacks
}

const maxLogLine = 1024

// Write implements io.Writer and never fails.
func (t *tailWriter) Write(b []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, c := range b {
		switch {
		case c == '\n':
			t.emit()
		case len(t.line) < maxLogLine:
			t.line = append(t.line, c)
		}
	}
	return len(b), nil
}

func (t *tailWriter) emit() {
	if s := strings.TrimSpace(strings.ToValidUTF8(string(t.line), "?")); s != "" {
		if !t.fatal {
			t.latest, t.fatal = s, strings.HasPrefix(s, "panic: ") || strings.HasPrefix(s, "fatal error: ")
		}
		t.log.Info(s)
	}
	t.line = t.line[:0]
}

func (t *tailWriter) flush() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.emit()
}

func (t *tailWriter) last() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.latest
}
