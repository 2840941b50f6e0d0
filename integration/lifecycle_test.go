package integration

import (
	"context"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/pkg/oci"
)

func TestKill(t *testing.T) {
	c := containerd(t)
	for _, tt := range []struct {
		name   string
		signal string
		opts   []oci.SpecOpts
		want   int
	}{
		{"term", "SIGTERM", nil, 7},
		{"kill", "SIGKILL", nil, 137},
		{"user signal", "SIGUSR1", []oci.SpecOpts{oci.WithProcessArgs("sh", "-c",
			"trap 'exit 12' USR1; echo ready; while :; do sleep 1000 & wait $!; done")}, 12},
	} {
		t.Run(tt.name, func(t *testing.T) {
			task := startIdle(t, c, "", tt.opts...)
			began := time.Now()
			c.Must(t, "task", "kill", "--signal", tt.signal, task.ID())
			if code := task.Await(t, long); code != uint32(tt.want) {
				t.Errorf("ended with status %d, want %d", code, tt.want)
			}
			t.Logf("ended after %v", time.Since(began).Round(time.Millisecond))
			if out := c.Must(t, "task", "ls"); !strings.Contains(out, "STOPPED") {
				t.Errorf("ctr task ls does not show the task as stopped:\n%s", out)
			}
			c.Must(t, "task", "rm", task.ID())
		})
	}
}

func TestPauseAndResume(t *testing.T) {
	c := containerd(t)
	task := c.StartTask(t, "", nil, oci.WithProcessArgs("sh", "-c", "while :; do echo tick; sleep 0.05; done"))
	task.Stdout.Await(t, "tick\n", long)

	c.Must(t, "task", "pause", task.ID())
	if s := taskStatus(t, c.Context(), task); s != client.Paused {
		t.Errorf("status %q after pause", s)
	}
	// What had been written before the pause may still be on its way.
	time.Sleep(time.Second)
	before := len(task.Stdout.String())
	time.Sleep(2 * time.Second)
	if after := len(task.Stdout.String()); after != before {
		t.Errorf("the paused process went on: %d bytes, then %d", before, after)
	}

	c.Must(t, "task", "resume", task.ID())
	if s := taskStatus(t, c.Context(), task); s != client.Running {
		t.Errorf("status %q after resume", s)
	}
	task.Stdout.Await(t, strings.Repeat("tick\n", before/len("tick\n")+2), long)
	kill(t, c, task, syscall.SIGKILL)
	task.Await(t, long)
}

func taskStatus(t *testing.T, ctx context.Context, task interface {
	Status(context.Context) (client.Status, error)
}) client.ProcessStatus {
	t.Helper()
	ctx, cancel := context.WithTimeout(ctx, long)
	defer cancel()
	s, err := task.Status(ctx)
	if err != nil {
		t.Fatal(err)
	}
	return s.Status
}

// TestKillPaused has a task that is to die although it is paused.
func TestKillPaused(t *testing.T) {
	c := containerd(t)
	task := startIdle(t, c, "")
	c.Must(t, "task", "pause", task.ID())
	kill(t, c, task, syscall.SIGKILL)
	if code := task.Await(t, long); code != 137 {
		t.Errorf("ended with status %d, want 137", code)
	}
}

// TestNeverStarted has a task that is created and deleted without having run.
func TestNeverStarted(t *testing.T) {
	c := containerd(t)
	task := c.NewTask(t, "", nil, idle)
	if s := taskStatus(t, c.Context(), task); s != client.Created {
		t.Errorf("status %q after create", s)
	}
	kill(t, c, task, syscall.SIGKILL)
	task.Await(t, long)
}

// TestPids looks at the processes of a container through ctr.
func TestPids(t *testing.T) {
	c := containerd(t)
	task := startIdle(t, c, "")
	out := c.Must(t, "task", "ps", task.ID())
	if lines := strings.Count(strings.TrimSpace(out), "\n"); lines < 1 {
		t.Errorf("ctr task ps shows no process:\n%s", out)
	}
	if out := c.Must(t, "task", "metrics", task.ID()); !strings.Contains(out, "memory.usage") {
		t.Errorf("ctr task metrics shows no memory:\n%s", out)
	}
}
