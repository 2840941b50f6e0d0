package bench

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/fcshim/containerd-shim-fc-v2/integration/bench/guest/task"
)

const mib = 1 << 20

// unit is how a work's time becomes a figure.
type unit struct {
	name string
	of   func(t task.Task, took time.Duration) float64
}

var (
	mibPerSecond = unit{"MiB/s", func(t task.Task, took time.Duration) float64 { return float64(t.Bytes) / mib / took.Seconds() }}
	opsPerSecond = unit{"op/s", func(t task.Task, took time.Duration) float64 { return float64(t.Count) / took.Seconds() }}
	microseconds = unit{"µs", func(t task.Task, took time.Duration) float64 { return float64(took) / 1e3 / float64(t.Count) }}
)

// operation is a sub-benchmark: a work in a guest.
type operation struct {
	name string
	task task.Task
	unit unit
}

// compare has every peer perform every operation. describe makes the machine for one, but for its task, and, where there is something
// to be looked at afterwards, says how.
func compare(b *testing.B, peers []vmm, ops []operation, describe func(b *testing.B, p vmm, t task.Task) (m machine, check func())) {
	for _, op := range ops {
		b.Run(op.name, func(b *testing.B) {
			for _, p := range peers {
				b.Run(p.name, func(b *testing.B) {
					op.task.Rounds = b.N
					m, check := describe(b, p, op.task)
					m.task = op.task
					v := p.boot(b, m)
					defer v.stop()
					perform(b, v, op)
					if check != nil {
						check()
					}
				})
			}
		})
	}
}

// perform has a machine do an operation b.N times, and reports the median.
func perform(b *testing.B, v *vm, op operation) {
	b.Helper()
	samples := map[string][]float64{}
	for _, took := range v.times(b.N) {
		samples[op.unit.name] = append(samples[op.unit.name], op.unit.of(op.task, took))
	}
	report(b, samples)
}

// BenchmarkBlock is a raw file in memory as a drive. Guests go past their page cache. qd is how many operations are under way.
func BenchmarkBlock(b *testing.B) {
	mayRunVMs(b)
	const size, block, count = 64 * mib, 128 << 10, 4000
	peers := append([]vmm{fcVMM(), fcAsync(), qemu(b, "qemu")}, firecracker()...)
	compare(b, peers, []operation{
		{"read-seq", task.Task{Work: task.BlockRead, Bytes: size, Block: block, Depth: 1}, mibPerSecond},
		{"write-seq", task.Task{Work: task.BlockWrite, Bytes: size, Block: block, Depth: 1}, mibPerSecond},
		{"read-4k-qd1", task.Task{Work: task.BlockRead, Bytes: size, Block: task.Page, Random: true, Count: count, Depth: 1}, opsPerSecond},
		{"write-4k-qd1", task.Task{Work: task.BlockWrite, Bytes: size, Block: task.Page, Random: true, Count: count, Depth: 1}, opsPerSecond},
		{"read-4k-qd32", task.Task{Work: task.BlockRead, Bytes: size, Block: task.Page, Random: true, Count: count, Depth: 32}, opsPerSecond},
		{"write-4k-qd32", task.Task{Work: task.BlockWrite, Bytes: size, Block: task.Page, Random: true, Count: count, Depth: 32}, opsPerSecond},
	}, func(b *testing.B, _ vmm, t task.Task) (machine, func()) {
		drive := dataFile(b, filepath.Join(b.TempDir(), "drive"), size)
		return machine{memMiB: 256, drive: drive}, func() {
			if t.Work == task.BlockWrite {
				checkWritten(b, drive, t)
			}
		}
	})
}

// BenchmarkReaders is random reads by a reader for each CPU of the guest, each with so many under way: what they cost together. It needs a
// machine with a CPU for each of them, and for the VMM, as the one that is waited for must not be another's turn: CPUS=4.
func BenchmarkReaders(b *testing.B) {
	mayRunVMs(b)
	const size = 64 * mib
	for _, cpus := range []int{1, 2, 4} {
		for _, depth := range []int{1, 16} {
			count := 2000
			if depth > 1 {
				count = 8000
			}
			t := task.Task{Work: task.BlockRead, Bytes: size, Block: task.Page, Random: true, Count: count, Depth: depth, Readers: cpus}
			compare(b, []vmm{fcVMM()}, []operation{{fmt.Sprintf("%dcpu-qd%d", cpus, depth), t, opsPerSecond}},
				func(b *testing.B, _ vmm, _ task.Task) (machine, func()) {
					return machine{memMiB: 256, vcpus: cpus, drive: dataFile(b, filepath.Join(b.TempDir(), "drive"), size)}, nil
				})
		}
	}
}

// dataFile makes a file that holds what guests expect to read.
func dataFile(b *testing.B, path string, size int) string {
	b.Helper()
	data := make([]byte, size)
	task.Fill(data)
	task.Mark(data, 0, 0)
	if err := os.WriteFile(path, data, 0o600); err != nil {
		b.Fatal(err)
	}
	return path
}

// checkWritten looks for every block that a guest's last round wrote.
func checkWritten(b *testing.B, path string, t task.Task) {
	b.Helper()
	data, err := os.ReadFile(path)
	if err == nil && len(data) != t.Bytes {
		err = fmt.Errorf("it has %d bytes, want %d", len(data), t.Bytes)
	}
	for i := 0; err == nil && i < t.Operations(); i++ {
		off := t.Offset(i)
		err = task.Check(data[off:off+t.Block], off/task.Page, t.Rounds-1)
	}
	if err != nil {
		b.Fatalf("what the guest wrote to %s: %v", filepath.Base(path), err)
	}
}
