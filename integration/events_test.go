package integration

import (
	"context"
	"errors"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/containerd/api/events"
	"github.com/containerd/typeurl/v2"

	"github.com/fcshim/containerd-shim-fc-v2/integration/harness"
)

// TestEvents follows a container's life, with an exec, by the events that containerd's subscribers get, and their order.
func TestEvents(t *testing.T) {
	eachRuntime(t, containerd(t), func(t *testing.T, c *harness.Containerd) {
		want := []string{"create", "start", "exec added: e", "exec started: e", "exit: e", "exit"}
		if c.FC() { // runc's shim may end before it has told of the deletion
			want = append(want, "delete")
		}
		ctx, cancel := context.WithTimeout(c.Context(), 3*long)
		defer cancel()
		seen, errs := c.Client().Subscribe(ctx, `topic~="^/tasks/"`)
		task := startIdle(t, c, "")
		if _, err := execute(ctx, t, task, "e", "true"); err != nil {
			t.Fatal(err)
		}
		kill(t, c, task, syscall.SIGTERM)
		task.Await(t, long)
		c.Delete(t, task)
		var got []string
		for len(got) < len(want) {
			select {
			case e := <-seen:
				v, err := typeurl.UnmarshalAny(e.Event)
				if err != nil {
					t.Fatal(err)
				}
				if of, what := told(v); of == task.ID() {
					got = append(got, strings.TrimSuffix(what, ": "+of))
				}
			case err := <-errs:
				t.Fatal(err)
			case <-time.After(long):
				t.Fatalf("no event after %q, want %q", got, want)
			}
		}
		if !slices.Equal(got, want) {
			t.Errorf("the events are %q, want %q", got, want)
		}
	})
}

// told says of which container an event tells, and what.
func told(event any) (id, what string) {
	switch e := event.(type) {
	case *events.TaskCreate:
		return e.ContainerID, "create"
	case *events.TaskStart:
		return e.ContainerID, "start"
	case *events.TaskExecAdded:
		return e.ContainerID, "exec added: " + e.ExecID
	case *events.TaskExecStarted:
		return e.ContainerID, "exec started: " + e.ExecID
	case *events.TaskExit:
		return e.ContainerID, "exit: " + e.ID
	case *events.TaskDelete:
		return e.ContainerID, "delete"
	}
	return "", ""
}

// TestShimLog looks for the shim's lines in containerd's log, which is on the level "debug": of a pod's start and end, and nothing of concern.
func TestShimLog(t *testing.T) {
	c := containerd(t)
	fcOnly(t, c)
	from, id := c.LogSize(), c.ID(t)
	if r := c.Run(t, harness.Run{ID: id, Args: []string{"true"}}); r.Status != 0 {
		t.Fatal(r)
	}
	await(t, "the shim's end", func() bool {
		_, err := c.FindProcess(id, harness.Shim)
		return errors.Is(err, harness.ErrNoProcess)
	})
	var lines []string
	await(t, "the shim's last line in containerd's log", func() bool {
		lines = slices.DeleteFunc(strings.Split(c.LogTail(from), "\n"), func(l string) bool { return !strings.Contains(l, "runtime=io.containerd.fc.v2") })
		return len(lines) > 0 && strings.Contains(strings.Join(lines, "\n"), "pod ended")
	})
	for _, line := range lines {
		// containerd takes what the shim's `delete` says at the level debug for warnings.
		if strings.Contains(line, "cleaning up dead shim") {
			continue
		}
		if strings.Contains(line, "level=warning") || strings.Contains(line, "level=error") {
			t.Error("in a pod's ordinary life: ", line)
		}
	}
	if !strings.Contains(strings.Join(lines, "\n"), "pod started") {
		t.Errorf("no line about the start:\n%s", strings.Join(lines, "\n"))
	}
}
