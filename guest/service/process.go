package service

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"github.com/opencontainers/runc/libcontainer"
	"golang.org/x/sys/unix"

	"github.com/fcshim/containerd-shim-fc-v2/guest/cgroup"
	"github.com/fcshim/containerd-shim-fc-v2/guest/reaper"
	"github.com/fcshim/containerd-shim-fc-v2/guest/stdio"
)

// errEnded is what a process that has ended says to a signal, in the words that clients of runc's shim know.
var errEnded = fmt.Errorf("process already finished: %w", errdefs.ErrNotFound)

// process is an init process or an exec.
type process struct {
	container *container
	execID    string // empty: init
	lib       *libcontainer.Process
	io        *stdio.IO
	start     sync.Mutex // held while a start is under way

	ended chan struct{} // closed when the process has ended and its output has been handed over

	mu   sync.Mutex
	pid  int  // 0: an exec that has not been started
	gone bool // ended, though output may be under way

	// Set before ended is closed, and constant from then on.
	exit      reaper.Exit
	failed    bool // could not be started; then there is no exit
	oomKilled bool
}

// failedStatus is the exit status of a process that could not be started.
const failedStatus = 255

// launch starts the process and what serves it.
func (p *process) launch(r *reaper.Reaper) error {
	config := p.container.lib.Config()
	uid, err := config.HostRootUID()
	if err != nil {
		return err
	}
	gid, err := config.HostRootGID()
	if err != nil {
		return err
	}
	if err := p.io.Chown(uid, gid); err != nil {
		return err
	}
	f := p.io.Files()
	// Assigned one by one: a nil *os.File in an interface would not be nil.
	if f.Stdin != nil {
		p.lib.Stdin = f.Stdin
	}
	if f.Stdout != nil {
		p.lib.Stdout = f.Stdout
	}
	if f.Stderr != nil {
		p.lib.Stderr = f.Stderr
	}
	p.lib.ConsoleSocket = f.Console
	exit, err := r.Start(func() (int, error) {
		if err := p.container.lib.Start(p.lib); err != nil {
			return 0, err
		}
		return p.lib.Pid()
	})
	if err != nil {
		return err
	}
	err = p.io.Run()
	if err != nil {
		_ = p.lib.Signal(unix.SIGKILL)
	}
	p.mu.Lock()
	p.pid, _ = p.lib.Pid()
	p.mu.Unlock()
	go p.watch(exit)
	return err
}

// watch sees the process off.
func (p *process) watch(exit <-chan reaper.Exit) {
	p.exit = <-exit
	p.mu.Lock()
	p.gone = true
	p.mu.Unlock()
	if p.execID == "" {
		// A container ends with its init. The kernel sees to that in a PID namespace of its own; without one, what is left
		// would run on, and hold init's output open.
		if err := p.container.killAll(); err != nil && !errors.Is(err, os.ErrNotExist) {
			log.L.WithError(err).WithField("container", p.container.id).Error("cannot kill what init has left")
		}
	}
	p.io.Drain()
	p.oomKilled = cgroup.OOMKills(p.container.cgroup) > 0
	close(p.ended)
}

// fail marks a process that could not be started as ended.
func (p *process) fail() {
	p.io.Close()
	p.mu.Lock()
	p.gone = true
	p.mu.Unlock()
	p.failed = true
	close(p.ended)
}

// wait returns when the process has ended and its output has been handed over.
func (p *process) wait(ctx context.Context) error {
	select {
	case <-p.ended:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("wait for %s to end: %w", p, ctx.Err())
	}
}

func (p *process) hasEnded() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.gone
}

// running returns the pid, or why there is none.
func (p *process) running() (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case p.gone:
		return 0, errEnded
	case p.pid == 0:
		return 0, fmt.Errorf("%s has not been started: %w", p, errdefs.ErrFailedPrecondition)
	}
	return p.pid, nil
}

// signal sends a signal to this process alone.
func (p *process) signal(sig unix.Signal) error {
	if _, err := p.running(); err != nil {
		return err
	}
	// Through a pidfd, and past the container's lock, which an exec's start may hold for long.
	err := p.lib.Signal(sig)
	if errors.Is(err, os.ErrProcessDone) || errors.Is(err, unix.ESRCH) {
		return errEnded
	}
	return err
}

func (p *process) String() string {
	if p.execID == "" {
		return fmt.Sprintf("container %q", p.container.id)
	}
	return fmt.Sprintf("exec %q in container %q", p.execID, p.container.id)
}
