package stdio

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fcshim/containerd-shim-fc-v2/guest/link"
	"github.com/fcshim/containerd-shim-fc-v2/pkg/agent"
	"github.com/fcshim/containerd-shim-fc-v2/pkg/agent/agentpb"
)

// host is a shim's end: a broker, and a dialer that reaches it.
type host struct {
	*agent.StreamBroker
	dial link.Dialer
}

func newHost(t *testing.T) host {
	t.Helper()
	path := filepath.Join(t.TempDir(), "streams")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	b := agent.NewStreamBroker(l)
	go b.Serve()
	t.Cleanup(func() { b.Close() })
	return host{b, func(ctx context.Context, port uint32) (link.Conn, error) {
		var d net.Dialer
		conn, err := d.DialContext(ctx, "unix", path)
		if err != nil {
			return nil, err
		}
		return conn.(*net.UnixConn), nil
	}}
}

func (h host) expect(t *testing.T) *agent.Expected {
	t.Helper()
	e, err := h.Expect()
	if err != nil {
		t.Fatal(err)
	}
	return e
}

func take(t *testing.T, e *agent.Expected) *net.UnixConn {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	conn, err := e.Wait(ctx)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	conn.SetDeadline(time.Now().Add(30 * time.Second))
	return conn.(*net.UnixConn)
}

// start runs a command with all three streams, and returns the host's ends.
func start(t *testing.T, script string) (o *IO, cmd *exec.Cmd, stdin, stdout, stderr *net.UnixConn) {
	t.Helper()
	h := newHost(t)
	in, out, errs := h.expect(t), h.expect(t), h.expect(t)
	o, err := Open(context.Background(), h.dial, &agentpb.Streams{Stdin: in.ID(), Stdout: out.ID(), Stderr: errs.ID()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(o.Close)
	f := o.Files()
	cmd = exec.Command("/bin/sh", "-c", script)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = f.Stdin, f.Stdout, f.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if err := o.Run(); err != nil {
		t.Fatal(err)
	}
	return o, cmd, take(t, in), take(t, out), take(t, errs)
}

func drainWithin(t *testing.T, o *IO, limit time.Duration) {
	t.Helper()
	begun := time.Now()
	o.Drain()
	if took := time.Since(begun); took > limit {
		t.Fatalf("draining took %v, more than %v", took, limit)
	}
}

func TestBytesExactBothWays(t *testing.T) {
	o, cmd, stdin, stdout, stderr := start(t, "cat; echo done >&2")
	sent := make([]byte, 20<<20)
	rand.NewChaCha8([32]byte{1}).Read(sent)
	go func() {
		stdin.Write(sent)
		stdin.CloseWrite()
	}()
	got, err := io.ReadAll(stdout)
	if err != nil || sha256.Sum256(got) != sha256.Sum256(sent) {
		t.Fatalf("%d bytes came back of %d, %v", len(got), len(sent), err)
	}
	if e, _ := io.ReadAll(stderr); string(e) != "done\n" {
		t.Errorf("stderr: %q", e)
	}
	cmd.Wait()
	drainWithin(t, o, time.Second)
}

// TestLastWords: the process has gone before the host reads the first byte.
func TestLastWords(t *testing.T) {
	o, cmd, _, stdout, _ := start(t, "head -c 60000 /dev/zero")
	cmd.Wait()
	drained := make(chan struct{})
	go func() { defer close(drained); o.Drain() }()
	time.Sleep(20 * time.Millisecond)
	if got, err := io.ReadAll(stdout); len(got) != 60000 || err != nil {
		t.Fatalf("%d bytes, %v", len(got), err)
	}
	<-drained
}

// TestSlowHost: a host that reads only after Grace has passed still gets every byte.
func TestSlowHost(t *testing.T) {
	o, cmd, _, stdout, _ := start(t, "head -c 400000 /dev/zero")
	drained := make(chan struct{})
	go func() { defer close(drained); cmd.Wait(); o.Drain() }()
	buf, total := make([]byte, 250000), 0
	for {
		n, err := stdout.Read(buf)
		if total += n; err != nil {
			break
		}
		if total < 300000 {
			time.Sleep(Grace / 2)
		}
	}
	if total != 400000 {
		t.Fatalf("%d bytes", total)
	}
	<-drained
}

func TestExitWhileInputComes(t *testing.T) {
	o, cmd, stdin, _, _ := start(t, "head -c 1 >/dev/null")
	sent := make(chan error, 1)
	go func() {
		_, err := stdin.Write(make([]byte, 20<<20))
		sent <- err
	}()
	cmd.Wait()
	drainWithin(t, o, time.Second)
	if err := <-sent; err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("the host's write ended with %v", err)
	}
}

// TestSurvivor: a child that keeps the output open delays the end by Grace only, and what it wrote by then arrives.
func TestSurvivor(t *testing.T) {
	o, cmd, _, stdout, stderr := start(t, "(echo early; sleep 60) & exit 0")
	cmd.Process.Wait()
	go io.Copy(io.Discard, stderr)
	drainWithin(t, o, Grace+time.Second)
	if got, err := io.ReadAll(stdout); string(got) != "early\n" || err != nil {
		t.Fatalf("%q, %v", got, err)
	}
}

func TestHostCloses(t *testing.T) {
	o, cmd, _, stdout, _ := start(t, "trap '' PIPE; while echo x; do :; done 2>/dev/null; exit 5")
	stdout.Close()
	if cmd.Wait(); cmd.ProcessState.ExitCode() != 5 {
		t.Fatalf("the writer ended with %v", cmd.ProcessState)
	}
	drainWithin(t, o, time.Second)
}

// startTerminal is start with a terminal.
func startTerminal(t *testing.T, script string) (o *IO, cmd *exec.Cmd, stdin, stdout *net.UnixConn) {
	t.Helper()
	h := newHost(t)
	in, out := h.expect(t), h.expect(t)
	dial := func(ctx context.Context, port uint32) (link.Conn, error) {
		conn, err := h.dial(ctx, port)
		if err == nil {
			err = conn.(*net.UnixConn).SetWriteBuffer(1) // the least there is: what the host does not read stays in the terminal
		}
		return conn, err
	}
	o, err := Open(context.Background(), dial, &agentpb.Streams{Stdin: in.ID(), Stdout: out.ID(), Terminal: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(o.Close)
	if err := o.Resize(1, 1); !errors.Is(err, ErrNoTerminal) {
		t.Errorf("resize too early: %v", err)
	}
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Skip(err)
	}
	unix.IoctlSetPointerInt(int(master.Fd()), unix.TIOCSPTLCK, 0)
	n, _ := unix.IoctlGetInt(int(master.Fd()), unix.TIOCGPTN)
	slave, err := os.OpenFile(filepath.Join("/dev/pts", strconv.Itoa(n)), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Skip(err)
	}
	if err := unix.Sendmsg(int(o.Files().Console.Fd()), []byte("pty"), unix.UnixRights(int(master.Fd())), nil, 0); err != nil {
		t.Fatal(err)
	}
	master.Close()
	cmd = exec.Command("/bin/sh", "-c", script)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = slave, slave, slave
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }) // its survivors, if any
	slave.Close()
	if err := o.Run(); err != nil {
		t.Fatal(err)
	}
	return o, cmd, take(t, in), take(t, out)
}

