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

// With debug = true, the log has one line of a pod's start, the guest's own part of it included, and one of its end; else none.
func TestTimeline(t *testing.T) {
	if lines := logOfPod(t, ""); strings.Contains(lines, "pod ") {
		t.Errorf("nobody asked for a timeline:\n%s", lines)
	}
	text := logOfPod(t, "debug = true\n")
	found := regexp.MustCompile(`(?m)^.*pod (?:started|ended).*$`).FindAllString(text, -1)
	if len(found) != 2 {
		t.Fatalf("%d lines, want 2:\n%s", len(found), text)
	}
	for _, phase := range []string{"vm", "host", "mounts", "total"} {
		if n := strings.Count(found[1], " "+phase+"="); n != 1 {
			t.Errorf("phase %s is there %d times, want once: %s", phase, n, found[1])
		}
	}
	for _, phase := range []string{"check", "host", "spawn", "mounts", "stdio", "start", "boot", "kernel", "agent", "create", "total"} {
		if n := strings.Count(found[0], " "+phase+"="); n != 1 {
			t.Errorf("phase %s is there %d times, want once: %s", phase, n, found[0])
		}
	}
}

// logOfPod is what is logged of a pod's life with more settings.
func logOfPod(t *testing.T, settings string) string {
	w := newWorld(t, "", "true")
	common, err := os.ReadFile(w.settings)
	if err != nil {
		t.Fatal(err)
	}
	w.write(w.settings, string(common)+settings)
	var lines lockedBuffer
	logger := log.L.Logger
	out, formatter, level := logger.Out, logger.Formatter, log.GetLevel()
	logger.SetOutput(&lines)
	logger.SetFormatter(&logrus.TextFormatter{DisableColors: true})
	defer func() {
		logger.SetOutput(out)
		logger.SetFormatter(formatter)
		_ = log.SetLevel(level.String()) // debug = true raises it
	}()
	if err := log.SetLevel("info"); err != nil {
		t.Fatal(err)
	}
	c := w.client(false)
	c.read(0)
	if err := w.create(c); err != nil {
		t.Fatal(err)
	}
	w.start("")
	w.wait("", 0)
	w.delete("")
	return lines.String()
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
