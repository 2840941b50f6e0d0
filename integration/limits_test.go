package integration

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/pkg/oci"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/fcshim/containerd-shim-fc-v2/integration/harness"
)

// readLimits prints what a container finds of its limits, one a line.
const readLimits = `cd /sys/fs/cgroup; cat memory.max pids.max cpu.max cpu.weight; nproc; ulimit -Sn; ulimit -Hn; ulimit -Sc`

// lastCPU is another CPU than the first one, if there are two.
func lastCPU() string { return strconv.Itoa(runtime.NumCPU() - 1) }

// TestLimits asks nerdctl for every limit that it has a flag for, reads them back inside, and, of a VM, outside.
func TestLimits(t *testing.T) {
	c := containerd(t)
	eachRuntime(t, c, func(t *testing.T, c *harness.Containerd) {
		n := c.Nerdctl(t, c.Runtime)
		name, _ := n.Run(t, []string{
			"-d", "--network", "none", "--memory", "64m", "--cpus", "1.5", "--cpu-shares", "512", "--cpuset-cpus", "0",
			"--pids-limit", "77", "--ulimit", "nofile=100:200", "--ulimit", "core=0",
		}, "sleep", "1000")
		got := n.Must(t, "exec", name, "sh", "-c", readLimits+"; grep MemTotal /proc/meminfo")
		lines := strings.Split(got, "\n")
		weight := "20" // of 512 shares; newer runc and libcontainer: 59
		if len(lines) > 4 && lines[3] == "59" {
			weight = "59"
		}
		want := []string{"67108864", "77", "150000 100000", weight, "1", "100", "200", "0"}
		if len(lines) < len(want)+1 || !slices.Equal(lines[:len(want)], want) {
			t.Fatalf("inside: %q, want %q", got, want)
		}
		if !c.FC() {
			return
		}
		var kib int
		if _, err := fmt.Sscanf(lines[len(want)], "MemTotal: %d kB", &kib); err != nil || kib < 64<<10 || kib > (64+1+64)<<10 {
			t.Errorf("a machine for 64 MiB: %q, %v", lines[len(want)], err)
		}
		id := strings.TrimSpace(n.Must(t, "inspect", "--format", "{{.ID}}", name))
		dir := onHost(t, c, id, harness.Namespace+"/"+id)
		demandLimits(t, dir, map[string]string{"cpu.max": "150000 100000", "cpu.weight": "59", "cpuset.cpus.effective": "0",
			"memory.max": strconv.Itoa((129 + 2 + 128) << 20)})
		confined(t, c, id, "0")
		updateLimits(t, c, id, &specs.LinuxResources{CPU: &specs.LinuxCPU{Quota: ptr[int64](50_000), Cpus: lastCPU()}})
		demandLimits(t, dir, map[string]string{"cpu.max": "50000 100000", "cpuset.cpus.effective": lastCPU()})
		confined(t, c, id, lastCPU())
	})
}

// TestLimitsByCtr does the same with ctr's flags, which are fewer.
func TestLimitsByCtr(t *testing.T) {
	c := containerd(t)
	eachRuntime(t, c, func(t *testing.T, c *harness.Containerd) {
		got := c.Sh(t, []string{
			"--memory-limit", "67108864", "--cpus", "1.5", "--cpuset-cpus", lastCPU(), "--rlimit-nofile", "100:200",
			"--mount", "type=cgroup,src=cgroup,dst=/sys/fs/cgroup,options=ro",
		}, "cd /sys/fs/cgroup$(cut -d: -f3 /proc/self/cgroup); cat memory.max cpu.max; nproc; ulimit -Sn; ulimit -Hn")
		if want := "67108864\n150000 100000\n1\n100\n200\n"; got != want {
			t.Errorf("inside: %q, want %q", got, want)
		}
	})
}

// onHost finds the cgroup of a VM, which must be path, and returns its folder; hosts with cgroup v1 skip what follows.
func onHost(t *testing.T, c *harness.Containerd, id, path string) string {
	t.Helper()
	var fs unix.Statfs_t
	if err := unix.Statfs("/sys/fs/cgroup", &fs); err != nil || fs.Type != unix.CGROUP2_SUPER_MAGIC {
		t.Skip("this host has no cgroup v2")
	}
	for _, role := range []harness.Role{harness.VMM, harness.Files, harness.Holder} {
		pid, err := c.Find(id, role)
		if err != nil {
			t.Fatal(err)
		}
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
		if err != nil || strings.TrimSpace(string(b)) != "0::/"+path {
			t.Errorf("the %s is in the cgroup %q, want /%s (%v)", role, b, path, err)
		}
	}
	return filepath.Join("/sys/fs/cgroup", path)
}

