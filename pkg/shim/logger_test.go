package shim

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	taskapi "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/fcshim/containerd-shim-fc-v2/pkg/nsthread"
)

// fakeLoggerArg makes the test binary a logger: its value says what is wrong with it. The argument "to" names a folder, where
// it puts each stream into a file.
const fakeLoggerArg = "--fake-logger"

func fakeLogger(args []string) {
	// Arguments come in pairs.
	value := func(key string) string { return args[slices.Index(args, key)+1] }
	fake, dir := value(fakeLoggerArg), value("to")
	note := func(name, text string) {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	}
	streams := map[string]io.Reader{"stdout": os.NewFile(3, "stdout"), "stderr": os.NewFile(4, "stderr")}
	ready := os.NewFile(5, "ready")
	note("told", fmt.Sprintf("%q %q", args, os.Environ()))
	switch fake {
	case "where":
		ns, _ := os.Readlink("/proc/self/ns/mnt")
		wd, _ := os.Getwd()
		note("where", ns+" "+wd)
	case "die":
		fmt.Fprintln(os.Stderr, "first\nno room to log")
		os.Exit(3)
	case "mute":
		select {}
	case "late":
		time.Sleep(time.Second)
	case "linger":
		signal.Ignore(syscall.SIGTERM)
	}
	if fake != "old" {
		_, _ = ready.Write([]byte{0})
	}
	ready.Close()
	var all sync.WaitGroup
	for name, r := range streams {
		all.Go(func() {
			if fake == "quit" && name == "stdout" {
				line, _ := bufio.NewReader(r).ReadString('\n')
				note(name, line)
				os.Exit(1)
			}
			if fake == "slow" {
				r = slowReader{r}
			}
			b, _ := io.ReadAll(r)
			note(name, string(b))
		})
	}
	all.Wait()
	if fake == "linger" {
		time.Sleep(time.Hour) // select {} is a deadlock, with nobody else left
	}
	os.Exit(0)
}

type slowReader struct{ io.Reader }

func (r slowReader) Read(b []byte) (int, error) {
	time.Sleep(5 * time.Millisecond)
	return r.Reader.Read(b)
}

// loggerURI is where a fake logger puts its files, and its URI.
func loggerURI(t *testing.T, scheme, fake string) (dir, uri string) {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	dir = t.TempDir()
	u := url.URL{Scheme: scheme, Path: self, RawQuery: url.Values{fakeLoggerArg: {fake}, "to": {dir}}.Encode()}
	return dir, u.String()
}

func wantFile(t *testing.T, dir, name, want string) {
	t.Helper()
	if b, err := os.ReadFile(filepath.Join(dir, name)); string(b) != want || err != nil && (want != "" || !errors.Is(err, os.ErrNotExist)) {
		t.Errorf("%s: %.200q (%d bytes), want %.200q (%d bytes); %v", name, b, len(b), want, len(want), err)
	}
}

func TestLogger(t *testing.T) {
	for name, tt := range map[string]struct {
		scheme, fake   string
		terminal       bool
		args           []string
		stdout, stderr string
		status         uint32
	}{
		"both":     {"binary", "", false, []string{"sh", "-c", "echo out; echo err >&2; exit 3"}, "out\n", "err\n", 3},
		"v2":       {"binary-v2", "", false, []string{"sh", "-c", "echo out; echo err >&2"}, "out\n", "err\n", 0},
		"old":      {"binary", "old", false, []string{"echo", "out"}, "out\n", "", 0},
		"terminal": {"binary", "", true, []string{"echo", "out"}, "out\n", "", 0},
		"slow":     {"binary", "slow", false, []string{"head", "-c", "4194304", "/dev/zero"}, strings.Repeat("\x00", 4<<20), "", 0},
		"quits":    {"binary", "quit", false, []string{"sh", "-c", "echo out; head -c 20971520 /dev/zero && exit 7"}, "out\n", "", 7},
	} {
		t.Run(name, func(t *testing.T) {
			dir, uri := loggerURI(t, tt.scheme, tt.fake)
			w := newWorld(t, "", tt.args...)
			r := &taskapi.CreateTaskRequest{
				ID: cid, Bundle: w.bundle, Rootfs: w.rootfs, Options: w.options(), Stdout: uri, Stderr: uri, Terminal: tt.terminal,
			}
			if _, err := w.Create(w.ctx, r); err != nil {
				t.Fatal(err)
			}
			w.start("")
			w.wait("", tt.status)
			w.delete("")
			wantFile(t, dir, "stdout", tt.stdout)
			wantFile(t, dir, "stderr", tt.stderr)
			wantFile(t, dir, "told", fmt.Sprintf("%q %q", []string{fakeLoggerArg, tt.fake, "to", dir}, []string{"CONTAINER_ID=" + cid, "CONTAINER_NAMESPACE=test"}))
		})
	}
}

// An exec has a logger of its own, which knows it by its own id.
func TestLoggerOfExec(t *testing.T) {
	w := newWorld(t, "", "sleep", "100")
	w.run(nil)
	dir, uri := loggerURI(t, "binary", "")
	if err := w.execTo("e1", uri, "echo", "execed"); err != nil {
		t.Fatal(err)
	}
	w.start("e1")
	w.wait("e1", 0)
	w.delete("e1")
	wantFile(t, dir, "stdout", "execed\n")
	if b, _ := os.ReadFile(filepath.Join(dir, "told")); !strings.Contains(string(b), "CONTAINER_ID=e1") {
		t.Errorf("the exec's logger was told %s", b)
	}
}

