package bench

import (
	"fmt"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/pkg/cio"
	"github.com/containerd/containerd/v2/pkg/oci"

	"github.com/fcshim/containerd-shim-fc-v2/integration/harness"
)

// BenchmarkRun is `ctr run --rm … true`: what a user waits for.
func BenchmarkRun(b *testing.B) {
	peers(b, func(b *testing.B, c *harness.Containerd) {
		rounds(b, func() metrics {
			r := c.Run(b, harness.Run{Args: []string{"true"}})
			if r.Status != 0 {
				b.Fatal(r)
			}
			return metrics{"ms": ms(r.Took)}
		})
	})
}

// BenchmarkExec is `ctr task exec … true` in a container that runs.
func BenchmarkExec(b *testing.B) {
	peers(b, func(b *testing.B, c *harness.Containerd) {
		id := c.ID(b)
		c.Must(b, c.RunArgs(b, harness.Run{ID: id, Keep: true, Flags: []string{"-d"}, Args: []string{"sleep", "1000000"}})...)
		defer c.Must(b, "container", "rm", id)
		defer c.Must(b, "task", "rm", "--force", id)
		rounds(b, func() metrics {
			r := c.Ctr(b, "task", "exec", "--exec-id", c.ID(b), id, "true")
			if r.Status != 0 {
				b.Fatal(r)
			}
			return metrics{"ms": ms(r.Took)}
		})
	})
}

// phase is a field of the shim's lines about a pod's start and end: what, and how long it took.
var phase = regexp.MustCompile(` (\w+)="?([0-9.]+(?:ns|µs|ms|s))`)

// phases returns what the shim logged of the last start and end since the offset, in ms.
func phases(b *testing.B, c *harness.Containerd, from int64) metrics {
	b.Helper()
	m := metrics{}
	log := c.LogTail(from)
	for line := range strings.Lines(log) {
		var unit string
		switch {
		case strings.Contains(line, "pod started"):
			unit = "ms-"
		case strings.Contains(line, "pod ended"):
			unit = "ms-end-"
		default:
			continue
		}
		for _, field := range phase.FindAllStringSubmatch(line, -1) {
			d, err := time.ParseDuration(field[2])
			if err != nil {
				b.Fatalf("%s in %q: %v", field[1], line, err)
			}
			m[unit+field[1]] = ms(d)
		}
	}
	if m["ms-total"] == 0 || m["ms-end-total"] == 0 {
		b.Fatalf("the shim did not tell of a start and an end in %s", log)
	}
	return m
}

func ms(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

// BenchmarkStart is a pod's start, phase by phase as the shim logs it, for machines of several sizes.
func BenchmarkStart(b *testing.B) {
	c := containerd(b)
	for _, size := range []struct{ cpus, memory int }{{1, 128}, {2, 128}, {4, 128}, {1, 1024}, {1, 4096}} {
		b.Run(fmt.Sprintf("%dcpu-%dMiB", size.cpus, size.memory), func(b *testing.B) {
			b.Run("fc", func(b *testing.B) {
				config := c.Config(b, harness.Settings{"vcpus": size.cpus, "memory_mib": size.memory})
				rounds(b, func() metrics {
					from := c.LogSize()
					r := c.Run(b, harness.Run{Config: config, Args: []string{"true"}})
					if r.Status != 0 {
						b.Fatal(r)
					}
					m := phases(b, c, from)
					m["ms-run"] = ms(r.Took)
					return m
				})
			})
		})
	}
}

// BenchmarkTask is a container's life as a client of containerd sees it: ms-create (the shim's start, and with fc the VM's),
// ms-start, ms-exit (from the start's answer until the exit of a process that does nothing is known) and ms-delete.
func BenchmarkTask(b *testing.B) {
	peers(b, func(b *testing.B, c *harness.Containerd) {
		ctx := c.Context()
		rounds(b, func() metrics {
			container, err := c.NewContainer(ctx, b, "", oci.WithProcessArgs("true"))
			if err != nil {
				b.Fatal(err)
			}
			m := metrics{}
			began := time.Now()
			lap := func(what string) {
				m["ms-"+what] = ms(time.Since(began))
				began = time.Now()
			}
			task, err := container.NewTask(ctx, cio.NullIO)
			if err != nil {
				b.Fatal(err)
			}
			lap("create")
			exit, err := task.Wait(ctx)
			if err != nil {
				b.Fatal(err)
			}
			began = time.Now()
			if err := task.Start(ctx); err != nil {
				b.Fatal(err)
			}
			lap("start")
			select {
			case s := <-exit:
				if s.ExitCode() != 0 || s.Error() != nil {
					b.Fatalf("status %d, %v", s.ExitCode(), s.Error())
				}
			case <-time.After(time.Minute):
				b.Fatal("no exit within a minute")
			}
			lap("exit")
			if _, err := task.Delete(ctx); err != nil {
				b.Fatal(err)
			}
			lap("delete")
			return m
		})
	})
}
