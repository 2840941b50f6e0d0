package bench

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/fcshim/containerd-shim-fc-v2/integration/harness"
)

// shared is the containerd that the benchmarks have in common.
var shared struct {
	once sync.Once
	c    *harness.Containerd
	err  error
}

func TestMain(m *testing.M) {
	flag.Parse()
	leave := func() error { return nil }
	// There are no tests here but for the benchmarks' sake.
	if flag.Lookup("test.bench").Value.String() != "" {
		var err error
		if leave, err = inMemory(); err != nil {
			fmt.Fprintln(os.Stderr, "bench:", err)
			os.Exit(1)
		}
	}
	status := m.Run()
	if shared.c != nil {
		if err := shared.c.Stop(); err != nil {
			fmt.Fprintln(os.Stderr, "stop containerd:", err)
			status = 1
		}
	}
	if err := leave(); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		status = 1
	}
	os.Exit(status)
}

// inMemory moves all that the benchmarks read and write to a tmpfs, which is the machine's scratch folder from then on. In counted
// time an idle CPU's clock jumps to its next timer, so a wait for the host's disk would count as much more than it is. The caller calls
// leave at the end.
func inMemory() (leave func() error, err error) {
	leave = func() error { return nil }
	scratch, bin := os.Getenv(harness.EnvScratch), os.Getenv(harness.EnvBinDir)
	if scratch == "" || bin == "" {
		return leave, nil // not in a test machine: each benchmark says what it lacks
	}
	dir := filepath.Join(scratch, "memory")
	if err := os.Mkdir(dir, 0o711); err != nil {
		return nil, err
	}
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, ""); err != nil {
		return nil, fmt.Errorf("mount a tmpfs on %s: %w", dir, err)
	}
	leave = func() error { return unix.Unmount(dir, unix.MNT_DETACH) }
	err = os.CopyFS(filepath.Join(dir, "bin"), os.DirFS(bin))
	if err == nil {
		err = setenv(harness.EnvScratch, dir, harness.EnvBinDir, filepath.Join(dir, "bin"), "TMPDIR", dir)
	}
	if err != nil {
		return nil, errors.Join(err, leave())
	}
	return leave, nil
}

func setenv(pairs ...string) error {
	for i := 0; i < len(pairs); i += 2 {
		if err := os.Setenv(pairs[i], pairs[i+1]); err != nil {
			return err
		}
	}
	return nil
}

// containerd returns the benchmarks' common containerd.
func containerd(b *testing.B) *harness.Containerd {
	b.Helper()
	env := harness.Need(b)
	shared.once.Do(func() { shared.c, shared.err = harness.Start(env, harness.Options{}) })
	if shared.err != nil {
		b.Fatal(shared.err)
	}
	return shared.c
}

// metrics are figures by unit.
type metrics map[string]float64

// rounds does f b.N times and reports the median of each figure. What a benchmark costs as a whole, ns/op, is left out: it counts
// the tools around what is measured. With -benchtime=5x the testing package has done it once before: that warms up.
func rounds(b *testing.B, f func() metrics) {
	b.Helper()
	samples := map[string][]float64{}
	for range b.N {
		for unit, v := range f() {
			samples[unit] = append(samples[unit], v)
		}
	}
	report(b, samples)
}

func report(b *testing.B, samples map[string][]float64) {
	b.ReportMetric(0, "ns/op") // the testing package prints it in any case, but for 0
	for unit, s := range samples {
		b.ReportMetric(median(s), unit)
	}
}

func median(s []float64) float64 {
	s = slices.Sorted(slices.Values(s))
	n := len(s)
	if n%2 == 1 {
		return s[n/2]
	}
	return (s[n/2-1] + s[n/2]) / 2
}

// peers runs a benchmark for runc and for the project's runtime.
func peers(b *testing.B, f func(b *testing.B, c *harness.Containerd)) {
	c := containerd(b)
	for _, p := range []struct{ name, runtime string }{{"fc", harness.FCRuntime}, {"runc", harness.RuncRuntime}} {
		b.Run(p.name, func(b *testing.B) { f(b, c.As(p.runtime)) })
	}
}
