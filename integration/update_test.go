package integration

import (
	"strings"
	"testing"

	"github.com/containerd/cgroups/v3/cgroup2/stats"
	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/pkg/oci"
	"github.com/containerd/errdefs"
	"github.com/containerd/typeurl/v2"
	"github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/fcshim/containerd-shim-fc-v2/integration/harness"
)

// withCgroup shows a container the cgroups; it has no namespace of them by default.
var withCgroup = oci.WithMounts([]specs.Mount{{Destination: "/sys/fs/cgroup", Type: "cgroup", Source: "cgroup", Options: []string{"ro", "nosuid", "noexec", "nodev"}}})

func ptr[T any](v T) *T { return &v }

// TestUpdate changes limits of a running container, each on top of the last one.
func TestUpdate(t *testing.T) {
	c := containerd(t)
	task := startIdle(t, c, c.Config(t, harness.Settings{"vcpus": 2}), withCgroup, oci.WithMemoryLimit(100<<20))
	limits := func() string {
		return strings.ReplaceAll(c.Must(t, "task", "exec", "--exec-id", c.ID(t), task.ID(), "sh", "-c",
			"cd /sys/fs/cgroup$(cut -d: -f3 /proc/self/cgroup); cat memory.max pids.max cpu.max cpu.weight"), "\n", ", ")
	}
	for _, tt := range []struct {
		name string
		r    specs.LinuxResources
		want string
	}{
		{"nothing", specs.LinuxResources{}, "104857600, max, max 100000, 100, "},
		{"memory", specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: ptr[int64](64 << 20)}}, "67108864, max, max 100000, 100, "},
		{"pids", specs.LinuxResources{Pids: &specs.LinuxPids{Limit: ptr[int64](77)}}, "67108864, 77, max 100000, 100, "},
		{"quota", specs.LinuxResources{CPU: &specs.LinuxCPU{Quota: ptr[int64](150_000), Period: ptr[uint64](200_000)}}, "67108864, 77, 150000 200000, 100, "},
		{"unified", specs.LinuxResources{Unified: map[string]string{"cpu.weight": "50"}}, "67108864, 77, 150000 200000, 50, "},
	} {
		if err := task.Update(c.Context(), client.WithResources(&tt.r)); err != nil {
			t.Fatalf("%s: %v", tt.name, err)
		}
		if got := limits(); got != tt.want {
			t.Errorf("%s: %q, want %q", tt.name, got, tt.want)
		}
	}
	if !c.FC() {
		return
	}
	for name, tt := range map[string]struct {
		r    specs.LinuxResources
		want string
	}{
		"too much memory": {specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: ptr[int64](1 << 40)}}, "at most"},
		"too many CPUs":   {specs.LinuxResources{CPU: &specs.LinuxCPU{Quota: ptr[int64](1_000_000)}}, "the VM has 2"},
	} {
		err := task.Update(c.Context(), client.WithResources(&tt.r))
		if !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if got := limits(); got != "67108864, 77, 150000 200000, 50, " {
		t.Errorf("after failed updates: %q", got)
	}
}

func metrics(t *testing.T, c *harness.Containerd, task client.Task) *stats.Metrics {
	t.Helper()
	m, err := task.Metrics(c.Context())
	if err != nil {
		t.Fatal(err)
	}
	var s stats.Metrics
	if err := typeurl.UnmarshalTo(m.Data, &s); err != nil {
		t.Fatal(err)
	}
	return &s
}

// given are the names of a message's fields that are not zero, out of those that a container with processes always has.
func given(m *stats.Metrics) string {
	var names []string
	for _, f := range []struct {
		of    protoreflect.ProtoMessage
		names string
	}{
		{m.CPU, "usage_usec user_usec system_usec psi"},
		{m.Memory, "anon kernel_stack slab pgfault usage usage_limit max_usage swap_limit psi"},
		{m.Pids, "current limit"},
		{m.MemoryEvents, "oom_kill"},
	} {
		msg := f.of.ProtoReflect()
		for _, name := range strings.Fields(f.names) {
			if msg.Has(msg.Descriptor().Fields().ByName(protoreflect.Name(name))) {
				names = append(names, name)
			}
		}
	}
	return strings.Join(names, " ")
}

// TestMetrics compares what the two runtimes know of a container, while it runs and between its end and its deletion.
func TestMetrics(t *testing.T) {
	c := containerd(t)
	fcOnly(t, c) // and runc, for comparison
	running, ended := map[string]string{}, map[string]string{}
	eachRuntime(t, c, func(t *testing.T, c *harness.Containerd) {
		task := startIdle(t, c, "", oci.WithMemoryLimit(64<<20), oci.WithPidsLimit(50))
		m := metrics(t, c, task)
		running[c.Runtime] = given(m)
		if m.Memory.UsageLimit != 64<<20 || m.Pids.Limit != 50 || m.Pids.Current == 0 {
			t.Errorf("metrics: %v", m)
		}
		if table := c.Must(t, "task", "metrics", task.ID()); !strings.Contains(table, "memory.usage") {
			t.Errorf("ctr task metrics: %s", table)
		}
		kill(t, c, task, 15)
		if code := task.Await(t, long); code != 7 {
			t.Errorf("status %d", code)
		}
		m = metrics(t, c, task)
		ended[c.Runtime] = given(m)
		if m.Pids.Current != 0 {
			t.Errorf("pids after the end: %v", m.Pids)
		}
		t.Logf("running: %s; ended: %s", running[c.Runtime], ended[c.Runtime])
		c.Delete(t, task)
	})
	if f, r := running[harness.FCRuntime], running[harness.RuncRuntime]; f != r {
		t.Errorf("of a running container runc gives %s; fc gives %s", r, f)
	}
	if f, r := ended[harness.FCRuntime], ended[harness.RuncRuntime]; f != r {
		t.Errorf("of an ended container runc gives %s; fc gives %s", r, f)
	}
}

// TestMetricsOfDeadVM asks for metrics when there is nobody left to give them.
func TestMetricsOfDeadVM(t *testing.T) {
	c := containerd(t)
	fcOnly(t, c)
	task := startIdle(t, c, "")
	before := metrics(t, c, task)
	c.KillProcess(t, task.ID(), harness.VMM)
	if code := task.Await(t, long); code != 137 {
		t.Errorf("status %d", code)
	}
	if m := metrics(t, c, task); m.CPU.UsageUsec != before.CPU.UsageUsec || m.CPU.UsageUsec == 0 {
		t.Errorf("metrics of a dead VM: %v, and before: %v", m, before)
	}
}
