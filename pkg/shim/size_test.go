package shim

import (
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/fcshim/containerd-shim-fc-v2/pkg/shim/hostcgroup"
)

func TestCPUSet(t *testing.T) {
	for _, tt := range []struct {
		list  string
		quota int64 // of a period of 100000 µs
		place string
		vcpus int
		bad   string
	}{
		{list: "0", place: "/a", vcpus: 1},
		{list: "0-2,5", place: "/a", vcpus: 4},
		{list: " 1 , 1,0-1\n", place: "/a", vcpus: 2},
		{list: "0-3", quota: 150_000, place: "/a", vcpus: 2},
		{list: "3", quota: 400_000, place: "/a", vcpus: 1},
		{list: "0-255", place: "/a", vcpus: 32},
		{list: "0", place: "", vcpus: 3}, // nothing would confine it
		{list: "", place: "/a", vcpus: 3},
		{list: "a", place: "/a", bad: `"a" is no number`},
		{list: "2-1", place: "/a", bad: `"2-1" is no range`},
		{list: "1,", place: "/a", bad: `"" is no number`},
		{list: "0-99999999999", place: "/a", bad: "no number"},
	} {
		cpu := &specs.LinuxCPU{Cpus: tt.list}
		if tt.quota != 0 {
			cpu.Quota = &tt.quota
		}
		sz, err := vmSize(&Settings{VCPUs: 3, MemoryMiB: 128}, &specs.Spec{Linux: &specs.Linux{CgroupsPath: tt.place, Resources: &specs.LinuxResources{CPU: cpu}}})
		switch {
		case tt.bad != "":
			if !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), "linux.resources.cpu.cpus") || !strings.Contains(err.Error(), tt.bad) {
				t.Errorf("%q: %v", tt.list, err)
			}
		case err != nil || sz.VCPUs != tt.vcpus:
			t.Errorf("%q, quota %d: %d vCPUs, %v; want %d", tt.list, tt.quota, sz.VCPUs, err, tt.vcpus)
		}
	}
}

// TestHostLimits looks at what a spec's limits become in the host's cgroup.
func TestHostLimits(t *testing.T) {
	limit, quota, period, shares := int64(1<<30), int64(50_000), uint64(200_000), uint64(512)
	l := &specs.Linux{CgroupsPath: "/fctest/c", Resources: &specs.LinuxResources{
		Memory: &specs.LinuxMemory{Limit: &limit}, CPU: &specs.LinuxCPU{Quota: &quota, Period: &period, Shares: &shares, Cpus: "1"},
	}}
	mounted, err := hostcgroup.Mounted()
	if err != nil {
		t.Fatal(err)
	}
	if len(mounted) == 0 {
		t.Skip("no cgroups here")
	}
	h, err := planCgroup(l, size{1, 1024 + 16 + guestOverheadMiB})
	if err != nil {
		t.Fatal(err)
	}
	got := h.limits
	if got.MemoryBytes != (1104+17+128)<<20 || got.CPUQuotaUS != quota || got.CPUPeriodUS != period || got.CPUShares != shares || got.CPUs != "1" {
		t.Errorf("%+v", got)
	}
	got = withCPU(got, cpuQuota{quota: -1, period: period}, &specs.LinuxCPU{Cpus: "0"})
	if got.CPUQuotaUS != -1 || got.CPUShares != shares || got.CPUs != "0" {
		t.Errorf("after a change: %+v", got)
	}
	if h, err := planCgroup(&specs.Linux{}, size{}); h.set() || err != nil {
		t.Errorf("no path: %+v, %v", h, err)
	}
	if _, err := planCgroup(&specs.Linux{CgroupsPath: "/a/../.."}, size{}); !errdefs.IsInvalidArgument(err) {
		t.Errorf("bad path: %v", err)
	}
}
