package metrics

import (
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/config"
)

// parse gives a line's values by their names, as in "block_root.read_agg.sum_us".
func parse(t *testing.T, line string) map[string]float64 {
	t.Helper()
	var tree map[string]any
	if err := json.Unmarshal([]byte(line), &tree); err != nil {
		t.Fatalf("%v in %q", err, line)
	}
	values := make(map[string]float64)
	var flatten func(string, any)
	flatten = func(name string, v any) {
		switch v := v.(type) {
		case float64:
			values[strings.TrimPrefix(name, ".")] = v
		case map[string]any:
			for k, v := range v {
				flatten(name+"."+k, v)
			}
		}
	}
	flatten("", tree)
	return values
}

func lines(t *testing.T, path string) []string {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return strings.SplitAfter(strings.TrimSuffix(string(text), "\n"), "\n")
}

// The groups that Firecracker's documentation lists are there whatever the machine has, those of devices by their ids.
func TestLineHasAllGroups(t *testing.T) {
	m := &Machine{
		Blocks:      []Named[Block]{{"root", new(Block)}, {"data", new(Block)}},
		Nets:        []Named[Net]{{"eth0", new(Net)}},
		Filesystems: []Named[Filesystem]{{"shared", new(Filesystem)}},
	}
	base := "api_server balloon block deprecated_api entropy get_api_requests i8042 interrupts latencies_us logger memory_hotplug mmds net " +
		"patch_api_requests pmem put_api_requests seccomp signals uart utc_timestamp_ms vcpu vmm vsock"
	for _, tt := range []struct {
		name, want string
		head       []byte
		m          *Machine
	}{
		{"no machine", base, nil, nil},
		{"machine", base + " block_root block_data net_eth0 fs fs_shared", nil, m},
		{"more", base + " id properties", head("vm-1", map[string]string{"a": "\"<\n"}), nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			l := whole(time.UnixMilli(1739000000000), tt.head, new(Process), tt.m)
			var got map[string]json.RawMessage
			if err := json.Unmarshal(l.text, &got); err != nil {
				t.Fatalf("%v in %s", err, l.text)
			}
			if strings.Count(string(l.text), "\n") != 1 || !strings.HasPrefix(string(l.text), `{"utc_timestamp_ms":1739000000000,"`) {
				t.Errorf("%s", l.text)
			}
			want := strings.Fields(tt.want)
			for _, k := range want {
				if got[k] == nil {
					t.Errorf("%s is missing", k)
				}
			}
			if len(got) != len(want) {
				t.Errorf("%d members, want %d", len(got), len(want))
			}
		})
	}
}

// Every field of every group is a counter, a gauge or a latency, with a name of its own, and is known by its kind.
func TestKinds(t *testing.T) {
	kinds := Kinds()
	served := []Named[VhostUser]{{"x", new(VhostUser)}}
	l := whole(time.Now(), nil, new(Process), &Machine{
		Filesystems: []Named[Filesystem]{{"x", new(Filesystem)}}, VhostUserBlocks: served, VhostUserFilesystems: served,
	})
	n := 0
	for name := range parse(t, string(l.text)) {
		if name == "utc_timestamp_ms" || strings.HasPrefix(name, "fs_x.") {
			continue
		}
		if strings.HasPrefix(name, "vhost_user_") { // of which there are no sums
			name = strings.Replace(name, "_x.", ".", 1)
		}
		n++
		if kinds[name] == 0 {
			t.Errorf("%s has no kind", name)
		}
	}
	if n != len(kinds) {
		t.Errorf("%d values in a line, %d kinds: two have the same name?", n, len(kinds))
	}
	for name, want := range map[string]Kind{"block.read_bytes": Delta, "block.read_agg.min_us": Level, "block.read_agg.sum_us": Delta, "latencies_us.pause_vm": Level} {
		if kinds[name] != want {
			t.Errorf("%s is of kind %d, want %d", name, kinds[name], want)
		}
	}
	for group, want := range map[string]string{"block_root": "block root", "net_a_b": "net a_b", "fs_": "", "vhost_user_fs_a": "vhost_user_fs a", "block": "", "vcpu": "", "blocks_x": ""} {
		kind, id, ok := Device(group)
		if got := strings.TrimSpace(kind + " " + id); got != want || ok != (want != "") {
			t.Errorf("Device(%q) = %q, %v", group, got, ok)
		}
	}
}

