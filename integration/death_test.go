package integration

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/pkg/oci"
	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/fcshim/containerd-shim-fc-v2/integration/harness"
)

// deathNotice is how soon a task must be reported as exited after what carried it has died.
var deathNotice = harness.Slow(5 * time.Second)

// TestDeaths ends a running container from below, in each possible way, and then clears up by ctr as a user would.
func TestDeaths(t *testing.T) {
	c := containerd(t)
	privileged := []oci.SpecOpts{oci.WithPrivileged}
	inGuest := func(script string) func(*testing.T, *harness.Task) {
		return func(t *testing.T, task *harness.Task) {
			// Its answer may or may not come: the machine under it dies.
			c.Background(t, nil, "task", "exec", "--exec-id", c.ID(t), task.ID(), "sh", "-c", script)
		}
	}
	for _, tt := range []struct {
		name   string
		fcOnly bool
		opts   []oci.SpecOpts
		kill   func(*testing.T, *harness.Task)
	}{
		{name: "vmm killed", kill: func(t *testing.T, task *harness.Task) { c.KillProcess(t, task.ID(), harness.VMM) }},
		{name: "shim killed", kill: func(t *testing.T, task *harness.Task) { c.KillProcess(t, task.ID(), harness.Shim) }},
		{name: "file server killed", fcOnly: true, kill: func(t *testing.T, task *harness.Task) { c.KillProcess(t, task.ID(), harness.Files) }},
		{name: "guest kernel panics", fcOnly: true, opts: privileged, kill: inGuest("echo c >/proc/sysrq-trigger")},
		{name: "guest resets", fcOnly: true, opts: privileged, kill: inGuest("echo b >/proc/sysrq-trigger")},
		{name: "guest powers off", fcOnly: true, opts: privileged, kill: inGuest("echo o >/proc/sysrq-trigger")},
		// QUIT and ABRT end a Go program that does not catch them.
		{name: "agent exits", fcOnly: true, opts: append(privileged, oci.WithHostNamespace(specs.PIDNamespace)),
			kill: inGuest("kill -ABRT 1; sleep 1; kill -QUIT 1")},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if tt.fcOnly {
				fcOnly(t, c)
			}
			task := c.NewTask(t, "", nil, append(tt.opts, idle)...)
			exits := c.ExitEvents(t, task.ID())
			start(t, c, task)
			task.Stdout.Await(t, "ready\n", long)
			began := time.Now()
			tt.kill(t, task)
			select {
			case e := <-exits:
				took := time.Since(began)
				t.Logf("reported as exited with status %d after %v", e.ExitStatus, took.Round(time.Millisecond))
				if took > deathNotice {
					t.Errorf("reported only after %v, more than %v", took, deathNotice)
				}
				if e.ExitStatus == 0 {
					t.Error("reported as exited with status 0, as if all were well")
				}
			case <-time.After(long):
				t.Errorf("not reported as exited after %v", long)
			}
			// A client that waits gets an answer, or the error that the shim has gone.
			select {
			case <-task.Exit:
			case <-time.After(deathNotice):
				t.Error("a client's Wait has no answer")
			}
			clearUp(t, c, task.ID())
		})
	}
}

// clearUp deletes a dead task and its container by ctr.
func clearUp(t *testing.T, c *harness.Containerd, id string) {
	t.Helper()
	// When the shim itself has died, containerd has cleaned up its task already.
	if r := c.Ctr(t, "task", "rm", id); r.Status > 1 || !strings.Contains(r.Stderr, "not found") && strings.Contains(r.Stderr, "ctr:") {
		t.Errorf("ctr task rm: %v", r)
	}
	c.Must(t, "container", "rm", id)
	if out := c.Must(t, "task", "ls", "-q"); strings.Contains(out, id) {
		t.Errorf("the task is still there:\n%s", out)
	}
}

// TestRunSeesDeath has ctr itself wait for a container whose VMM dies: it must end, and --rm must clear up.
func TestRunSeesDeath(t *testing.T) {
	c := containerd(t)
	id := c.ID(t)
	b := c.Background(t, nil, c.RunArgs(t, harness.Run{ID: id, Args: []string{"sleep", "1000"}})...)
	await(t, "the task to run", func() bool { return strings.Contains(c.Must(t, "task", "ls"), "RUNNING") })
	c.KillProcess(t, id, harness.VMM)
	if r := b.Wait(t, long); r.Status == 0 {
		t.Errorf("ctr run ended well although the machine died: %v", r)
	}
}

