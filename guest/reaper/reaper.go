// Package reaper collects the ended children of a process that inherits orphans (PID 1, or a subreaper), and tells those who
// started a child how it ended.
//
// The difficulty is libcontainer: while it starts a process it waits for children of its own making, and fails if another has
// reaped them. So starts go through Start, and while one is under way only children that are known by then are reaped;
// orphans wait until it is over. Nothing polls: SIGCHLD drives it.
package reaper

import (
	"context"
	"errors"
	"os"
	"os/signal"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Exit is how a child ended.
type Exit struct {
	Status unix.WaitStatus
	At     time.Time
}

// Code is the exit status as a shell counts it: 0-255, and 128 + N for an end by signal N.
func (e Exit) Code() uint32 {
	if e.Status.Signaled() {
		return 128 + uint32(e.Status.Signal())
	}
	return uint32(e.Status.ExitStatus())
}

// Reaper reaps the calling process's children. There can be only one in a process.
type Reaper struct {
	kick chan struct{}

	mu       sync.Mutex
	starting int
	known    map[int]chan Exit
}

// New makes a reaper, which works while Run runs.
func New() *Reaper {
	return &Reaper{kick: make(chan struct{}, 1), known: map[int]chan Exit{}}
}

// Run reaps until ctx ends.
func (r *Reaper) Run(ctx context.Context) {
	sigs := make(chan os.Signal, 1)
	signal.Notify(sigs, unix.SIGCHLD)
	defer signal.Stop(sigs)
	for {
		r.sweep()
		select {
		case <-sigs:
		case <-r.kick:
		case <-ctx.Done():
			return
		}
	}
}

// Start runs start, which starts a child and returns its pid, and returns a channel that gets the child's end, once. start
// may wait for other children it has made, until it returns.
func (r *Reaper) Start(start func() (pid int, err error)) (<-chan Exit, error) {
	r.mu.Lock()
	r.starting++
	r.mu.Unlock()

	pid, err := start()

	r.mu.Lock()
	defer r.mu.Unlock()
	r.starting--
	var ch chan Exit
	if err == nil {
		ch = make(chan Exit, 1)
		r.known[pid] = ch
	}
	// The child may have ended before it was known, and orphans may have been left alone meanwhile.
	select {
	case r.kick <- struct{}{}:
	default:
	}
	return ch, err
}

// sweep reaps what has ended. It holds the lock throughout, so that no start begins between its look and its wait.
func (r *Reaper) sweep() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for pid := range r.known {
		r.reap(pid)
	}
	for r.starting == 0 && r.reap(-1) {
	}
}

// reap waits for pid, or for any child if pid is -1, and says whether it got one.
func (r *Reaper) reap(pid int) bool {
	for {
		var status unix.WaitStatus
		got, err := unix.Wait4(pid, &status, unix.WNOHANG, nil)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil || got <= 0 {
			return false
		}
		if ch, ok := r.known[got]; ok {
			delete(r.known, got)
			ch <- Exit{Status: status, At: time.Now()}
		}
		return true
	}
}
