package logger

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"golang.org/x/sys/unix"

	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/config"
	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/metrics"
)

// restore gives the process's log back as it was.
func restore(t *testing.T) {
	base := log.L.Logger
	out, form, level := base.Out, base.Formatter, log.GetLevel()
	t.Cleanup(func() {
		base.SetOutput(out)
		base.SetFormatter(form)
		base.SetReportCaller(false)
		log.SetLevel(level)
	})
}

func yes(b bool) *bool { return &b }

func word(s string) *string { return &s }

// Firecracker's form, piece by piece, as its documentation and its source have it.
func TestLines(t *testing.T) {
	const stamp = `\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9} `
	tests := []struct {
		name string
		c    config.Logger
		log  func()
		want string // a pattern for all that is written
	}{
		{"plain", config.Logger{}, func() { log.L.Info("hello") }, stamp + `\[vm-1:main\] hello\n`},
		{"level", config.Logger{ShowLevel: yes(true)}, func() { log.L.Warn("hello") }, stamp + `\[vm-1:main:WARN\] hello\n`},
		{"origin", config.Logger{ShowLogOrigin: yes(true)}, func() { log.L.Error("hello") }, stamp + `\[vm-1:main:pkg/vmm/logger/logger_test\.go:\d+\] hello\n`},
		{"both", config.Logger{ShowLevel: yes(true), ShowLogOrigin: yes(true), Level: "Trace"}, func() { log.L.Trace("hello") },
			stamp + `\[vm-1:main:TRACE:pkg/vmm/logger/logger_test\.go:\d+\] hello\n`},
		{"thread", config.Logger{}, func() { log.L.WithField(ThreadField, "fc_api").Info("hello") }, stamp + `\[vm-1:fc_api\] hello\n`},
		{"fields", config.Logger{}, func() {
			log.L.WithError(errors.New("no such thing")).WithFields(log.Fields{"a": 1, "b": ""}).Info("hello")
		}, stamp + `\[vm-1:main\] hello a=1 b="" error="no such thing"\n`},
		{"one line", config.Logger{}, func() { log.L.WithField("k", "x\ny").Info("a\nb\x1b[1m") }, stamp + `\[vm-1:main\] a\\nb\\x1b\[1m k="x\\ny"\n`},
		{"too low", config.Logger{}, func() { log.L.Debug("hello") }, ``},
		{"warning", config.Logger{Level: "WARNING"}, func() { log.L.Info("no"); log.L.Warn("yes") }, stamp + `\[vm-1:main\] yes\n`},
		{"off", config.Logger{Level: "off"}, func() { log.L.Error("hello") }, ``},
		{"module", config.Logger{Module: word("vmm::log")}, func() { log.L.Info("hello") }, stamp + `\[vm-1:main\] hello\n`},
		{"other module", config.Logger{Module: word("vmm/api")}, func() { log.L.Info("hello") }, ``},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			restore(t)
			var out bytes.Buffer
			if err := New("vm-1", &out, new(metrics.Counter)).Configure(tt.c); err != nil {
				t.Fatal(err)
			}
			tt.log()
			if !regexp.MustCompile("^" + tt.want + "$").MatchString(out.String()) {
				t.Errorf("got %q, want %q", out.String(), tt.want)
			}
		})
	}
}

func TestVCPUThread(t *testing.T) {
	restore(t)
	var out bytes.Buffer
	if err := New("vm-1", &out, new(metrics.Counter)).Configure(config.Logger{}); err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // and not unlocked: the thread ends
		if err := os.WriteFile("/proc/thread-self/comm", []byte("fc_vcpu 3"), 0); err != nil {
			t.Error(err)
		}
		log.L.Info("hello")
	}()
	<-done
	if !strings.Contains(out.String(), "[vm-1:fc_vcpu 3] hello") {
		t.Errorf("got %q", out.String())
	}
}

