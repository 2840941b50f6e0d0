package bench

import (
	"os"
	"strconv"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/pkg/cio"
	"github.com/containerd/containerd/v2/pkg/oci"

	"github.com/fcshim/containerd-shim-fc-v2/integration/harness"
)

// envExecs is how many execs BenchmarkExecs does; a multiple of 10.
const envExecs = "FC_BENCH_EXECS"

// BenchmarkExecs is many execs in one pod, by containerd's client: the last tenth must not cost more than the second (the first
// warms up), nor must memory grow between them.
func BenchmarkExecs(b *testing.B) {
	n := 1000
	if v := os.Getenv(envExecs); v != "" {
		var err error
		if n, err = strconv.Atoi(v); err != nil || n < 30 || n%10 != 0 {
			b.Fatalf("%s is %q: want a multiple of 10, from 30 on", envExecs, v)
		}
	}
	peers(b, func(b *testing.B, c *harness.Containerd) {
		n := n
		if !c.FC() {
			n = min(n, 1000) // what a peer's costs grow to is no promise of ours
		}
		task := c.StartTask(b, "", nil, oci.WithProcessArgs("sleep", "1000000"))
		tenth := n / 10
		times := make([]float64, n)
		var before int64
		for i := range n {
			if i == tenth {
				before = private(b, c, task.ID())
			}
			times[i] = execOnce(b, c, task, "e"+strconv.Itoa(i))
		}
		b.ReportMetric(0, "ns/op")
		b.ReportMetric(median(times[tenth:2*tenth]), "ms-first")
		b.ReportMetric(median(times[n-tenth:]), "ms-last")
		b.ReportMetric(float64(private(b, c, task.ID())-before)/1024, "KiB-growth")
	})
}

// private is what a container's processes on the host take together.
func private(b *testing.B, c *harness.Containerd, id string) (sum int64) {
	for role, u := range c.Usages(b, id) {
		if role != harness.VMM || c.FC() { // with runc that is the container's own process
			sum += u.Private
		}
	}
	return sum
}

func execOnce(b *testing.B, c *harness.Containerd, task *harness.Task, id string) float64 {
	ctx := c.Context()
	spec, err := task.Spec(ctx)
	if err != nil {
		b.Fatal(err)
	}
	process := *spec.Process
	process.Args = []string{"true"}
	began := time.Now()
	p, err := task.Exec(ctx, id, &process, cio.NullIO)
	if err != nil {
		b.Fatal(err)
	}
	exit, err := p.Wait(ctx)
	if err != nil {
		b.Fatal(err)
	}
	if err := p.Start(ctx); err != nil {
		b.Fatal(err)
	}
	var status client.ExitStatus
	select {
	case status = <-exit:
	case <-time.After(time.Minute):
		b.Fatalf("exec %s had not ended after a minute", id)
	}
	if _, err := p.Delete(ctx); err != nil {
		b.Fatal(err)
	}
	if status.ExitCode() != 0 || status.Error() != nil {
		b.Fatalf("exec %s: status %d, %v", id, status.ExitCode(), status.Error())
	}
	return ms(time.Since(began))
}
