package integration

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/containerd/api/services/tasks/v1"
	tasktypes "github.com/containerd/containerd/api/types/task"
	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/pkg/cio"

	"github.com/fcshim/containerd-shim-fc-v2/integration/harness"
)

// daemon is containerd itself, which has no part in one container only.
const daemon harness.Role = "containerd"

// live takes a container's task from its creation through start, exec and kill to its deletion; it ends with the first step
// that fails.
func live(ctx context.Context, t *testing.T, container client.Container, fifos string) error {
	task, err := container.NewTask(ctx, cio.NewCreator(cio.WithFIFODir(fifos), cio.WithStreams(nil, &harness.Buffer{}, &harness.Buffer{})))
	if err != nil {
		return fmt.Errorf("create: %w", err)
	}
	defer func() {
		task.IO().Cancel()
		_ = task.IO().Close()
	}()
	exit, err := task.Wait(ctx)
	if err != nil {
		return fmt.Errorf("wait: %w", err)
	}
	if err := task.Start(ctx); err != nil {
		return fmt.Errorf("start: %w", err)
	}
	if _, err := execute(ctx, t, task, "e", "true"); err != nil {
		return err
	}
	if err := task.Kill(ctx, syscall.SIGKILL); err != nil {
		return fmt.Errorf("kill: %w", err)
	}
	select {
	case <-exit:
	case <-ctx.Done():
		return fmt.Errorf("wait for the end: %w", ctx.Err())
	}
	if _, err := task.Delete(ctx); err != nil {
		return fmt.Errorf("delete: %w", err)
	}
	return nil
}

// begin starts a life; the channel gets its end.
func begin(t *testing.T, c *harness.Containerd) (id string, ended <-chan error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(c.Context(), 2*long)
	t.Cleanup(cancel)
	container, err := c.NewContainer(ctx, t, "", idle)
	if err != nil {
		t.Fatal(err)
	}
	end, fifos := make(chan error, 1), t.TempDir()
	go func() { end <- live(ctx, t, container, fifos) }()
	return container.ID(), end
}

// lifetime measures how long an undisturbed life lasts.
func lifetime(t *testing.T, c *harness.Containerd) (span time.Duration) {
	t.Helper()
	c.NoLeaks(t)
	for range 2 { // the first one is slower than those that follow
		began := time.Now()
		_, ended := begin(t, c)
		if err := <-ended; err != nil {
			t.Fatal(err)
		}
		span = time.Since(began)
	}
	return span
}

// TestDeathsAtRandomMoments kills each process of a container by SIGKILL at random moments of a life, from before Create has
// answered to during Delete. The seed is told, so that a failure can be repeated, as far as time can.
func TestDeathsAtRandomMoments(t *testing.T) {
	c := containerd(t)
	fcOnly(t, c)
	seed := uint64(amount(t, envSeed, int(time.Now().UnixNano()&0xffffff|1)))
	random := rand.New(rand.NewPCG(seed, 0))
	var span time.Duration
	if !t.Run("undisturbed", func(t *testing.T) { span = lifetime(t, c) }) {
		return
	}
	t.Logf("%s=%d; a life takes %v", envSeed, seed, span.Round(time.Millisecond))
	for _, d := range []struct {
		role  harness.Role
		times int
	}{{harness.VMM, 2}, {harness.Files, 1}, {harness.Holder, 2}, {harness.Shim, 1}, {daemon, 1}} {
		for i := range amount(t, envDeaths, d.times) {
			t.Run(fmt.Sprintf("%s %d", d.role, i), func(t *testing.T) {
				c.NoLeaks(t)
				// A life may be shorter than the measured one, and end undisturbed; then another one is tried, of which less passes.
				const tries = 10
				most := span
				for range tries {
					most = time.Duration(random.Int64N(int64(most) + 1))
					if dieAfter(t, c, d.role, most) || t.Failed() {
						return
					}
				}
				t.Errorf("each of %d lives ended before the %s was killed, the last one within %v", tries, d.role, most)
			})
		}
	}
}

// dieAfter kills the process that plays role some time after it has come to be, which containerd's does when a life begins. It
// reports whether the process was still there, and the life had not ended.
func dieAfter(t *testing.T, c *harness.Containerd, role harness.Role, after time.Duration) (died bool) {
	t.Helper()
	id, ended := begin(t, c)
	if role != daemon {
		await(t, fmt.Sprintf("the %s to exist", role), func() bool {
			_, err := c.Find(id, role)
			return err == nil || len(ended) > 0
		})
	}
	time.Sleep(after)
	switch pid, err := c.Find(id, role); {
	case len(ended) > 0: // too late
	case role == daemon:
		died = true
		if err := c.Kill(); err != nil {
			t.Fatal(err)
		}
	case err == nil:
		err := syscall.Kill(pid, syscall.SIGKILL)
		if err != nil && !errors.Is(err, syscall.ESRCH) {
			t.Fatal(err)
		}
		died = err == nil
	}
	select {
	case err := <-ended:
		t.Logf("the %s died after %v: %t; the life ended with: %v", role, after.Round(time.Millisecond), died, err)
	case <-time.After(long):
		t.Fatalf("the %s died after %v; the client's calls have no answer %v later", role, after, long)
	}
	if role == daemon && died {
		if err := c.Restart(); err != nil {
			t.Fatal(err)
		}
	}
	// With containerd's death alone, the task may be in any state, and must then be usable or end.
	deadline := time.Now().Add(deathNotice)
	for {
		status := statusOf(t, c, id)
		if status == tasktypes.Status_UNKNOWN || status == tasktypes.Status_STOPPED || role == daemon && status == tasktypes.Status_CREATED {
			break
		}
		if role == daemon {
			if r := c.Ctr(t, "task", "exec", "--exec-id", "again", id, "true"); r.Status == 0 {
				break
			}
		}
		if time.Now().After(deadline) {
			t.Errorf("%v after the %s's death the task is %v", deathNotice, role, status)
			break
		}
		time.Sleep(100 * time.Millisecond)
	}
	c.Ctr(t, "task", "rm", "--force", id)
	if status := statusOf(t, c, id); status != tasktypes.Status_UNKNOWN {
		t.Errorf("the task is still there after ctr task rm --force: %v", status)
	}
	if r := c.Ctr(t, "container", "rm", id); r.Status != 0 && !strings.Contains(r.Stderr, "not found") {
		t.Errorf("ctr container rm: %v", r)
	}
	return died
}

// statusOf is what containerd lists of a task; unknown if it has none.
func statusOf(t *testing.T, c *harness.Containerd, id string) tasktypes.Status {
	t.Helper()
	ctx, cancel := context.WithTimeout(c.Context(), long)
	defer cancel()
	resp, err := c.Client().TaskService().List(ctx, &tasks.ListTasksRequest{})
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range resp.Tasks {
		if p.ID == id {
			return p.Status
		}
	}
	return tasktypes.Status_UNKNOWN
}
