package integration

import (
	"context"
	"fmt"
	"io"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/containerd/containerd/api/events"
	"github.com/containerd/containerd/api/services/tasks/v1"
	"github.com/containerd/containerd/api/types/task"
	"github.com/containerd/containerd/v2/pkg/oci"
	"github.com/containerd/typeurl/v2"

	"github.com/fcshim/containerd-shim-fc-v2/integration/harness"
)

// await polls for a condition that nothing tells of.
func await(t *testing.T, what string, done func() bool) {
	t.Helper()
	deadline := time.Now().Add(long)
	for pause := 10 * time.Millisecond; !done(); pause = min(2*pause, 500*time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited %v for %s", long, what)
		}
		time.Sleep(pause)
	}
}

// TestTenAtOnce has ten containers, or as many as FC_CROWD says, running side by side. They start two by two: an emulated machine
// has two CPUs, and a start has a bound.
func TestTenAtOnce(t *testing.T) {
	c := containerd(t)
	const pace = 2
	n := amount(t, envCrowd, 10)
	running := func() int {
		resp, err := c.Client().TaskService().List(c.Context(), &tasks.ListTasksRequest{})
		if err != nil {
			t.Fatal(err)
		}
		count := 0
		for _, p := range resp.Tasks {
			if p.Status == task.Status_RUNNING {
				count++
			}
		}
		return count
	}
	began := time.Now()
	all, inputs := make([]*harness.Background, n), make([]*io.PipeWriter, n)
	for i := range n {
		var r *io.PipeReader
		r, inputs[i] = io.Pipe()
		all[i] = c.Background(t, r, c.RunArgs(t, harness.Run{
			Args: []string{"sh", "-c", `read -r n; echo "I am $n"; exit $((n + 20))`},
		})...)
		if (i+1)%pace == 0 || i+1 == n {
			await(t, fmt.Sprintf("%d containers to run", i+1), func() bool { return running() == i+1 })
		}
	}
	t.Logf("%d containers run after %v", n, time.Since(began).Round(time.Millisecond))
	for i, in := range inputs {
		if _, err := fmt.Fprintln(in, i); err != nil {
			t.Fatal(err)
		}
		in.Close()
	}
	for i, b := range all {
		r := b.Wait(t, long)
		if want := fmt.Sprintf("I am %d\n", i); r.Status != i+20 || r.Stdout != want {
			t.Errorf("container %d: want status %d and %q; got %v", i, i+20, want, r)
		}
	}
	t.Logf("%d containers took %v", n, time.Since(began).Round(time.Millisecond))
}

// TestOutOfMemory has a container that uses more memory than its limit, and one that uses more than its machine has.
func TestOutOfMemory(t *testing.T) {
	c := containerd(t)
	for _, tt := range []struct {
		name   string
		fcOnly bool
		hunger string
		opts   []oci.SpecOpts
	}{
		{"limit", false, "64M", []oci.SpecOpts{oci.WithMemoryLimit(32 << 20)}},
		// Less than the RAM of the machine of 128 MiB, which the kernel would refuse at once, and more than is free of it.
		{"machine", true, "104M", nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if tt.fcOnly {
				fcOnly(t, c)
			}
			ctx, cancel := context.WithCancel(c.Context())
			defer cancel()
			seen, errs := c.Client().Subscribe(ctx, `topic=="/tasks/oom"`)
			// One read into a buffer of that size: a program that grows step by step loses its own code to the page cache's reclaim
			// first, and crawls for minutes before the kernel calls it out of memory.
			task := c.StartTask(t, "", nil, append(tt.opts, oci.WithProcessArgs("dd", "if=/dev/zero", "of=/dev/null", "bs="+tt.hunger, "count=1"))...)
			if code := task.Await(t, long); code != 137 {
				t.Errorf("ended with status %d, want 137; stderr: %s", code, task.Stderr.String())
			}
			for {
				select {
				case e := <-seen:
					v, err := typeurl.UnmarshalAny(e.Event)
					if err != nil {
						t.Fatal(err)
					}
					if oom, ok := v.(*events.TaskOOM); ok && oom.ContainerID == task.ID() {
						return
					}
				case err := <-errs:
					t.Fatal(err)
				case <-time.After(long):
					t.Fatal("no event of a want of memory")
				}
			}
		})
	}
}

func TestVCPUs(t *testing.T) {
	c := containerd(t)
	fcOnly(t, c)
	r := c.Run(t, harness.Run{Config: c.Config(t, harness.Settings{"vcpus": 2}),
		Args: []string{"sh", "-c", "nproc; grep -c ^processor /proc/cpuinfo; cat /sys/devices/system/cpu/online"}})
	if r.Status != 0 || r.Stdout != "2\n2\n0-1\n" {
		t.Errorf("want two CPUs; got %v", r)
	}
}

func TestMemorySize(t *testing.T) {
	c := containerd(t)
	fcOnly(t, c)
	for _, mib := range []int{128, 5 << 10} {
		t.Run(fmt.Sprintf("%d MiB", mib), func(t *testing.T) {
			r := c.Run(t, harness.Run{Config: c.Config(t, harness.Settings{"memory_mib": mib}),
				Args: []string{"awk", "/^MemTotal:/ {print $2}", "/proc/meminfo"}})
			kib, err := strconv.Atoi(strings.TrimSpace(r.Stdout))
			if r.Status != 0 || err != nil {
				t.Fatal(r)
			}
			// The kernel keeps its own text, data and page structures back: some 20 MiB and 1/64.
			most, least := mib<<10, (mib-mib/40-32)<<10
			if kib > most || kib < least {
				t.Errorf("MemTotal is %d KiB, want %d to %d", kib, least, most)
			}
		})
	}
}
