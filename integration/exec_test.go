package integration

import (
	"bytes"
	"context"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/pkg/oci"

	"github.com/fcshim/containerd-shim-fc-v2/integration/harness"
)

// long bounds a wait for what takes no time worth mentioning but on an emulated CPU.
var long = harness.Slow(60 * time.Second)

// idle is a command that does nothing until TERM ends it with status 7.
var idle = oci.WithProcessArgs("sh", "-c", "trap 'exit 7' TERM; echo ready; while :; do sleep 1000 & wait $!; done")

func start(t *testing.T, c *harness.Containerd, task *harness.Task) {
	t.Helper()
	ctx, cancel := context.WithTimeout(c.Context(), long)
	defer cancel()
	if err := task.Start(ctx); err != nil {
		t.Fatalf("start: %v", err)
	}
}

// startIdle starts a container that waits for TERM, and waits until it does.
func startIdle(t *testing.T, c *harness.Containerd, config string, opts ...oci.SpecOpts) *harness.Task {
	t.Helper()
	task := c.StartTask(t, config, nil, append([]oci.SpecOpts{idle}, opts...)...)
	task.Stdout.Await(t, "ready\n", long)
	return task
}

func kill(t *testing.T, c *harness.Containerd, task *harness.Task, signal syscall.Signal, opts ...client.KillOpts) {
	t.Helper()
	ctx, cancel := context.WithTimeout(c.Context(), long)
	defer cancel()
	if err := task.Kill(ctx, signal, opts...); err != nil {
		t.Fatalf("kill by %v: %v", signal, err)
	}
}

func TestExec(t *testing.T) {
	c := containerd(t)
	task := startIdle(t, c, "")
	id := task.ID()
	data := noise()
	for _, tt := range []struct {
		name   string
		flags  []string
		args   []string
		stdin  []byte
		stdout string
		status int
	}{
		{name: "status 0", args: []string{"echo", "hello"}, stdout: "hello\n"},
		{name: "status 5", args: []string{"sh", "-c", "echo five; exit 5"}, stdout: "five\n", status: 5},
		{name: "killed", args: []string{"sh", "-c", "kill -9 $$"}, status: 137},
		{name: "cwd", flags: []string{"--cwd", "/tmp"}, args: []string{"pwd"}, stdout: "/tmp\n"},
		{name: "user", flags: []string{"--user", "1000:2000"}, args: []string{"sh", "-c", "id -u; id -g"}, stdout: "1000\n2000\n"},
		{name: "sees the container", args: []string{"sh", "-c", "tr '\\0' ' ' </proc/1/cmdline | cut -c 1-5"}, stdout: "sh -c\n"},
		{name: "stdin", args: []string{"sha256sum"}, stdin: data, stdout: sum(data) + "  -\n"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			args := append(append([]string{"task", "exec", "--exec-id", c.ID(t)}, tt.flags...), id)
			r := c.CtrIn(t, bytes.NewReader(tt.stdin), append(args, tt.args...)...)
			if r.Status != tt.status || r.Stdout != tt.stdout {
				t.Errorf("want status %d and %q; got %v", tt.status, clip(tt.stdout), r)
			}
		})
	}
	t.Run("no such command", func(t *testing.T) {
		r := c.Ctr(t, "task", "exec", "--exec-id", c.ID(t), id, "/no/such/command")
		if r.Status == 0 || !strings.Contains(r.Stderr, "/no/such/command") {
			t.Errorf("want an error that names the command; got %v", r)
		}
	})
	t.Run("terminal", func(t *testing.T) {
		term := c.Terminal(t, 90, 20, "task", "exec", "--tty", "--exec-id", c.ID(t), id, "sh")
		awaitSize(t, term, "20 90")
		term.Resize(t, 70, 10)
		awaitSize(t, term, "10 70")
		term.Type(t, "exit 9\n")
		if status := term.Wait(t); status != 9 {
			t.Errorf("exit status %d, want 9", status)
		}
	})
	kill(t, c, task, syscall.SIGTERM)
	if code := task.Await(t, long); code != 7 {
		t.Errorf("the container ended with status %d, want 7: the ends of its execs are none of its own", code)
	}
}

func clip(s string) string {
	if len(s) > 200 {
		return s[:200] + "…"
	}
	return s
}

// TestExecEndsWithContainer has an exec that would live on when the container's init process ends.
func TestExecEndsWithContainer(t *testing.T) {
	c := containerd(t)
	task := startIdle(t, c, "")
	b := c.Background(t, nil, "task", "exec", "--exec-id", c.ID(t), task.ID(), "sh", "-c", "touch /tmp/execed; sleep 1000")
	c.Must(t, "task", "exec", "--exec-id", c.ID(t), task.ID(), "sh", "-c", "until [ -e /tmp/execed ]; do sleep 0.1; done")
	kill(t, c, task, syscall.SIGTERM)
	if code := task.Await(t, long); code != 7 {
		t.Errorf("the container ended with status %d, want 7", code)
	}
	if r := b.Wait(t, long); r.Status != 137 {
		t.Errorf("the exec ended otherwise than by SIGKILL: %v", r)
	}
}
