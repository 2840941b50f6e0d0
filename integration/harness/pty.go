package harness

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// Terminal is a ctr that runs on a pseudo-terminal whose other end the test holds.
type Terminal struct {
	cmd    *exec.Cmd
	master *os.File
	out    Buffer
	done   chan struct{}
}

// Terminal starts ctr with args on a pseudo-terminal of the given size.
func (c *Containerd) Terminal(t testing.TB, width, height uint16, args ...string) *Terminal {
	t.Helper()
	master, slave, err := openPty()
	if err != nil {
		t.Fatal(err)
	}
	defer slave.Close()
	term := &Terminal{cmd: c.ctr(args), master: master, done: make(chan struct{})}
	term.Resize(t, width, height)
	term.cmd.Stdin, term.cmd.Stdout, term.cmd.Stderr = slave, slave, slave
	term.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	if err := term.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		// The master's read ends with EIO when the last slave is closed.
		buf := make([]byte, 4096)
		for {
			n, err := master.Read(buf)
			_, _ = term.out.Write(buf[:n])
			if err != nil {
				break
			}
		}
		_ = term.cmd.Wait()
		close(term.done)
	}()
	t.Cleanup(func() {
		_ = term.cmd.Process.Kill()
		_ = master.Close()
	})
	return term
}

// Type writes s as if typed.
func (term *Terminal) Type(t testing.TB, s string) {
	t.Helper()
	if _, err := term.master.Write([]byte(s)); err != nil {
		t.Fatalf("type %q: %v\n%s", s, err, term.out.String())
	}
}

// Resize changes the terminal's size; the kernel tells ctr by SIGWINCH.
func (term *Terminal) Resize(t testing.TB, width, height uint16) {
	t.Helper()
	if err := unix.IoctlSetWinsize(int(term.master.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Col: width, Row: height}); err != nil {
		t.Fatal(err)
	}
}

// KeepTelling repeats SIGWINCH to ctr until stop is called: the one that a Resize causes is lost if ctr has not got to listening for it.
func (term *Terminal) KeepTelling() (stop func()) {
	ticker, stopped := time.NewTicker(time.Second), make(chan struct{})
	var telling sync.WaitGroup
	telling.Go(func() {
		for {
			select {
			case <-ticker.C:
				_ = term.cmd.Process.Signal(unix.SIGWINCH)
			case <-stopped:
				return
			}
		}
	})
	return func() {
		ticker.Stop()
		close(stopped)
		telling.Wait()
	}
}

// openPty opens both ends of a new pseudo-terminal (pty(7)).
func openPty() (master, slave *os.File, err error) {
	master, err = os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, nil, err
	}
	fd := int(master.Fd())
	n, err := unix.IoctlGetInt(fd, unix.TIOCGPTN)
	if err == nil {
		err = unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0)
	}
	if err == nil {
		slave, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
	}
	if err != nil {
		return nil, nil, errors.Join(err, master.Close())
	}
	return master, slave, nil
}

// Expect waits until the terminal has shown s since the last Expect that found something.
func (term *Terminal) Expect(t testing.TB, s string) {
	t.Helper()
	term.out.Await(t, s, commandTimeout)
}

// Wait waits for ctr's end and returns its exit status.
func (term *Terminal) Wait(t testing.TB) int {
	t.Helper()
	select {
	case <-term.done:
		return status(term.cmd.ProcessState)
	case <-time.After(commandTimeout):
		t.Fatalf("ctr on a terminal had not ended after %v\n%s", commandTimeout, term.out.String())
		return -1
	}
}

// Buffer collects a process's output and can be waited on. The zero value is ready to use.
type Buffer struct {
	mu      sync.Mutex
	data    bytes.Buffer
	seen    int
	changed chan struct{}
}

func (b *Buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.changed != nil {
		close(b.changed)
		b.changed = nil
	}
	return b.data.Write(p)
}

// String is everything written so far.
func (b *Buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.data.String()
}

// Await waits until s has been written after what the last Await found.
func (b *Buffer) Await(t testing.TB, s string, limit time.Duration) {
	t.Helper()
	timeout := time.After(limit)
	for {
		b.mu.Lock()
		if i := strings.Index(b.data.String()[b.seen:], s); i >= 0 {
			b.seen += i + len(s)
			b.mu.Unlock()
			return
		}
		if b.changed == nil {
			b.changed = make(chan struct{})
		}
		changed := b.changed
		b.mu.Unlock()
		select {
		case <-changed:
		case <-timeout:
			t.Fatalf("did not see %q in %v; all output:\n%s", s, limit, clip(b.String()))
		}
	}
}