// TestTerminalSlowHost: a terminal's last words, of which the kernel shows a few KiB at a time, arrive also if a survivor holds
// the terminal and the host takes longer than Grace; and a survivor that goes on and on is cut off.
func TestTerminalSlowHost(t *testing.T) {
	for name, survivor := range map[string]string{"silent": "sleep 60", "noisy": "sleep 0.3; yes"} {
		t.Run(name, func(t *testing.T) {
			o, cmd, _, stdout := startTerminal(t, "("+survivor+") & head -c 400000 /dev/zero")
			ended, drained := make(chan struct{}), make(chan struct{})
			go func() { defer close(drained); cmd.Wait(); close(ended); o.Drain() }()
			buf, total := make([]byte, 4<<10), 0
			read := func() error {
				n, err := stdout.Read(buf)
				total += bytes.Count(buf[:n], []byte{0})
				return err
			}
			for wait := true; wait; { // the process ends as soon as the rest fits in what lies between
				select {
				case <-ended:
					wait = false
				case <-time.After(2 * time.Millisecond):
					if err := read(); err != nil {
						t.Fatal(err)
					}
				}
			}
			time.Sleep(Grace + 500*time.Millisecond)
			for read() == nil {
			}
			if total != 400000 {
				t.Errorf("%d bytes", total)
			}
			select {
			case <-drained:
			case <-time.After(5 * time.Second):
				t.Error("draining does not end")
			}
		})
	}
}

func TestTerminal(t *testing.T) {
	o, cmd, stdin, stdout := startTerminal(t, "read x; echo got $x; stty size")
	if err := o.Resize(101, 42); err != nil {
		t.Fatal(err)
	}
	io.WriteString(stdin, "word\n")
	got, err := io.ReadAll(stdout)
	if err != nil || !bytes.Contains(got, []byte("got word\r\n42 101\r\n")) {
		t.Fatalf("%q, %v", got, err)
	}
	cmd.Wait()
	drainWithin(t, o, time.Second)
}

func TestTerminalHasNoStderr(t *testing.T) {
	if _, err := Open(context.Background(), nil, &agentpb.Streams{Stderr: 3, Terminal: true}); err == nil {
		t.Fatal("no error")
	}
}
