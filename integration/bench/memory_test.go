package bench

import (
	"fmt"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/pkg/oci"

	"github.com/fcshim/containerd-shim-fc-v2/integration/harness"
)

// idle is how long pods are left alone before they are weighed: what the start needed is given back meanwhile.
const idle = 10 * time.Second

// crowd is pods that do nothing, more and more of them.
type crowd struct {
	c     *harness.Containerd
	ids   []string
	start []float64 // of each pod, in ms
}

// grow starts pods until there are n; they end with b.
func (p *crowd) grow(b *testing.B, n int) {
	for len(p.ids) < n {
		began := time.Now()
		task := p.c.StartTask(b, p.config(b), nil, oci.WithProcessArgs("sleep", "1000000"))
		p.start = append(p.start, ms(time.Since(began)))
		p.ids = append(p.ids, task.ID())
	}
}

func (p *crowd) config(b *testing.B) string {
	if !p.c.FC() {
		return ""
	}
	return p.c.Config(b, harness.Settings{"vcpus": 1, "memory_mib": 128})
}

// weigh returns what a pod takes, in the mean of all, and how long the latest starts took.
func (p *crowd) weigh(b *testing.B) metrics {
	time.Sleep(idle)
	m := metrics{"ms-start": median(p.start[max(0, len(p.start)-10):])}
	kib := func(bytes int64) float64 { return float64(bytes) / 1024 / float64(len(p.ids)) }
	for _, id := range p.ids {
		for role, u := range p.c.Usages(b, id) {
			m["KiB-"+string(role)] += kib(u.Private)
			m["KiB-private"] += kib(u.Private)
			m["KiB-shared"] += kib(u.Shared)
			if role == harness.VMM && p.c.FC() { // the file server has the same RAM
				m["KiB-guest"] += kib(u.GuestRAM)
			}
			m["threads"] += float64(u.Threads) / float64(len(p.ids))
		}
	}
	return m
}

// BenchmarkPods is what pods that do nothing take, and how the start's time grows with their number: private memory of shim, fc-vmm,
// file server and holder without the guest's RAM (with runc, of the shim), what they share (programs), and how much of the guest's RAM, 128 MiB,
// is in use.
func BenchmarkPods(b *testing.B) {
	for _, n := range []int{1, 10, 50} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			peers(b, func(b *testing.B, c *harness.Containerd) {
				p := crowd{c: c}
				// One pod is weighed beside another one: it shares programs like one of many.
				p.grow(b, max(n, 2))
				b.ReportMetric(0, "ns/op")
				for unit, v := range p.weigh(b) {
					b.ReportMetric(v, unit)
				}
			})
		})
	}
}
