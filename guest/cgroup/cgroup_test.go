package cgroup

import (
	"math"
	"os"
	"path/filepath"
	"testing"
	"time"
)

func write(t *testing.T, dir, name, text string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestStats(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, "cpu.stat", "usage_usec 30\nuser_usec 20\nsystem_usec 10\nnr_periods 3\nnr_throttled 2\nthrottled_usec 1\nnew_key 9\n")
	write(t, dir, "memory.stat", "anon 4096\nfile 8192\nslab 12\npgfault 5\n")
	write(t, dir, "memory.events", "low 0\nhigh 1\nmax 2\noom 3\noom_kill 4\noom_group_kill 5\n")
	write(t, dir, "memory.current", "16384\n")
	write(t, dir, "memory.max", "max\n")
	write(t, dir, "pids.current", "2\n")
	write(t, dir, "pids.max", "100\n")
	write(t, dir, "io.stat", "254:0 rbytes=4096 wbytes=512 rios=1 wios=2 dbytes=0 dios=0\n7:0\n")
	write(t, dir, "cpu.pressure", "some avg10=1.50 avg60=0.25 avg300=0.00 total=77\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=7\n")
	write(t, dir, "memory.pressure", "some avg10=0.00 avg60=0.00 avg300=0.00 total=5\n")
	m, err := Stats(dir)
	if err != nil {
		t.Fatal(err)
	}
	for name, v := range map[string][2]uint64{
		"cpu usage": {m.CPU.UsageUsec, 30}, "throttled": {m.CPU.ThrottledUsec, 1}, "anon": {m.Memory.Anon, 4096},
		"pgfault": {m.Memory.Pgfault, 5}, "usage": {m.Memory.Usage, 16384}, "limit": {m.Memory.UsageLimit, math.MaxUint64},
		"oom kill": {m.MemoryEvents.OomKill, 4}, "group kill": {m.MemoryEvents.OomGroupKill, 5}, "pids": {m.Pids.Current, 2},
		"pids limit": {m.Pids.Limit, 100}, "io entries": {uint64(len(m.Io.Usage)), 1}, "io major": {m.Io.Usage[0].Major, 254},
		"cpu pressure": {m.CPU.PSI.Some.Total, 77}, "cpu pressure, full": {m.CPU.PSI.Full.Total, 7},
		"cpu pressure, average": {uint64(4 * m.CPU.PSI.Some.Avg60), 1}, "memory pressure": {m.Memory.PSI.Some.Total, 5},
		"io wbytes": {m.Io.Usage[0].Wbytes, 512}, "swap, not offered": {m.Memory.SwapUsage, 0},
	} {
		if v[0] != v[1] {
			t.Errorf("%s: %d, want %d", name, v[0], v[1])
		}
	}
}

func TestStatsErrors(t *testing.T) {
	if _, err := Stats(filepath.Join(t.TempDir(), "gone")); err == nil {
		t.Error("no cgroup, no error")
	}
	for name, text := range map[string]string{
		"memory.max": "many\n", "cpu.stat": "usage_usec -1\n", "io.stat": "x rbytes=1\n", "io.pressure": "some avg10=much\n",
	} {
		dir := t.TempDir()
		write(t, dir, name, text)
		if _, err := Stats(dir); err == nil {
			t.Errorf("%s holds %q, no error", name, text)
		}
	}
}

func TestWatcher(t *testing.T) {
	w, err := NewWatcher()
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- w.Run() }()
	dir := t.TempDir()
	if _, err := w.Add(dir, nil); err == nil {
		t.Error("no memory.events, no error")
	}
	write(t, dir, "memory.events", "oom_kill 0\n")
	told := make(chan struct{}, 10)
	remove, err := w.Add(dir, func() { told <- struct{}{} })
	if err != nil {
		t.Fatal(err)
	}
	expect := func(want int) {
		t.Helper()
		for range want {
			select {
			case <-told:
			case <-time.After(5 * time.Second):
				t.Fatal("not told")
			}
		}
		select {
		case <-told:
			t.Fatal("told too often")
		case <-time.After(50 * time.Millisecond):
		}
	}
	write(t, dir, "memory.events", "max 3\noom_kill 0\n")
	expect(0)
	write(t, dir, "memory.events", "max 3\noom_kill 1\n")
	expect(1)
	write(t, dir, "memory.events", "max 4\noom_kill 1\n")
	expect(0)
	if OOMKills(dir) != 1 {
		t.Error("the count is wrong")
	}
	remove()
	write(t, dir, "memory.events", "oom_kill 7\n")
	expect(0)
	w.Close()
	if err := <-done; err == nil {
		t.Error("Run ended without an error")
	}
}