// TestContainerdDeath kills containerd and starts it again: the container runs on and is reachable.
func TestContainerdDeath(t *testing.T) {
	c := containerd(t)
	task := c.StartTask(t, "", nil, oci.WithProcessArgs("sh", "-c",
		"trap 'exit 7' TERM; i=0; while :; do i=$((i+1)); echo tick $i; sleep 0.2; done"))
	task.Stdout.Await(t, "tick 3\n", long)
	if err := c.Kill(); err != nil {
		t.Fatal(err)
	}
	next := fmt.Sprintf("tick %d\n", strings.Count(task.Stdout.String(), "tick")+5)
	task.Stdout.Await(t, next, long)
	t.Log("output goes on without containerd")
	if err := c.Restart(); err != nil {
		t.Fatal(err)
	}
	if out := c.Must(t, "task", "ls"); !strings.Contains(out, "RUNNING") {
		t.Errorf("the task does not run after containerd's restart:\n%s", out)
	}
	r := c.Ctr(t, "task", "exec", "--exec-id", c.ID(t), task.ID(), "sh", "-c", "echo reached; exit 4")
	if r.Status != 4 || r.Stdout != "reached\n" {
		t.Errorf("exec after containerd's restart: %v", r)
	}
	again := reload(t, c, task.ID())
	exit, err := again.Wait(c.Context())
	if err != nil {
		t.Fatal(err)
	}
	c.Must(t, "task", "kill", "--signal", "SIGTERM", task.ID())
	select {
	case s := <-exit:
		if s.ExitCode() != 7 {
			t.Errorf("ended with status %d, want 7", s.ExitCode())
		}
	case <-time.After(long):
		t.Errorf("no end seen after TERM")
	}
	clearUp(t, c, task.ID())
}

func reload(t *testing.T, c *harness.Containerd, id string) client.Task {
	t.Helper()
	ctx, cancel := context.WithTimeout(c.Context(), long)
	defer cancel()
	container, err := c.Client().LoadContainer(ctx, id)
	if err != nil {
		t.Fatal(err)
	}
	task, err := container.Task(ctx, nil)
	if err != nil {
		t.Fatal(err)
	}
	return task
}

// TestDeathsAtStart kills the shim or the VMM at various moments of a container's start. Whether the container came to run or
// not: nothing may be left.
func TestDeathsAtStart(t *testing.T) {
	c := containerd(t)
	roles := []harness.Role{harness.Shim, harness.VMM}
	if c.FC() {
		roles = append(roles, harness.Files)
	}
	for _, role := range roles {
		for _, after := range []time.Duration{0, 100, 400, 1500} {
			after *= time.Millisecond
			t.Run(fmt.Sprintf("%s after %v", role, after), func(t *testing.T) {
				if role == harness.Shim && !c.FC() {
					t.Skip("runc's shim leaves a cgroup behind if it is killed at a bad moment")
				}
				id := c.ID(t)
				// ctr leaves its FIFOs behind if it finds its task gone.
				b := c.Background(t, nil, c.RunArgs(t, harness.Run{
					ID: id, Keep: true, Flags: []string{"--fifo-dir", t.TempDir()}, Args: []string{"sleep", "1000"}})...)
				await(t, fmt.Sprintf("the %s to exist", role), func() bool {
					_, err := c.FindProcess(id, role)
					return err == nil
				})
				time.Sleep(after)
				pid, err := c.FindProcess(id, role)
				if err != nil {
					t.Fatal(err)
				}
				if err := syscall.Kill(pid, syscall.SIGKILL); err != nil && !errors.Is(err, syscall.ESRCH) {
					t.Fatal(err)
				}
				r := b.Wait(t, long)
				if r.Status == 0 {
					t.Errorf("ctr run ended well: %v", r)
				}
				t.Logf("ctr: status %d: %s", r.Status, strings.TrimSpace(r.Stderr))
				c.Ctr(t, "task", "rm", "--force", id)
				c.Must(t, "container", "rm", id)
			})
		}
	}
}

// TestContainerdDeathAtStart kills containerd at various moments of a container's start. After its restart the container can be
// deleted, in whatever state it is.
func TestContainerdDeathAtStart(t *testing.T) {
	c := containerd(t)
	for _, after := range []time.Duration{0, 300 * time.Millisecond, 1500 * time.Millisecond} {
		t.Run(after.String(), func(t *testing.T) {
			id := c.ID(t)
			b := c.Background(t, nil, c.RunArgs(t, harness.Run{
				ID: id, Keep: true, Flags: []string{"--fifo-dir", t.TempDir()}, Args: []string{"sleep", "1000"}})...)
			await(t, "the shim to exist", func() bool {
				_, err := c.FindProcess(id, harness.Shim)
				return err == nil
			})
			time.Sleep(after)
			if err := c.Kill(); err != nil {
				t.Fatal(err)
			}
			if r := b.Wait(t, long); r.Status == 0 {
				t.Errorf("ctr run ended well: %v", r)
			}
			if err := c.Restart(); err != nil {
				t.Fatal(err)
			}
			t.Logf("after the restart: %s", strings.Join(strings.Fields(c.Must(t, "task", "ls")), " "))
			c.Ctr(t, "task", "rm", "--force", id)
			c.Must(t, "container", "rm", id)
		})
	}
}