// Counters are told since the line before and gauges as they are; sums are those of the same line's parts; a line that was not written
// takes nothing with it.
func TestDeltas(t *testing.T) {
	root, data := new(Block), new(Block)
	cpus := []*VCPU{new(VCPU), new(VCPU)}
	var p Process
	m := &Machine{Blocks: []Named[Block]{{"root", root}, {"data", data}}, VCPUs: cpus}
	step := func(commit bool, want map[string]float64) {
		t.Helper()
		l := whole(time.Now(), nil, &p, m)
		got := parse(t, string(l.text))
		for name, v := range want {
			if got[name] != v {
				t.Errorf("%s is %v, want %v", name, got[name], v)
			}
		}
		if commit {
			l.commit()
		}
	}
	root.Reads.Add(3)
	data.Reads.Add(4)
	cpus[0].ExitIOIn.Inc()
	cpus[1].ExitIOIn.Inc()
	root.ReadAgg.Record(5 * time.Microsecond)
	root.ReadAgg.Record(9 * time.Microsecond)
	data.ReadAgg.Record(2 * time.Microsecond)
	p.Latencies.PauseVM.Set(77)
	first := map[string]float64{
		"block_root.read_count": 3, "block_data.read_count": 4, "block.read_count": 7, "vcpu.exit_io_in": 2,
		"block_root.read_agg.min_us": 5, "block_root.read_agg.max_us": 9, "block_root.read_agg.sum_us": 14,
		"block.read_agg.min_us": 2, "block.read_agg.max_us": 9, "block.read_agg.sum_us": 16, "latencies_us.pause_vm": 77,
	}
	step(false, first)
	step(true, first)
	step(true, map[string]float64{
		"block_root.read_count": 0, "block.read_count": 0, "vcpu.exit_io_in": 0, "block.read_agg.min_us": 2, "block.read_agg.sum_us": 0,
		"latencies_us.pause_vm": 77,
	})
	data.Reads.Inc()
	step(true, map[string]float64{"block_root.read_count": 0, "block_data.read_count": 1, "block.read_count": 1})
	if data.Reads.Count() != 5 {
		t.Errorf("in all %d", data.Reads.Count())
	}
}

// Nothing is counted twice or not at all while it is being written.
func TestConcurrent(t *testing.T) {
	b := new(Block)
	m := &Machine{Blocks: []Named[Block]{{"root", b}}}
	path := filepath.Join(t.TempDir(), "metrics")
	r := NewRecorder("vm")
	if err := r.Configure(config.Metrics{MetricsPath: path}); err != nil {
		t.Fatal(err)
	}
	r.Started(m)
	const workers, each = 4, 20_000
	var wg sync.WaitGroup
	for range workers {
		wg.Go(func() {
			for range each {
				b.Reads.Inc()
				b.ReadAgg.Record(time.Microsecond)
			}
		})
	}
	for range 20 {
		if err := r.Flush(); err != nil {
			t.Error(err)
		}
	}
	wg.Wait()
	if err := r.Close(); err != nil {
		t.Error(err)
	}
	sums := map[string]float64{}
	for _, l := range lines(t, path) {
		for k, v := range parse(t, l) {
			sums[k] += v
		}
	}
	for _, k := range []string{"block_root.read_count", "block.read_count", "block.read_agg.sum_us"} {
		if sums[k] != workers*each {
			t.Errorf("%s: %v in all, want %d", k, sums[k], workers*each)
		}
	}
}

// A line at the start, one each period, and one at the end; none of a recorder without a file.
func TestWhenLinesAreWritten(t *testing.T) {
	path := filepath.Join(t.TempDir(), "metrics")
	synctest.Test(t, func(t *testing.T) {
		r := NewRecorder("vm")
		if err := r.Flush(); err != nil || r.Wanted() {
			t.Error(err)
		}
		if err := r.Configure(config.Metrics{MetricsPath: path, EmitID: true, Properties: map[string]string{"k": "v"}}); err != nil || !r.Wanted() {
			t.Fatal(err)
		}
		if err := r.Configure(config.Metrics{MetricsPath: path}); err != ErrConfigured {
			t.Errorf("a second file: %v", err)
		}
		r.Started(new(Machine))
		time.Sleep(2*Period + time.Second)
		r.Put.Drive.Add(2)
		if err := r.Close(); err != nil {
			t.Error(err)
		}
		if err := r.Close(); err != nil || r.Flush() != nil {
			t.Error(err)
		}
		r.Started(new(Machine)) // too late
	})
	all := lines(t, path)
	if len(all) != 4 {
		t.Fatalf("%d lines, want 4", len(all))
	}
	if !strings.Contains(all[0], `"id":"vm","properties":{"k":"v"},"api_server"`) {
		t.Error(all[0])
	}
	if v := parse(t, all[3]); v["put_api_requests.drive_count"] != 2 {
		t.Errorf("the last line: %v", v["put_api_requests.drive_count"])
	}
}

