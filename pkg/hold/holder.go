package hold

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fcshim/containerd-shim-fc-v2/pkg/nsthread"
)

const (
	// sendTimeout is how long a holder may leave its socket full, as one that is stopped does.
	sendTimeout = time.Second
	// answerTimeout bounds the holder's answer to a request for a thread.
	answerTimeout = 5 * time.Second
	// endTimeout is how long a holder may take to end when its pipe is closed.
	endTimeout = 5 * time.Second
)

// ErrEnded is the error of asking a holder that is no more.
var ErrEnded = errors.New("the container's process on the host has ended")

// Options describe a holder.
type Options struct {
	// Program is the path of fc-vmm.
	Program string
	// Label is what a process list shows after the program's own arguments.
	Label []string
	// Network is the network namespace to be in, or nil for a new one.
	Network *os.File
	// In calls a function that starts the command, in the cgroup that it shall be in from its beginning: to move it later would wait for
	// RCU (the kernel's cgroup_threadgroup_rwsem). Nil for ours.
	In func(cmd *exec.Cmd, start func() error) error
	// Signal is called for each signal that the holder gets and passes on, one call at a time.
	Signal func(unix.Signal)
}

// Holder is the owner's end of the process. It ends with its owner, however that ends.
type Holder struct {
	cmd    *exec.Cmd
	pipe   *os.File // its end is the holder's
	conn   net.Conn
	signal func(unix.Signal)

	ask    sync.Mutex // one request at a time
	mu     sync.Mutex
	waiter chan uint32 // takes the next new thread; nil if nobody waits for one

	sending sync.Mutex

	reaping sync.RWMutex // as long as a reader has it, the pid is nobody else's
	reaped  bool

	done chan struct{} // closed after that
}

// Start makes a holder, in a mount namespace of its own.
func Start(o Options) (_ *Holder, err error) {
	r, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer r.Close()
	h := &Holder{pipe: w, signal: o.Signal, done: make(chan struct{})}
	defer func() {
		if err != nil {
			w.Close()
			if h.conn != nil {
				h.conn.Close()
			}
		}
	}()
	theirs, err := h.connect()
	if err != nil {
		return nil, fmt.Errorf("connect to the container's process on the host: %w", err)
	}
	defer theirs.Close()
	h.cmd = exec.Command(o.Program, append([]string{"hold", "--parent-fd", "3", "--control-fd", "4", "--"}, o.Label...)...)
	h.cmd.ExtraFiles = []*os.File{r, theirs}
	h.cmd.Env = []string{"GODEBUG=" + LeanHeap, "GOGC=" + LeanGC}
	h.cmd.Dir = "/" // so that it moves with the root
	h.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Cloneflags: unix.CLONE_NEWNS}
	var in []nsthread.Namespace
	if o.Network != nil {
		in = append(in, nsthread.Namespace{File: o.Network, Kind: unix.CLONE_NEWNET})
	} else {
		h.cmd.SysProcAttr.Cloneflags |= unix.CLONE_NEWNET
	}
	start := func() error { return StartLean(h.cmd.Start) }
	if lean := start; o.In != nil {
		start = func() error { return o.In(h.cmd, lean) }
	}
	if err := nsthread.Do(start, in...); err != nil {
		return nil, fmt.Errorf("start %s hold: %w", o.Program, err)
	}
	go h.listen()
	go h.reap()
	return h, nil
}

func (h *Holder) connect() (theirs *os.File, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	ours := os.NewFile(uintptr(fds[0]), "control")
	defer ours.Close()
	theirs = os.NewFile(uintptr(fds[1]), "control")
	if h.conn, err = net.FileConn(ours); err != nil {
		theirs.Close()
		return nil, err
	}
	return theirs, nil
}

// listen passes on what the holder says, until it ends.
func (h *Holder) listen() {
	for {
		m, err := read(h.conn)
		if err != nil {
			return
		}
		switch m.op {
		case opThread:
			if w := h.setWaiter(nil); w != nil {
				w <- m.n
			} else { // the late answer to a request that was given up
				h.EndThread(int(m.n))
			}
		case opSignal:
			if h.signal != nil && m.n > 0 && m.n <= 64 {
				h.signal(unix.Signal(m.n))
			}
		}
	}
}