func TestModulePath(t *testing.T) {
	const module = "github.com/fcshim/containerd-shim-fc-v2/"
	for _, tt := range []struct{ function, file, module, origin string }{
		{module + "pkg/vmm/virtio/mmio.(*Transport).warn", "/src/pkg/vmm/virtio/mmio/mmio.go", "vmm/virtio/mmio", "pkg/vmm/virtio/mmio/mmio.go:7"},
		{module + "pkg/vmm.(*Machine).end.func1", module + "pkg/vmm/lifecycle.go", "vmm", "pkg/vmm/lifecycle.go:7"},
		{"main.serve", module + "cmd/fc-vmm/run.go", "fc-vmm", "cmd/fc-vmm/run.go:7"},
		{"main.serve", "/home/me/src/cmd/fc-vmm/run.go", "fc-vmm", "cmd/fc-vmm/run.go:7"},
		{"example.org/other.F", "/src/other/f.go", "example.org/other", "example.org/other/f.go:7"},
	} {
		f := &runtime.Frame{Function: tt.function, File: tt.file, Line: 7}
		if m, o := modulePath(f), originOf(f); m != tt.module || o != tt.origin {
			t.Errorf("%s: %q, %q", tt.function, m, o)
		}
	}
	if modulePath(nil) != "" || originOf(nil) != "?:?" || within("", "vmm") {
		t.Error("a line from nowhere")
	}
}

// What a second configuration leaves out stays, but for the level, which goes back to Info; a wrong one changes nothing.
func TestConfiguredAgain(t *testing.T) {
	restore(t)
	dir := t.TempDir()
	first, second := filepath.Join(dir, "first"), filepath.Join(dir, "second")
	l := New("vm-1", &bytes.Buffer{}, new(metrics.Counter))
	steps := []struct {
		c   config.Logger
		bad bool
	}{
		{c: config.Logger{LogPath: first, Level: "Debug", ShowLevel: yes(true)}},
		{c: config.Logger{LogPath: dir + "/none/log"}, bad: true},
		{c: config.Logger{LogPath: second, Level: "Loud"}, bad: true},
		{c: config.Logger{LogPath: dir}, bad: true},
		{c: config.Logger{}},
		{c: config.Logger{LogPath: second, ShowLevel: yes(false)}},
	}
	for _, s := range steps {
		if err := l.Configure(s.c); (err != nil) != s.bad || s.bad && !errdefs.IsInvalidArgument(err) {
			t.Errorf("%+v: %v", s.c, err)
		}
		log.L.Debug("low")
		log.L.Info("high")
	}
	if err := l.Close(); err != nil {
		t.Error(err)
	}
	log.L.Info("late")
	count := func(path, what string) int {
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		return strings.Count(string(text), what)
	}
	for what, want := range map[string]int{"DEBUG] low": 4, "INFO] high": 5, "late": 0} {
		if n := count(first, what); n != want {
			t.Errorf("%d of %q, want %d", n, what, want)
		}
	}
	if n := count(second, "[vm-1:main] high"); n != 1 {
		t.Errorf("%d lines in the second file, want 1", n)
	}
}

// A pipe that nobody reads, or no longer, holds nobody up; what it had no room for is counted.
func TestNobodyReads(t *testing.T) {
	restore(t)
	path := filepath.Join(t.TempDir(), "fifo")
	if err := unix.Mkfifo(path, 0o600); err != nil {
		t.Fatal(err)
	}
	var missed metrics.Counter
	l := New("vm-1", &bytes.Buffer{}, &missed)
	if err := l.Configure(config.Logger{LogPath: path}); err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	const lines = 2000
	line := strings.Repeat("x", 500)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for range lines {
			log.L.Info(line)
		}
	}()
	select {
	case <-done:
	case <-time.After(time.Minute):
		t.Fatal("a full pipe holds the log up")
	}
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	var got []byte
	for buf := make([]byte, 64<<10); ; {
		n, err := unix.Read(fd, buf)
		if n <= 0 || err != nil {
			break
		}
		got = append(got, buf[:n]...)
	}
	n := strings.Count(string(got), line+"\n")
	if n == 0 || missed.Count() != uint64(lines-n) {
		t.Errorf("%d lines came, %d were missed, of %d", n, missed.Count(), lines)
	}
	log.L.Info("read again")
	buf := make([]byte, 1000)
	if n, err := unix.Read(fd, buf); err != nil || !strings.HasSuffix(string(buf[:n]), "read again\n") {
		t.Errorf("%q, %v", buf[:max(n, 0)], err)
	}
}
