// Package stdio joins a process's standard streams, pipes or a terminal, to stream connections to the host.
//
// Bytes are handed on raw and in order, the end of a direction included: the host's half-close closes the process's stdin, and
// the process's last close half-closes the host's stream. Buffers are few and of fixed size: a reader that is slow slows the
// writer. No wait is without bound once the process has ended.
package stdio

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fcshim/containerd-shim-fc-v2/guest/link"
	"github.com/fcshim/containerd-shim-fc-v2/pkg/agent/agentpb"
)

// What Drain waits for at most, once the process has ended.
const (
	// Grace is for a child of the process that has survived it and holds its output open.
	Grace = 2 * time.Second
	// Stall is for a host that takes no output.
	Stall = 10 * time.Second
)

// ErrNoTerminal says that a process has pipes or nothing where a terminal is needed.
var ErrNoTerminal = errors.New("process has no terminal")

// IO is the standard streams of one process.
type IO struct {
	terminal              bool
	stdin, stdout, stderr link.Conn // nil: none

	files   Files
	console *os.File // our end of the console socket, until Run
	master  *os.File // the terminal
	in      *input
	out     []*output
	running sync.WaitGroup // the outputs
}

// Files are the process's ends, to be given to it. A nil one stands for /dev/null. They stay the IO's, which closes them.
type Files struct {
	Stdin, Stdout, Stderr *os.File
	// Console is where the process's starter sends the master of the terminal it has made; nil without a terminal.
	Console *os.File
}

// Open opens the streams that s names, and makes pipes for them or prepares for a terminal. ctx bounds it.
func Open(ctx context.Context, dial link.Dialer, s *agentpb.Streams) (_ *IO, err error) {
	o := &IO{terminal: s.GetTerminal()}
	defer func() {
		if err != nil {
			o.Close()
		}
	}()
	if o.terminal && s.GetStderr() != 0 {
		return nil, fmt.Errorf("streams.stderr is %d: a terminal has no stderr, it must be 0", s.GetStderr())
	}
	for _, v := range []struct {
		id   uint64
		conn *link.Conn
	}{{s.GetStdin(), &o.stdin}, {s.GetStdout(), &o.stdout}, {s.GetStderr(), &o.stderr}} {
		if v.id == 0 {
			continue
		}
		conn, err := dial.Stream(ctx, v.id)
		if err != nil {
			return nil, err
		}
		*v.conn = conn
	}
	if o.terminal {
		return o, o.openConsole()
	}
	return o, o.openPipes()
}

func (o *IO) openPipes() error {
	if o.stdin != nil {
		r, w, err := pipe(1)
		if err != nil {
			return err
		}
		o.files.Stdin, o.in = r, &input{src: o.stdin, dst: w, closeDst: true}
	}
	for _, v := range []struct {
		dst  link.Conn
		file **os.File
	}{{o.stdout, &o.files.Stdout}, {o.stderr, &o.files.Stderr}} {
		if v.dst == nil {
			continue
		}
		r, w, err := pipe(0)
		if err != nil {
			return err
		}
		*v.file = w
		o.out = append(o.out, newOutput(r, v.dst, false))
	}
	return nil
}

// pipe makes a pipe whose end number ours is non-blocking, for Go's poller; the other stays as programs expect it.
func pipe(ours int) (r, w *os.File, err error) {
	var fds [2]int
	if err := unix.Pipe2(fds[:], unix.O_CLOEXEC); err != nil {
		return nil, nil, os.NewSyscallError("pipe2", err)
	}
	if err := unix.SetNonblock(fds[ours], true); err != nil {
		unix.Close(fds[0])
		unix.Close(fds[1])
		return nil, nil, os.NewSyscallError("set O_NONBLOCK on a pipe", err)
	}
	return os.NewFile(uintptr(fds[0]), "pipe"), os.NewFile(uintptr(fds[1]), "pipe"), nil
}

// Files returns the process's ends.
func (o *IO) Files() Files { return o.files }

// Chown gives the process's pipes to an owner, so that a process in a user namespace can open /dev/stdout again.
func (o *IO) Chown(uid, gid int) error {
	for _, f := range []*os.File{o.files.Stdin, o.files.Stdout, o.files.Stderr} {
		if f == nil {
			continue
		}
		if err := f.Chown(uid, gid); err != nil {
			return fmt.Errorf("give a pipe to %d:%d: %w", uid, gid, err)
		}
	}
	return nil
}

// Terminal says whether the process has a terminal.
func (o *IO) Terminal() bool { return o.terminal }

// Run starts copying. Call it once the process has been started: its starter has sent the terminal by then, and the
// process's ends are closed here so that only the process holds them.
func (o *IO) Run() error {
	o.closeFiles()
	if o.terminal {
		if err := o.takeMaster(); err != nil {
			return err
		}
	}
	if o.in != nil {
		go o.in.run()
	}
	for _, out := range o.out {
		o.running.Go(out.run)
	}
	return nil
}

// Drain is to be called when the process has ended: it stops its input, and returns when the output has been handed over
// and ended, or one of the bounds above has passed. What was in the pipe when the process ended is handed over in any case
// in which the host takes it.
func (o *IO) Drain() {
	if o.in != nil {
		o.in.stop()
	}
	for _, out := range o.out {
		out.ended()
	}
	o.running.Wait()
	if o.master != nil {
		o.master.Close()
	}
}

// Close gives everything up at once, for a process that was never started, or after Drain.
func (o *IO) Close() {
	o.closeFiles()
	if o.console != nil {
		o.console.Close()
	}
	if o.in != nil {
		o.in.stop()
	}
	for _, out := range o.out {
		out.src.Close()
	}
	if o.master != nil {
		o.master.Close()
	}
	for _, conn := range []link.Conn{o.stdin, o.stdout, o.stderr} {
		if conn != nil {
			conn.Close()
		}
	}
}

func (o *IO) closeFiles() {
	for _, f := range []*os.File{o.files.Stdin, o.files.Stdout, o.files.Stderr, o.files.Console} {
		if f != nil {
			f.Close() // a second close is harmless
		}
	}
}