func (h *Holder) reap() {
	awaitEnd(h.Pid())
	h.reaping.Lock()
	_ = h.cmd.Wait() // at once; how it ended means nothing
	h.reaped = true
	h.reaping.Unlock()
	h.conn.Close()
	close(h.done)
}

// awaitEnd waits for a child's end, and leaves it to be reaped.
func awaitEnd(pid int) {
	for {
		err := unix.Waitid(unix.P_PID, pid, nil, unix.WEXITED|unix.WNOWAIT, nil)
		if !errors.Is(err, unix.EINTR) {
			return
		}
	}
}

// Pid is its number on the host. Once it has ended, it may be another process's: withPid sees to that.
func (h *Holder) Pid() int { return h.cmd.Process.Pid }

// withPid calls f, which must not wait, with its number on the host, and keeps that from becoming another process's meanwhile;
// the holder may have ended all the same, as a zombie. The error is f's, or ErrEnded.
func (h *Holder) withPid(f func(pid int) error) error {
	h.reaping.RLock()
	defer h.reaping.RUnlock()
	if h.reaped {
		return ErrEnded
	}
	return f(h.Pid())
}

// Done is closed when the holder has ended, be it by Close or because somebody has killed it.
func (h *Holder) Done() <-chan struct{} { return h.done }

// setWaiter sets who takes the next new thread, and returns who would have.
func (h *Holder) setWaiter(w chan uint32) (before chan uint32) {
	h.mu.Lock()
	defer h.mu.Unlock()
	before, h.waiter = h.waiter, w
	return before
}

// send gives up on a holder that does not read.
func (h *Holder) send(m message) error {
	h.sending.Lock()
	defer h.sending.Unlock()
	if err := h.conn.SetWriteDeadline(time.Now().Add(sendTimeout)); err != nil {
		return err
	}
	return m.write(h.conn)
}

// Thread makes a thread, and returns its number. EndThread ends it.
func (h *Holder) Thread() (int, error) {
	h.ask.Lock()
	defer h.ask.Unlock()
	made := make(chan uint32, 1)
	h.setWaiter(made)
	switch err := h.send(message{op: opThread}); {
	case errors.Is(err, os.ErrDeadlineExceeded):
		h.setWaiter(nil)
		return 0, fmt.Errorf("the container's process on the host (pid %d) did not take a request for a thread within %v: %w", h.Pid(), sendTimeout, err)
	case err != nil:
		h.setWaiter(nil)
		return 0, fmt.Errorf("%w: %w", ErrEnded, err)
	}
	timer := time.NewTimer(answerTimeout)
	defer timer.Stop()
	select {
	case tid := <-made:
		return int(tid), nil
	case <-h.done:
		return 0, ErrEnded
	case <-timer.C:
	}
	if h.setWaiter(nil) == nil { // it has come just now
		return int(<-made), nil
	}
	return 0, fmt.Errorf("the container's process on the host (pid %d) did not make a thread within %v", h.Pid(), answerTimeout)
}

// EndThread ends a thread. Nothing happens if there is no such thread; it lives on if the holder, stopped by somebody, does not
// read for long.
func (h *Holder) EndThread(tid int) {
	_ = h.send(message{opEnd, uint32(tid)}) // an error other than that means that all of its threads have ended
}

// Namespace opens one of its namespaces: "net", "mnt". The caller closes it. The error of a holder that has been killed is ErrEnded.
func (h *Holder) Namespace(name string) (f *os.File, err error) {
	err = h.withPid(func(pid int) (err error) {
		f, err = os.Open(filepath.Join("/proc", strconv.Itoa(pid), "ns", name))
		if errors.Is(err, os.ErrNotExist) {
			err = fmt.Errorf("%w: %w", ErrEnded, err)
		}
		return err
	})
	return f, err
}

// Close ends the holder and returns when it is gone. The kernel kills it as its pipe closes, even if it is stopped.
func (h *Holder) Close() error {
	h.pipe.Close()
	timer := time.NewTimer(endTimeout)
	defer timer.Stop()
	select {
	case <-h.done:
		return nil
	case <-timer.C:
		return fmt.Errorf("the container's process on the host (pid %d) has not ended within %v of its SIGKILL", h.Pid(), endTimeout)
	}
}