// A pipe that nobody reads takes what it has room for. Then lines are missed, counted, and made good by the next one.
func TestNobodyReads(t *testing.T) {
	path := filepath.Join(t.TempDir(), "fifo")
	if err := unix.Mkfifo(path, 0o600); err != nil {
		t.Fatal(err)
	}
	r := NewRecorder("vm")
	if err := r.Configure(config.Metrics{MetricsPath: path}); err != nil {
		t.Fatal(err)
	}
	missed := 0
	for range 50 {
		r.Put.Drive.Inc()
		if err := r.Flush(); err != nil {
			missed++
			if !errdefs.IsUnavailable(err) || !strings.Contains(err.Error(), "nobody reads") {
				t.Fatal(err)
			}
		}
	}
	if missed == 0 || missed > 45 {
		t.Fatalf("%d of 50 lines missed", missed)
	}
	f, err := os.OpenFile(path, os.O_RDWR|unix.O_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var text []byte
	read := func() {
		f.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
		buf := make([]byte, 1<<20)
		for {
			n, err := f.Read(buf)
			text = append(text, buf[:n]...)
			if err != nil {
				return
			}
		}
	}
	read()
	if err := r.Flush(); err != nil {
		t.Error(err)
	}
	read()
	sums := map[string]float64{}
	for _, l := range strings.Split(strings.TrimSpace(string(text)), "\n") {
		for k, v := range parse(t, l) {
			sums[k] += v
		}
	}
	if sums["put_api_requests.drive_count"] != 50 || sums["logger.missed_metrics_count"] != float64(missed) {
		t.Errorf("%v drives in all, want 50; %v missed, want %d", sums["put_api_requests.drive_count"], sums["logger.missed_metrics_count"], missed)
	}
}

func TestBadConfiguration(t *testing.T) {
	dir := t.TempDir()
	many := map[string]string{}
	for i := range config.MaxProperties + 1 {
		many[fmt.Sprint(i)] = ""
	}
	for _, tt := range []struct {
		c    config.Metrics
		want string
	}{
		{config.Metrics{}, "metrics_path is missing"},
		{config.Metrics{MetricsPath: dir}, "metrics_path is " + fmt.Sprintf("%q", dir) + ": want a file or named pipe to write to (is a directory)"},
		{config.Metrics{MetricsPath: dir + "/none/m"}, "no such file or directory"},
		{config.Metrics{MetricsPath: dir + "/m", Properties: many}, "properties is 65 pairs: want at most 64"},
		{config.Metrics{MetricsPath: dir + "/m", Properties: map[string]string{"k": strings.Repeat("v", 1024)}}, `properties is "k"`},
	} {
		r := NewRecorder("vm")
		if err := r.Configure(tt.c); !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%+v: %v", tt.c, err)
		}
		if r.Wanted() {
			t.Error("a refused file is used")
		}
	}
	if _, err := os.Stat(dir + "/m"); err == nil {
		t.Error("a refused file was made")
	}
}

// To count costs no memory, and a stopwatch that nobody wants does not look at the clock.
func TestCostsNothing(t *testing.T) {
	b := new(Block)
	if n := testing.AllocsPerRun(100, func() {
		b.Reads.Inc()
		b.ReadAgg.Start(true).Stop()
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
	if s := b.ReadAgg.Start(false); !reflect.ValueOf(s).IsZero() {
		t.Error("an unwanted stopwatch runs")
	}
}

// whole is a machine's line.
func whole(now time.Time, head []byte, p *Process, m *Machine) *line {
	l := newLine(now, head)
	l.addAll(p, m)
	l.addShares(m)
	l.end()
	return l
}

// TestPart: a process that serves a part of a microVM says nothing of the rest.
func TestPart(t *testing.T) {
	path := filepath.Join(t.TempDir(), "metrics")
	r := NewPartRecorder()
	if err := r.Configure(config.Metrics{MetricsPath: path}); err != nil {
		t.Fatal(err)
	}
	counts := new(Filesystem)
	counts.Requests.Add(3)
	r.Started(&Machine{Filesystems: []Named[Filesystem]{{"a", counts}}})
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	first, _, _ := strings.Cut(string(text), "\n")
	var got map[string]any
	if err := json.Unmarshal([]byte(first), &got); err != nil {
		t.Fatal(err)
	}
	if names := slices.Sorted(maps.Keys(got)); !slices.Equal(names, []string{"fs", "fs_a", "utc_timestamp_ms"}) || !strings.Contains(first, `"request_count":3`) {
		t.Errorf("the line is %s", first)
	}
}
