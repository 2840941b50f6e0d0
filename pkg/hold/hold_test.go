package hold

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// The test binary is its own fc-vmm.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == "hold" {
		if err := Main(3, 4); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func start(t *testing.T, o Options) *Holder {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root, for namespaces")
	}
	o.Program = os.Args[0]
	h, err := Start(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := h.Close(); err != nil {
			t.Error(err)
		}
	})
	return h
}

func namespace(t *testing.T, pid int, name string) string {
	t.Helper()
	s, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/%s", pid, name))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestNamespaces(t *testing.T) {
	a := start(t, Options{})
	self := os.Getpid()
	for _, ns := range []string{"net", "mnt"} {
		if namespace(t, a.Pid(), ns) == namespace(t, self, ns) {
			t.Errorf("it is in the owner's %s namespace", ns)
		}
	}
	net, err := a.Namespace("net")
	if err != nil {
		t.Fatal(err)
	}
	defer net.Close()
	b := start(t, Options{Network: net})
	if got, want := namespace(t, b.Pid(), "net"), namespace(t, a.Pid(), "net"); got != want {
		t.Errorf("network namespace %s, want %s", got, want)
	}
}

func TestNamespaceOfTheDead(t *testing.T) {
	h := start(t, Options{})
	if err := unix.Kill(h.Pid(), unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	<-h.Done()
	if _, err := h.Namespace("mnt"); !errors.Is(err, ErrEnded) {
		t.Errorf("error %v, want %v", err, ErrEnded)
	}
}

// The pid of a holder that has ended is nobody else's as long as somebody works with it, and is not used after that.
func TestPidIsKept(t *testing.T) {
	h := start(t, Options{})
	err := h.withPid(func(pid int) error {
		if err := unix.Kill(pid, unix.SIGKILL); err != nil {
			return err
		}
		awaitEnd(pid)
		select {
		case <-h.Done():
			return errors.New("reaped while its pid is in use")
		case <-time.After(100 * time.Millisecond):
		}
		return unix.Kill(pid, 0)
	})
	if err != nil {
		t.Fatal(err)
	}
	<-h.Done()
	h.cmd.Process.Pid = os.Getpid() // as if the pid were another process's by now
	if f, err := h.Namespace("mnt"); !errors.Is(err, ErrEnded) {
		t.Errorf("a namespace of a stranger's: %v, %v", f, err)
	}
	if err := h.withPid(func(int) error { return nil }); !errors.Is(err, ErrEnded) {
		t.Errorf("error %v, want %v", err, ErrEnded)
	}
}

// Who starts the command decides where it begins, and whether.
func TestIn(t *testing.T) {
	begun := 0
	h := start(t, Options{In: func(cmd *exec.Cmd, start func() error) error {
		err := start()
		begun = cmd.Process.Pid
		return err
	}})
	if begun != h.Pid() {
		t.Errorf("started as %d, is %d", begun, h.Pid())
	}
	no := errors.New("no such place")
	var child *os.Process
	_, err := Start(Options{Program: os.Args[0], In: func(cmd *exec.Cmd, start func() error) error {
		if err := start(); err != nil {
			return err
		}
		child = cmd.Process
		err := cmd.Process.Kill()
		_ = cmd.Wait()
		return errors.Join(no, err)
	}})
	if !errors.Is(err, no) {
		t.Errorf("error %v, want %v", err, no)
	}
	if child == nil || unix.Kill(child.Pid, 0) != unix.ESRCH {
		t.Errorf("the process is left: %v", child)
	}
}

func TestThreads(t *testing.T) {
	h := start(t, Options{})
	root := t.TempDir()
	if err := os.WriteFile(filepath.Join(root, "here"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	tids := map[int]bool{h.Pid(): true}
	for range 20 {
		tid, err := h.Thread()
		if err != nil {
			t.Fatal(err)
		}
		if tids[tid] {
			t.Fatalf("thread %d given twice", tid)
		}
		tids[tid] = true
	}
	if err := h.SetRoot(root, nil); err != nil {
		t.Fatal(err)
	}
	for tid := range tids {
		if _, err := os.Stat(filepath.Join("/proc", strconv.Itoa(tid), "root/here")); err != nil {
			t.Errorf("of thread %d: %v", tid, err)
		}
		if tid != h.Pid() {
			h.EndThread(tid)
			await(t, fmt.Sprintf("thread %d ends", tid), func() bool { return unix.Kill(tid, 0) == unix.ESRCH })
		}
	}
	h.EndThread(1)
	if _, err := h.Thread(); err != nil {
		t.Error(err)
	}
}

// played is a holder whose process the test plays, at the other end of conn.
func played(t *testing.T) (h *Holder, conn net.Conn) {
	t.Helper()
	h = &Holder{done: make(chan struct{}), cmd: &exec.Cmd{Process: &os.Process{Pid: 1}}}
	theirs, err := h.connect()
	if err != nil {
		t.Fatal(err)
	}
	defer theirs.Close()
	if conn, err = net.FileConn(theirs); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close(); h.conn.Close() })
	go h.listen()
	return h, conn
}

// Nobody would ever end a thread that comes too late.
func TestLateThread(t *testing.T) {
	_, conn := played(t)
	if err := (message{opThread, 77}).write(conn); err != nil {
		t.Fatal(err)
	}
	_ = conn.SetReadDeadline(time.Now().Add(10 * time.Second))
	if m, err := read(conn); err != nil || m != (message{opEnd, 77}) {
		t.Errorf("the answer to a thread that nobody waits for: %c %d, %v", m.op, m.n, err)
	}
}

// A stopped process reads nothing, and its socket fills.
func TestThreadOfTheStopped(t *testing.T) {
	h, _ := played(t)
	_ = h.conn.SetWriteDeadline(time.Now().Add(100 * time.Millisecond))
	var err error
	for err == nil {
		err = message{opEnd, 1}.write(h.conn)
	}
	done := make(chan error, 1)
	_ = h.conn.SetWriteDeadline(time.Time{})
	go func() {
		h.EndThread(1)
		_, err := h.Thread()
		done <- err
	}()
	select {
	case err := <-done:
		if !errors.Is(err, os.ErrDeadlineExceeded) || errors.Is(err, ErrEnded) {
			t.Errorf("error %v", err)
		}
	case <-time.After(30 * time.Second):
		t.Fatal("it waits for a process that does not read")
	}
}

func await(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not seen: %s", what)
		}
	}
}

