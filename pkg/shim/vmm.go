package shim

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"golang.org/x/sys/unix"

	"github.com/fcshim/containerd-shim-fc-v2/pkg/hold"
	"github.com/fcshim/containerd-shim-fc-v2/pkg/nsthread"
	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/config"
)

// Names of a VM's sockets in the bundle. They are relative to it, as fc-vmm's working directory, because a Unix socket's
// path holds 107 bytes and a bundle's path may be longer.
const (
	apiSocket   = "fc.sock"
	vsockSocket = "vsock.sock"
)

// vmmProcess is a running fc-vmm. It ends when this process does, however that happens: it holds the read end of a pipe
// whose other end is ours.
type vmmProcess struct {
	cmd    *exec.Cmd
	parent *os.File
	output *tailWriter

	done chan struct{} // closed when the process has been reaped
	err  error         // why it ended; read it after done
}

// startVMM runs fc-vmm in the bundle, in the pod's network, where its TAPs shall be, and with the API's listener, so that the
// first call to the API cannot come too early.
func startVMM(ctx context.Context, o vmOptions, api *net.UnixListener) (*vmmProcess, error) {
	r, w, err := os.Pipe()
	if err != nil {
		return nil, fmt.Errorf("make a pipe for fc-vmm: %w", err)
	}
	defer r.Close()
	sock, err := api.File()
	if err != nil {
		w.Close()
		return nil, fmt.Errorf("hand the API's socket to fc-vmm: %w", err)
	}
	defer sock.Close()
	p := &vmmProcess{parent: w, output: &tailWriter{log: log.G(ctx).WithField("source", "fc-vmm")}, done: make(chan struct{})}
	p.cmd = exec.Command(o.Settings.VMM, "--id", vmmID(o.ID), "--api-fd", "3", "--parent-fd", "4")
	if o.Settings.Debug {
		var now unix.Timespec
		_ = unix.ClockGettime(unix.CLOCK_MONOTONIC, &now) // every kernel has it
		p.cmd.Args = append(p.cmd.Args, "--level", "debug", "--boot-timer", "--start-time-us", strconv.FormatInt(now.Nano()/1000, 10))
	}
	p.cmd.Dir = o.Bundle
	p.cmd.Env = []string{"PATH=" + os.Getenv("PATH"), goDebugEnv + "=" + hold.LeanHeap, "GOGC=" + hold.LeanGC}
	p.cmd.ExtraFiles = []*os.File{sock, r}
	if o.Metrics != nil {
		// It opens the pipe anew, by a way that does not wait for us.
		p.cmd.ExtraFiles = append(p.cmd.ExtraFiles, o.Metrics)
		p.cmd.Args = append(p.cmd.Args, "--metrics-path", "/proc/self/fd/5")
	}
	p.cmd.Stdout, p.cmd.Stderr = p.output, p.output
	p.cmd.WaitDelay = time.Second // a helper of fc-vmm's that outlives it must not hold us
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	start := func() error {
		return nsthread.Do(p.cmd.Start, nsthread.Namespace{File: o.Network, Kind: unix.CLONE_NEWNET})
	}
	if err := o.Cgroup.start(p.cmd, start); err != nil {
		w.Close()
		return nil, fmt.Errorf("start %s: %w", o.Settings.VMM, reason(err))
	}
	go p.reap()
	return p, nil
}

func (p *vmmProcess) reap() {
	err := p.cmd.Wait()
	p.parent.Close()
	p.output.flush()
	p.err = exitReason(p.cmd.ProcessState, err, p.output.last())
	close(p.done)
}

func (p *vmmProcess) pid() int { return p.cmd.Process.Pid }

// endTimeout is how long a killed fc-vmm may take to end.
const endTimeout = 5 * time.Second

// kill ends the process and returns when it is gone. A process cannot refuse SIGKILL, but it can be late: it dies when a
// system call that waits for hardware or for a file server (state D) returns. Then it is an error, and what is left of the
// VM is left to `delete`.
func (p *vmmProcess) kill() error {
	_ = p.cmd.Process.Kill()
	timer := time.NewTimer(endTimeout)
	defer timer.Stop()
	select {
	case <-p.done:
		return nil
	case <-timer.C:
		return fmt.Errorf("fc-vmm (pid %d) has not ended within %v of its SIGKILL: %w", p.pid(), endTimeout, errdefs.ErrUnavailable)
	}
}

// exitReason puts an exit into words; last is what fc-vmm said last, which explains an end of its own accord.
func exitReason(state *os.ProcessState, err error, last string) error {
	if state == nil {
		return fmt.Errorf("fc-vmm: %w", err)
	}
	if ws, ok := state.Sys().(syscall.WaitStatus); ok && ws.Signaled() {
		return fmt.Errorf("fc-vmm was killed by %s", unix.SignalName(ws.Signal()))
	}
	what := fmt.Sprintf("fc-vmm ended with status %d", state.ExitCode())
	switch state.ExitCode() {
	case config.StatusEnded:
		return errors.New("the guest has ended (reset)")
	case config.StatusPoweredOff:
		return errors.New("the guest has ended (power off)")
	case config.StatusPanicked:
		return errors.New("the guest's kernel has panicked")
	case config.StatusBroken:
		what = "the VM has broken down (triple fault or an error of KVM)"
	case config.StatusBadConfig:
		what = "fc-vmm refused its configuration"
	}
	if last != "" {
		return fmt.Errorf("%s: %s", what, last)
	}
	return errors.New(what)
}

// sockets is a folder to bind Unix sockets in by a short name, whatever the folder's own path is.
type sockets struct{ dir *os.File }

func openSockets(folder string) (*sockets, error) {
	f, err := os.Open(folder)
	if err != nil {
		return nil, fmt.Errorf("open the bundle: %w", err)
	}
	return &sockets{dir: f}, nil
}

func (s *sockets) path(name string) string {
	return fmt.Sprintf("/proc/self/fd/%d/%s", s.dir.Fd(), name)
}

// listen binds a socket in the folder that only root can connect to; what an earlier process left there is replaced.
func (s *sockets) listen(name string) (*net.UnixListener, error) {
	if err := ignoreMissing(os.Remove(s.path(name))); err != nil {
		return nil, fmt.Errorf("replace socket %s: %w", name, err)
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: s.path(name), Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w", name, err)
	}
	l.SetUnlinkOnClose(false) // removeSockets does it, when nobody can need it any more
	return l, nil
}

func (s *sockets) close() { s.dir.Close() }

// removeSockets removes a VM's sockets from a bundle.
func removeSockets(bundle string) error {
	names, err := filepath.Glob(filepath.Join(bundle, vsockSocket+"*"))
	errs := []error{err}
	for _, n := range append(names, filepath.Join(bundle, apiSocket)) {
		errs = append(errs, ignoreMissing(os.Remove(n)))
	}
	return errors.Join(errs...)
}

// tailWriter logs lines and keeps the last one. It bounds both, whatever is written to it.
type tailWriter struct {
	log *log.Entry

	mu     sync.Mutex
	line   []byte
	latest string
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
		t.latest = s
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
