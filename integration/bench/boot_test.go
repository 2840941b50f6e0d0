package bench

import (
	"testing"

	"github.com/fcshim/containerd-shim-fc-v2/integration/bench/guest/task"
	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/config"
)

// BenchmarkBoot is the start of a machine with 128 MiB and no console, until its init runs: ms from the moment that it is told to,
// which QEMU is by its exec, ms-exec from the VMM's exec, ms-api from there to the API's first answer.
func BenchmarkBoot(b *testing.B) {
	mayRunVMs(b)
	for _, p := range append([]vmm{fcVMM(), qemu(b, "qemu")}, firecracker()...) {
		b.Run(p.name, func(b *testing.B) {
			image(b)
			rounds(b, func() metrics {
				v := p.boot(b, machine{memMiB: 128, task: task.Task{Work: task.Boot}})
				defer v.stop()
				m := metrics{"ms": ms(v.booted.Sub(v.started))}
				if v.started != v.began {
					m["ms-exec"], m["ms-api"] = ms(v.booted.Sub(v.began)), ms(v.answered.Sub(v.began))
				}
				return m
			})
		})
	}
}

// BenchmarkBootBalloon is what a balloon adds to BenchmarkBoot: by itself, and one that reports free pages, as a container's does.
func BenchmarkBootBalloon(b *testing.B) {
	mayRunVMs(b)
	for _, c := range []struct {
		name    string
		balloon *config.Balloon
	}{
		{"plain", &config.Balloon{}},
		{"reporting", &config.Balloon{FreePageReporting: true}},
	} {
		b.Run(c.name+"/fc", func(b *testing.B) {
			image(b)
			rounds(b, func() metrics {
				v := fcVMM().boot(b, machine{memMiB: 128, balloon: c.balloon, task: task.Task{Work: task.Boot}})
				defer v.stop()
				return metrics{"ms": ms(v.booted.Sub(v.started))}
			})
		})
	}
}
