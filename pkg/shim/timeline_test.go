package shim

import (
	"bytes"
	"math"
	"os"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/log"
	"github.com/sirupsen/logrus"

	"github.com/fcshim/containerd-shim-fc-v2/pkg/timeline"
)

// lockedBuffer is a log that is read while others write to it.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// With debug = true, the log has one line of a pod's start, the guest's own part of it included.
func TestTimeline(t *testing.T) {
	w := newWorld(t, "", "true")
	level := log.GetLevel()
	defer log.SetLevel(level.String()) // debug = true raises it
	settings, err := os.ReadFile(w.settings)
	if err != nil {
		t.Fatal(err)
	}
	w.write(w.settings, string(settings)+"debug = true\n")
	var lines lockedBuffer
	logger := &logrus.Logger{Out: &lines, Formatter: &logrus.TextFormatter{DisableColors: true}, Level: logrus.DebugLevel, Hooks: logrus.LevelHooks{}}
	w.ctx = log.WithLogger(w.ctx, logrus.NewEntry(logger))
	c := w.client(false)
	c.read(0)
	if err := w.create(c); err != nil {
		t.Fatal(err)
	}
	w.start("")
	w.wait("", 0)
	w.delete("")
	text := lines.String()
	found := regexp.MustCompile(`(?m)^.*pod started.*$`).FindAllString(text, -1)
	if len(found) != 1 {
		t.Fatalf("%d lines, want 1:\n%s", len(found), text)
	}
	for _, phase := range []string{"check", "host", "spawn", "configure", "start", "mounts", "stdio", "boot", "kernel", "agent", "create", "total"} {
		if n := strings.Count(found[0], " "+phase+"="); n != 1 {
			t.Errorf("phase %s is there %d times, want once: %s", phase, n, found[0])
		}
	}
}

// The guest's part of its boot is what the guest says, and believed if it can be.
func TestMarkGuest(t *testing.T) {
	now := time.Now()
	tests := []struct {
		name          string
		boot          time.Duration
		setup         uint64
		kernel, agent string
	}{
		{"usual", 100 * time.Millisecond, 40e6, "60ms", "40ms"},
		{"says nothing", 100 * time.Millisecond, 0, "", ""},
		{"all of it", 100 * time.Millisecond, 100e6, "", ""},
		{"more than all of it", 100 * time.Millisecond, 101e6, "", ""},
		{"more than a time can be", 100 * time.Millisecond, math.MaxUint64, "", ""},
		{"no boot", 0, 1, "", ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			tl := timeline.New(now)
			(&vm{started: now, connected: now.Add(tt.boot)}).markGuest(tl, tt.setup)
			f := tl.Fields()
			for name, want := range map[string]string{"kernel": tt.kernel, "agent": tt.agent} {
				if got, _ := f[name].(string); got != want {
					t.Errorf("%s is %q, want %q", name, got, want)
				}
			}
		})
	}
}