func TestBadLoggers(t *testing.T) {
	_, dies := loggerURI(t, "binary", "die")
	_, old := loggerURI(t, "binary-v2", "old")
	_, good := loggerURI(t, "binary", "")
	for name, tt := range map[string]struct {
		stdout, stderr string
		class          error
		want           string
	}{
		"missing":   {"binary:///no/such/logger", "", errdefs.ErrInvalidArgument, "start logger /no/such/logger: no such file"},
		"dies":      {dies, dies, errdefs.ErrFailedPrecondition, "(exit status 3: no room to log) before it was ready"},
		"not ready": {old, old, errdefs.ErrFailedPrecondition, "closed file 5 without having written to it"},
		"relative":  {"binary://logger", "", errdefs.ErrInvalidArgument, "absolute path"},
		"scheme":    {"http://logger/", "", errdefs.ErrInvalidArgument, `scheme "http"`},
		"file":      {"file://log", "", errdefs.ErrInvalidArgument, "absolute path"},
		"two":       {good, dies, errdefs.ErrInvalidArgument, "both"},
		"half":      {"", good, errdefs.ErrInvalidArgument, "both"},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, "", "true")
			_, err := w.Create(w.ctx, &taskapi.CreateTaskRequest{ID: cid, Bundle: w.bundle, Rootfs: w.rootfs, Options: w.options(), Stdout: tt.stdout, Stderr: tt.stderr})
			if !errors.Is(err, tt.class) || err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, want %v with %q", err, tt.class, tt.want)
			}
			w.nothingLeft()
		})
	}
}

// A logger that is never ready ends with the wait for it; one that is done with its streams, but does not end, is ended.
func TestLoggerLingers(t *testing.T) {
	ctx := namespaces.WithNamespace(context.Background(), "test")
	dir, uri := loggerURI(t, "binary", "mute")
	bounded, cancel := context.WithCancel(ctx)
	go func() {
		for {
			if _, err := os.Stat(filepath.Join(dir, "told")); err == nil {
				cancel()
				return
			}
			time.Sleep(time.Millisecond)
		}
	}()
	if _, err := startLogger(bounded, stdioPaths{ID: cid, Stdout: uri}); !errors.Is(err, context.Canceled) {
		t.Errorf("a mute logger, and a client that leaves: %v", err)
	}
	_, uri = loggerURI(t, "binary", "linger")
	l, err := startLogger(ctx, stdioPaths{ID: cid, Stdout: uri})
	if err != nil {
		t.Fatal(err)
	}
	l.serving.Store(false)
	closeFiles(l.streams[:])
	l.dismiss(50 * time.Millisecond)
	select {
	case <-l.done:
		if !strings.Contains(l.err.Error(), "killed") {
			t.Errorf("ended by %v", l.err)
		}
	default:
		t.Error("the logger lives")
	}
}

// A logger runs among the host's mounts, of which the shim's are a copy.
func TestLoggerMounts(t *testing.T) {
	var other *os.File
	err := nsthread.Do(func() (err error) {
		if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
			return err
		}
		other, err = os.Open("/proc/thread-self/ns/mnt")
		return err
	})
	if err != nil {
		t.Skip(err)
	}
	defer other.Close()
	own, err := os.Readlink("/proc/self/ns/mnt")
	if err != nil {
		t.Fatal(err)
	}
	var st unix.Stat_t
	if err := unix.Fstat(int(other.Fd()), &st); err != nil {
		t.Fatal(err)
	}
	wd, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	for want, mounts := range map[string]*os.File{own: nil, fmt.Sprintf("mnt:[%d]", st.Ino): other} {
		dir, uri := loggerURI(t, "binary", "where")
		l, err := startLogger(namespaces.WithNamespace(context.Background(), "test"), stdioPaths{ID: cid, Stdout: uri, Mounts: mounts})
		if err != nil {
			t.Fatal(err)
		}
		l.serving.Store(false)
		closeFiles(l.streams[:])
		l.dismiss(loggerGrace)
		wantFile(t, dir, "where", want+" "+wd)
	}
}

func TestFileOutput(t *testing.T) {
	name := filepath.Join(t.TempDir(), "new", "folder", "log")
	for i := range 2 {
		w := newWorld(t, "", "sh", "-c", "echo out; echo err >&2")
		r := &taskapi.CreateTaskRequest{
			ID: cid, Bundle: w.bundle, Rootfs: w.rootfs, Options: w.options(), Stdout: "file://" + name, Stderr: "file://" + name,
		}
		if _, err := w.Create(w.ctx, r); err != nil {
			t.Fatal(err)
		}
		w.start("")
		w.wait("", 0)
		w.delete("")
		b, err := os.ReadFile(name)
		if err != nil || strings.Count(string(b), "out\n") != i+1 || strings.Count(string(b), "err\n") != i+1 {
			t.Errorf("run %d: %q %v", i, b, err)
		}
	}
}
