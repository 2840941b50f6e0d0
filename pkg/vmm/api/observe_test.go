package api

import (
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/config"
	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/metrics"
)

// lastMetrics flushes the metrics and gives a group of the line.
func lastMetrics(t *testing.T, b *bench, group string) map[string]uint64 {
	t.Helper()
	b.must(t, "PUT", "/actions", `{"action_type": "FlushMetrics"}`)
	text, err := os.ReadFile(filepath.Join(b.dir, "metrics"))
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(strings.TrimSpace(string(text)), "\n")
	var all map[string]json.RawMessage
	var values map[string]uint64
	if err := json.Unmarshal([]byte(lines[len(lines)-1]), &all); err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(all[group], &values); err != nil {
		t.Fatal(err)
	}
	return values
}

// The log can be configured again and again, the metrics once; neither after the start, and neither is part of the machine.
func TestLoggerAndMetricsOnce(t *testing.T) {
	b := newBench(t)
	before := b.must(t, "GET", "/vm/config", "")
	b.must(t, "PUT", "/logger", `{"level": "Error"}`)
	b.must(t, "PUT", "/logger", `{"level": "Debug", "show_level": true}`)
	if l := *b.loggers; len(l) != 2 || l[0].Level != "Error" || l[0].ShowLevel != nil || l[1].ShowLevel == nil || !*l[1].ShowLevel {
		t.Errorf("configured with %+v", l)
	}
	if status, _ := b.do("PUT", "/metrics", `{"metrics_path": "$D/none/metrics"}`); status != 400 {
		t.Errorf("a file that cannot be made: %d", status)
	}
	b.must(t, "PUT", "/metrics", `{"metrics_path": "$D/metrics"}`)
	status, answer := b.do("PUT", "/metrics", `{"metrics_path": "$D/other"}`)
	if status != 400 || !strings.Contains(faultOf(t, answer), "Reinitialization of metrics not allowed.") {
		t.Errorf("twice: %d %s", status, answer)
	}
	if after := b.must(t, "GET", "/vm/config", ""); after != before {
		t.Errorf("the machine has become %s", after)
	}
	b.start(t)
	for _, r := range [][2]string{{"/logger", `{}`}, {"/metrics", `{"metrics_path": "$D/m"}`}} {
		if status, answer := b.do("PUT", r[0], r[1]); status != 400 || faultOf(t, answer) != afterStart {
			t.Errorf("PUT %s after the start: %d %s", r[0], status, answer)
		}
	}
}

// A process without a log or metrics of its own says so, and opens nothing.
func TestNothingToConfigure(t *testing.T) {
	b := newBenchIn(t.TempDir())
	for _, r := range [][2]string{{"/logger", `{"log_path": "$D/x"}`}, {"/metrics", `{"metrics_path": "$D/x"}`}} {
		if status, answer := b.do("PUT", r[0], r[1]); status != 400 || !strings.Contains(faultOf(t, answer), "can be configured") {
			t.Errorf("PUT %s: %d %s", r[0], status, answer)
		}
	}
	if _, err := os.Stat(filepath.Join(b.dir, "x")); err == nil {
		t.Error("a file was made")
	}
}

// Requests are counted by their endpoints, and those that were refused once more.
func TestRequestsAreCounted(t *testing.T) {
	b := newBench(t)
	b.must(t, "PUT", "/metrics", `{"metrics_path": "$D/metrics"}`)
	b.must(t, "PUT", "/drives/a", `{"drive_id": "a", "path_on_host": "$D/disk", "is_root_device": false}`)
	for _, bad := range [][2]string{{"/drives/b", `{"drive_id": "a"}`}, {"/drives/b", ``}, {"/drives/a", strings.Repeat("x", MaxBody+1)}, {"/none", `{}`}} {
		if status, _ := b.do("PUT", bad[0], bad[1]); status == 204 {
			t.Errorf("PUT %v was accepted", bad)
		}
	}
	b.start(t)
	b.must(t, "GET", "/", "")
	b.must(t, "GET", "/version", "")
	b.must(t, "PATCH", "/drives/a", `{"drive_id": "a"}`)
	b.do("PATCH", "/drives/b", `{"drive_id": "b"}`)
	b.must(t, "PATCH", "/vm", `{"state": "Paused"}`)
	for group, want := range map[string]map[string]uint64{
		"put_api_requests": {"drive_count": 4, "drive_fails": 3, "metrics_count": 1, "metrics_fails": 0, "boot_source_count": 1, "actions_fails": 0},
	} {
		got := lastMetrics(t, b, group)
		for k, n := range want {
			if got[k] != n {
				t.Errorf("%s.%s is %d, want %d", group, k, got[k], n)
			}
		}
		if got["actions_count"] < 1 {
			t.Errorf("%v", got)
		}
	}
	if got := b.metrics.Get.InstanceInfo.Count(); got != 1 {
		t.Errorf("%d questions", got)
	}
	if p := &b.metrics.Patch; p.Drive.Count() != 2 || p.DriveFails.Count() != 1 {
		t.Errorf("%d changes of drives, %d failed", p.Drive.Count(), p.DriveFails.Count())
	}
}

