// Package hold is the process that stands for a container on the host, and its owner's end of it. A container runs in a VM and
// so has no process here, but containerd's clients want one: its pid is the task's, /proc/PID/ns/net is the pod's network
// namespace, /proc/PID/root the container's root filesystem, and a signal to it is a signal to the container. Threads of it
// stand for the container's further processes, each with a number from the host's pids that no other process has.
//
// The process does nothing, and must never touch anything that a guest has written.
package hold

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/signal"
	"runtime"
	"runtime/debug"

	"golang.org/x/sys/unix"

	"github.com/fcshim/containerd-shim-fc-v2/pkg/parent"
)

// The two ends exchange messages of messageSize bytes over a SOCK_SEQPACKET socket: one that says what it is, and a number
// of 32 bits, little-endian.
const (
	messageSize = 5

	opThread = 't' // owner: make a thread; the answer is the same with its tid
	opEnd    = 'e' // owner: end the thread of that tid; no answer
	opSignal = 's' // holder: it has got that signal
)

// tidyAfter is the number of ended threads whose memory is given back at one go: too little each for the collector to notice.
const tidyAfter = 64

type message struct {
	op byte
	n  uint32
}

func (m message) write(c net.Conn) error {
	_, err := c.Write(binary.LittleEndian.AppendUint32([]byte{m.op}, m.n))
	return err
}

func read(c net.Conn) (message, error) {
	var b [messageSize]byte
	n, err := c.Read(b[:])
	switch {
	case err != nil:
		return message{}, err
	case n == 0:
		return message{}, io.EOF
	case n != messageSize:
		return message{}, fmt.Errorf("a message of %d bytes, want %d", n, messageSize)
	}
	return message{b[0], binary.LittleEndian.Uint32(b[1:])}, nil
}

// The real-time signals that Go lets a program have. Before them, 32 to 34 are the C libraries' own (34 is glibc's SIGRTMIN).
const (
	firstRealTime = unix.Signal(35)
	lastRealTime  = unix.Signal(64)
)

// forwarded are the signals that go on to the container; systemd, for one, takes SIGRTMIN+3 (37) for a halt. The others cannot
// be caught (KILL, STOP), are the Go runtime's (URG, PROF, those of faults), or are about this process and not about the one
// that it stands for (CHLD, PIPE, those of limits and terminals).
func forwarded() []os.Signal {
	list := []os.Signal{
		unix.SIGHUP, unix.SIGINT, unix.SIGQUIT, unix.SIGABRT, unix.SIGUSR1, unix.SIGUSR2, unix.SIGALRM, unix.SIGTERM, unix.SIGCONT,
		unix.SIGTSTP, unix.SIGWINCH, unix.SIGPWR,
	}
	for s := firstRealTime; s <= lastRealTime; s++ {
		list = append(list, s)
	}
	return list
}

// Main is the process, which ends with the writers of the pipe that parentFD reads from, if not before.
func Main(parentFD, controlFD int) error {
	if err := parent.Follow(parentFD); err != nil {
		return err
	}
	return serve(controlFD)
}

// serve serves the owner on the file descriptor control, until that closes.
func serve(control int) error {
	f := os.NewFile(uintptr(control), "control")
	conn, err := net.FileConn(f)
	f.Close()
	if err != nil {
		return fmt.Errorf("control socket: %w", err)
	}
	defer conn.Close()
	signals := make(chan os.Signal, 16)
	signal.Notify(signals, forwarded()...)
	go func() {
		for s := range signals {
			_ = message{opSignal, uint32(s.(unix.Signal))}.write(conn) // if it fails, the reading fails too
		}
	}()
	threads := make(map[uint32]chan struct{})
	ended := 0
	for {
		m, err := read(conn)
		switch {
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return fmt.Errorf("control socket: %w", err)
		}
		switch m.op {
		case opThread:
			t := newThread()
			threads[t.tid] = t.end
			if err := (message{opThread, t.tid}).write(conn); err != nil {
				return fmt.Errorf("control socket: %w", err)
			}
		case opEnd:
			if end := threads[m.n]; end != nil {
				close(end)
				delete(threads, m.n)
				if ended++; ended%tidyAfter == 0 {
					debug.FreeOSMemory()
				}
			}
		}
	}
}

// thread is a thread that lives until end is closed.
type thread struct {
	tid uint32
	end chan struct{}
}

func newThread() thread {
	made := make(chan thread)
	go func() {
		runtime.LockOSThread()
		if unix.Gettid() == unix.Getpid() {
			// The first thread has the process's own number. While this goroutine keeps it, another one gets another.
			t := newThread()
			runtime.UnlockOSThread()
			made <- t
			return
		}
		t := thread{uint32(unix.Gettid()), make(chan struct{})}
		made <- t
		<-t.end // locked, so that the thread ends with this goroutine
	}()
	return <-made
}
