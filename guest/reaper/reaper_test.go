package reaper

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func run(t *testing.T) *Reaper {
	t.Helper()
	r := New()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); r.Run(ctx) }()
	t.Cleanup(func() { cancel(); <-done })
	return r
}

func sh(script string) func() (int, error) {
	return func() (int, error) {
		p, err := os.StartProcess("/bin/sh", []string{"sh", "-c", script}, &os.ProcAttr{Files: []*os.File{nil, nil, os.Stderr}})
		if err != nil {
			return 0, err
		}
		return p.Pid, nil
	}
}

func await(t *testing.T, ch <-chan Exit) Exit {
	t.Helper()
	select {
	case e := <-ch:
		return e
	case <-time.After(10 * time.Second):
		t.Fatal("no exit was reported")
		return Exit{}
	}
}

func TestCodes(t *testing.T) {
	r := run(t)
	for script, want := range map[string]uint32{"exit 0": 0, "exit 7": 7, "exit 255": 255, "kill -9 $$": 137, "kill -15 $$": 143} {
		ch, err := r.Start(sh(script))
		if err != nil {
			t.Fatal(err)
		}
		if got := await(t, ch).Code(); got != want {
			t.Errorf("%s: %d, want %d", script, got, want)
		}
	}
}

func TestFailedStart(t *testing.T) {
	want := errors.New("no")
	if ch, err := run(t).Start(func() (int, error) { return 0, want }); ch != nil || err != want {
		t.Fatalf("%v, %v", ch, err)
	}
}

// TestStartMayWait: a start that waits for a child of its own finds it, though SIGCHLD comes while it is under way, and the
// exit of a child known before is reported at that time none the less.
func TestStartMayWait(t *testing.T) {
	r := run(t)
	before, err := r.Start(sh("sleep 0.1; exit 3"))
	if err != nil {
		t.Fatal(err)
	}
	ch, err := r.Start(func() (int, error) {
		for range 20 {
			if err := exec.Command("/bin/true").Run(); err != nil {
				return 0, fmt.Errorf("a child of the start's own: %w", err)
			}
		}
		if got := await(t, before).Code(); got != 3 {
			t.Errorf("the child before: %d", got)
		}
		pid, err := sh("exit 4")()
		time.Sleep(50 * time.Millisecond) // it ends before it is known
		return pid, err
	})
	if err != nil {
		t.Fatal(err)
	}
	if got := await(t, ch).Code(); got != 4 {
		t.Fatalf("%d", got)
	}
}

// TestOrphans: a grandchild whose parent has gone is reaped.
func TestOrphans(t *testing.T) {
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		t.Fatal(err)
	}
	defer unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)
	r := run(t)
	out, in, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	ch, err := r.Start(func() (int, error) {
		p, err := os.StartProcess("/bin/sh", []string{"sh", "-c", "sleep 0.1 >&2 & echo $!"},
			&os.ProcAttr{Files: []*os.File{nil, in, os.Stderr}})
		if err != nil {
			return 0, err
		}
		return p.Pid, nil
	})
	in.Close()
	if err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	var orphan int
	fmt.Sscan(strings.TrimSpace(line), &orphan)
	await(t, ch)
	for end := time.Now().Add(10 * time.Second); syscall.Kill(orphan, 0) == nil; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("orphan %d is still there", orphan)
		}
	}
}