// Every endpoint that Firecracker counts has counters of its own.
func TestCountersAreDistinct(t *testing.T) {
	b := newBench(t)
	seen := map[*metrics.Counter]string{}
	note := func(c *metrics.Counter, name string) {
		if c == nil || seen[c] != "" {
			t.Errorf("%s has the counter of %q", name, seen[c])
		}
		seen[c] = name
	}
	for _, p := range []string{"", "machine-config", "mmds", "version"} {
		note(b.getCounter(p), "GET "+p)
	}
	for _, p := range []string{"actions", "boot-source", "cpu-config", "drives", "logger", "machine-config", "metrics", "mmds", "network-interfaces", "serial", "vsock"} {
		all, fails := b.putCounters(p)
		note(all, "PUT "+p)
		note(fails, "refused PUT "+p)
	}
	for _, p := range []string{"drives", "machine-config", "mmds", "network-interfaces"} {
		all, fails := b.patchCounters(p)
		note(all, "PATCH "+p)
		note(fails, "refused PATCH "+p)
	}
	b.count("DELETE", "/drives/a", errFake) // has none
}

// What a flush cannot write is the client's to know.
func TestFlushFails(t *testing.T) {
	b := newBench(t)
	b.must(t, "PUT", "/metrics", `{"metrics_path": "/dev/full"}`)
	b.start(t)
	status, answer := b.do("PUT", "/actions", `{"action_type": "FlushMetrics"}`)
	if status != 400 || !strings.Contains(faultOf(t, answer), "no space left") {
		t.Errorf("%d %s", status, answer)
	}
	if n := b.metrics.Logger.MissedMetrics.Count(); n != 1 {
		t.Errorf("%d lines missed", n)
	}
}

func TestMaxBody(t *testing.T) {
	b := newBenchWith(t.TempDir(), Options{MaxBody: 20})
	b.must(t, "PUT", "/entropy", `{}`)
	status, answer := b.do("PUT", "/entropy", `{"rate_limiter": null}`)
	if status != 413 || !strings.Contains(faultOf(t, answer), "larger than the 20 bytes allowed") {
		t.Errorf("%d %s", status, answer)
	}
}

func TestClientObserves(t *testing.T) {
	b := newBench(t)
	c := NewClient(b.serve(t))
	defer c.Close()
	ctx := context.Background()
	yes := true
	if err := c.PutLogger(ctx, config.Logger{Level: "Debug", ShowLevel: &yes}); err != nil || len(*b.loggers) != 1 || !*(*b.loggers)[0].ShowLevel {
		t.Errorf("%+v, %v", *b.loggers, err)
	}
	if err := c.PutMetrics(ctx, config.Metrics{MetricsPath: filepath.Join(b.dir, "metrics"), Properties: map[string]string{"a": "b"}}); err != nil {
		t.Error(err)
	}
	if err := c.FlushMetrics(ctx); err == nil || !strings.Contains(err.Error(), beforeStart) {
		t.Errorf("before the start: %v", err)
	}
	b.start(t)
	if err := c.FlushMetrics(ctx); err != nil {
		t.Error(err)
	}
	if text, err := os.ReadFile(filepath.Join(b.dir, "metrics")); err != nil || !strings.Contains(string(text), `"properties":{"a":"b"}`) {
		t.Errorf("%s, %v", text, err)
	}
}