func TestRoot(t *testing.T) {
	h := start(t, Options{})
	root, volume, file, sub := t.TempDir(), t.TempDir(), filepath.Join(t.TempDir(), "file"), t.TempDir()
	secret := t.TempDir()
	for _, d := range []string{"vol", "deep/er"} {
		if err := os.MkdirAll(filepath.Join(root, d), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	for name, text := range map[string]string{
		filepath.Join(root, "name"): "root", filepath.Join(root, "hosts"): "", filepath.Join(volume, "name"): "volume",
		file: "file", filepath.Join(sub, "name"): "sub",
	} {
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	// A link of the container's that would lead out, if it were followed on the host.
	if err := os.Symlink(secret, filepath.Join(root, "out")); err != nil {
		t.Fatal(err)
	}
	// This binary may be linked to libraries, which the process must have loaded from its old root by now; fc-vmm is not.
	if _, err := h.Thread(); err != nil {
		t.Fatal(err)
	}
	err := h.SetRoot(root, []Mount{
		{volume, "/vol"}, {file, "/hosts"}, {sub, "/deep/er"}, {volume, "/not/there"}, {volume, "/out"},
		{file, "/deep"}, {volume, "/name"}, // of the other kind each
	})
	if err != nil {
		t.Fatal(err)
	}
	at := fmt.Sprintf("/proc/%d/root/", h.Pid())
	for name, want := range map[string]string{"name": "root", "vol/name": "volume", "hosts": "file", "deep/er/name": "sub"} {
		if got, err := os.ReadFile(at + name); err != nil || string(got) != want {
			t.Errorf("%s holds %q, %v, want %q", name, got, err, want)
		}
	}
	if err := os.WriteFile(at+"vol/new", nil, 0o600); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(filepath.Join(volume, "new")); err != nil {
		t.Errorf("what is written there is not the volume's: %v", err)
	}
	if entries, err := os.ReadDir(secret); err != nil || len(entries) > 0 {
		t.Errorf("something was mounted outside: %v %v", entries, err)
	}
	if _, err := os.Stat(at + "proc/self"); err == nil {
		t.Error("the host's root is still there")
	}
}

func TestSignals(t *testing.T) {
	got := make(chan unix.Signal, 1)
	h := start(t, Options{Signal: func(s unix.Signal) { got <- s }})
	if _, err := h.Thread(); err != nil { // it serves: signals are caught by now
		t.Fatal(err)
	}
	for _, s := range []unix.Signal{unix.SIGTERM, unix.SIGUSR1, unix.SIGHUP, unix.SIGABRT, unix.SIGPWR, 35, 37, 64} {
		if err := unix.Kill(h.Pid(), s); err != nil {
			t.Fatal(err)
		}
		select {
		case g := <-got:
			if g != s {
				t.Errorf("got %v, want %v", g, s)
			}
		case <-time.After(10 * time.Second):
			t.Fatalf("%v did not arrive", s)
		}
	}
	if err := unix.Kill(h.Pid(), unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	select {
	case <-h.Done():
	case <-time.After(10 * time.Second):
		t.Fatal("it outlived a SIGKILL")
	}
	if _, err := h.Thread(); !errors.Is(err, ErrEnded) {
		t.Errorf("a thread of a dead process: %v", err)
	}
}

// A thread is never the process's first one, whose number is the process's.
func TestThreadIsNotTheFirst(t *testing.T) {
	for range 30 {
		h := start(t, Options{})
		for range 3 {
			if tid, err := h.Thread(); err != nil || tid == h.Pid() {
				t.Fatalf("thread %d of process %d, %v", tid, h.Pid(), err)
			}
		}
	}
}
