package shim

import (
	"fmt"
	"sync"
	"time"

	"github.com/containerd/containerd/api/types/task"
	"github.com/containerd/errdefs"
)

// exitKilled is the status of what ended with its VM, as if by SIGKILL.
const exitKilled = 128 + 9

// process is a container's init process (execID is empty) or a further one.
type process struct {
	execID string
	paths  stdioPaths
	spec   []byte // of an exec: an OCI Process as JSON

	// lifecycle is held from a start to its event and while an exit is published: it orders events.
	lifecycle sync.Mutex
	exited    chan struct{} // closed when status is STOPPED and the event has been sent

	mu         sync.Mutex
	io         *stdio
	status     task.Status
	pid        uint32
	exitStatus uint32
	exitedAt   time.Time
	width      uint32 // of the terminal, if it was resized before the start
	height     uint32
}

func newProcess(execID string, paths stdioPaths) *process {
	return &process{execID: execID, paths: paths, status: task.Status_CREATED, exited: make(chan struct{})}
}

// processState is a consistent copy of what changes in a process.
type processState struct {
	status     task.Status
	pid        uint32
	exitStatus uint32
	exitedAt   time.Time
}

func (p *process) state() processState {
	p.mu.Lock()
	defer p.mu.Unlock()
	return processState{p.status, p.pid, p.exitStatus, p.exitedAt}
}

func (p *process) stdio() *stdio {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.io
}

// begin moves a process from CREATED to RUNNING, before it is started: an exec counts as running from then on.
func (p *process) begin() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.status != task.Status_CREATED {
		return fmt.Errorf("process %q is %s and cannot be started: %w", p.execID, statusName(p.status), errdefs.ErrFailedPrecondition)
	}
	p.status = task.Status_RUNNING
	return nil
}

// unbegin takes begin back when the start has failed.
func (p *process) unbegin() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.status == task.Status_RUNNING {
		p.status = task.Status_CREATED
	}
}

// end records an exit once; false means that it had been recorded before.
func (p *process) end(exitStatus uint32, at time.Time) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.status == task.Status_STOPPED {
		return false
	}
	p.status, p.exitStatus, p.exitedAt = task.Status_STOPPED, exitStatus, at
	return true
}

func statusName(s task.Status) string {
	switch s {
	case task.Status_CREATED:
		return "created"
	case task.Status_RUNNING:
		return "running"
	case task.Status_STOPPED:
		return "stopped"
	}
	return s.String()
}