func updateLimits(t *testing.T, c *harness.Containerd, id string, r *specs.LinuxResources) {
	t.Helper()
	container, err := c.Client().LoadContainer(c.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	task, err := container.Task(c.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := task.Update(c.Context(), client.WithResources(r)); err != nil {
		t.Error(err)
	}
}

func vmmOf(t *testing.T, c *harness.Containerd, id string) int {
	t.Helper()
	pid, err := c.FindProcess(id, harness.VMM)
	if err != nil {
		t.Fatal(err)
	}
	return pid
}

func demandLimits(t *testing.T, dir string, want map[string]string) {
	t.Helper()
	for name, value := range want {
		b, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil || strings.TrimSpace(string(b)) != value {
			t.Errorf("on the host, %s is %q, want %q (%v)", name, b, value, err)
		}
	}
}

// confined demands of each thread of a VM that it runs on these CPUs only.
func confined(t *testing.T, c *harness.Containerd, id, cpus string) {
	t.Helper()
	files, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/status", vmmOf(t, c, id)))
	if err != nil || len(files) == 0 {
		t.Fatal("no threads", err)
	}
	for _, f := range files {
		if b, err := os.ReadFile(f); err == nil && !strings.Contains(string(b), "\nCpus_allowed_list:\t"+cpus+"\n") {
			t.Errorf("%s is not confined to the CPUs %s", f, cpus)
		}
	}
}

// TestHostCgroup has cgroups that were there before, one that is there when the shim is killed, systemd's way to name one, and those
// that cannot be made.
func TestHostCgroup(t *testing.T) {
	c := containerd(t)
	fcOnly(t, c)
	t.Run("there before", func(t *testing.T) {
		const slice = "/sys/fs/cgroup/fctest.slice"
		scope := filepath.Join(slice, "fctest-old.slice", "fc-mine.scope")
		for _, dir := range []string{slice, filepath.Dir(scope), scope} {
			if err := os.Mkdir(dir, 0o755); err != nil {
				t.Skip(err)
			}
			t.Cleanup(func() { // fails if it is gone
				if err := unix.Rmdir(dir); err != nil {
					t.Errorf("%s: %v", dir, err)
				}
			})
		}
		task := startIdle(t, c, "", oci.WithCgroup("fctest-old.slice:fc:mine"))
		onHost(t, c, task.ID(), strings.TrimPrefix(scope, "/sys/fs/cgroup/"))
		kill(t, c, task, unix.SIGTERM)
		if code := task.Await(t, long); code != 7 {
			t.Errorf("status %d", code)
		}
		c.Delete(t, task)
	})
	t.Run("left by a killed shim", func(t *testing.T) {
		task := startIdle(t, c, "", oci.WithCgroup("/"+harness.Namespace+"/killed"), oci.WithMemoryLimit(100<<20))
		dir := onHost(t, c, task.ID(), harness.Namespace+"/killed")
		exits := c.ExitEvents(t, task.ID())
		c.KillProcess(t, task.ID(), harness.Shim)
		select {
		case <-exits:
		case <-time.After(long):
			t.Errorf("not reported as exited after %v", long)
		}
		await(t, "the cgroup to go", func() bool {
			_, err := os.Stat(dir)
			return os.IsNotExist(err)
		})
	})
	for name, tt := range map[string]struct {
		flags []string
		words []string
	}{
		"no such CPU":   {[]string{"--cpuset-cpus", "77"}, []string{"cpuset.cpus"}},
		"no number":     {[]string{"--cpuset-cpus", "one"}, []string{"linux.resources.cpu.cpus", "one"}},
		"out of a tree": {[]string{"--cgroup", "/../etc"}, []string{"linux.cgroupsPath", "/../etc"}},
	} {
		t.Run(name, func(t *testing.T) {
			wantError(t, c.Run(t, harness.Run{Flags: tt.flags, Args: []string{"true"}}), tt.words...)
		})
	}
}
