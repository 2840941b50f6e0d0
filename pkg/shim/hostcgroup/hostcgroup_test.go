package hostcgroup

import (
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/moby/sys/mountinfo"
)

func TestPath(t *testing.T) {
	for in, want := range map[string]string{
		"/default/c":                  "default/c",
		"k8s.io/pod/c":                "k8s.io/pod/c",
		"/a/":                         "a",
		"system.slice:nerdctl:x":      "system.slice/nerdctl-x.scope",
		":cri-containerd:x":           "system.slice/cri-containerd-x.scope",
		"a-b-c.slice:cri:x":           "a.slice/a-b.slice/a-b-c.slice/cri-x.scope",
		"-.slice:cri:x":               "cri-x.scope",
		"a.slice::x":                  "a.slice/x.scope",
		"a.slice:cri:kube-pod.slice":  "a.slice/kube-pod.slice",
		"a--b.slice:cri:x":            "",
		"-a.slice:cri:x":              "",
		"slice:cri:x":                 "",
		"a/b.slice:cri:x":             "",
		"a.slice:cri:":                "",
		"a.slice:cri:..":              "a.slice/cri-...scope",
		"/":                           "",
		"/../etc":                     "",
		"/a/../../etc":                "",
		"/a//b":                       "",
		"/a/./b":                      "",
		"/a\nb":                       "",
		"x.slice:../../etc:passwd":    "", // has neither form
		"/with:colon/and:another/one": "with:colon/and:another/one",
	} {
		got, err := Path(in)
		if got != want || (want == "") != errdefs.IsInvalidArgument(err) {
			t.Errorf("%q: %q, %v; want %q", in, got, err, want)
		}
	}
}

// files makes a folder with empty files, in which a kernel's would be.
func files(t *testing.T, dir string, names ...string) {
	t.Helper()
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		name, value, _ := strings.Cut(name, "=")
		if err := os.WriteFile(filepath.Join(dir, name), []byte(value), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

func demand(t *testing.T, dir string, want map[string]string) {
	t.Helper()
	for name, value := range want {
		b, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil || string(b) != value {
			t.Errorf("%s is %q, want %q (%v)", filepath.Join(dir, name), b, value, err)
		}
	}
}

var limits = Limits{MemoryBytes: 1 << 30, CPUQuotaUS: 50000, CPUPeriodUS: 100000, CPUShares: 512, CPUs: "0-1", Mems: "0"}

func TestUnified(t *testing.T) {
	root := t.TempDir()
	leaf := filepath.Join(root, "ns", "c")
	files(t, root, "cgroup.subtree_control=cpu pids\n")
	files(t, filepath.Dir(leaf), "cgroup.subtree_control")
	files(t, leaf, "memory.max", "cpu.max", "cpu.weight", "cpuset.cpus", "cpuset.mems", "cgroup.procs", "cgroup.subtree_control")
	c, err := New([]Hierarchy{{Dir: root}}, "ns/c")
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Make(limits); err != nil {
		t.Fatal(err)
	}
	if err := c.Add(77); err != nil {
		t.Error(err)
	}
	demand(t, leaf, map[string]string{"memory.max": "1073741824", "cpu.max": "50000 100000", "cpu.weight": "59", "cpuset.cpus": "0-1",
		"cpuset.mems": "0", "cgroup.procs": "77", "cgroup.subtree_control": ""})
	demand(t, root, map[string]string{"cgroup.subtree_control": "+memory"}) // the last one written, of those that were not there
	if dir, err := c.Open(); err != nil || dir == nil {
		t.Errorf("open: %v, %v", dir, err)
	} else {
		dir.Close()
	}
	if len(c.Missing()) != 0 {
		t.Errorf("a cgroup that was there is to be removed: %v", c.Missing())
	}
	if err := c.Set(Limits{CPUQuotaUS: -1, CPUPeriodUS: 100000}); err != nil {
		t.Error(err)
	}
	demand(t, leaf, map[string]string{"cpu.max": "max 100000", "cpu.weight": "59"})
	if err := os.Remove(filepath.Join(leaf, "memory.max")); err != nil {
		t.Fatal(err)
	}
	if err := c.Set(limits); !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), filepath.Join(leaf, "memory.max")) {
		t.Errorf("a limit without its controller: %v", err)
	}
}

// The values are runc's.
func TestWeight(t *testing.T) {
	for shares, want := range map[uint64]string{1: "1", 2: "1", 3: "2", 4: "2", 512: "59", 1024: "100", 2048: "174", 262143: "10000", 262144: "10000", 1 << 40: "10000"} {
		if got := (Limits{CPUShares: shares}).weight(true); got != want {
			t.Errorf("%d shares weigh %s, want %s", shares, got, want)
		}
	}
}

func TestV1(t *testing.T) {
	root := t.TempDir()
	all := []Hierarchy{
		{filepath.Join(root, "cpu"), []string{"cpu", "cpuacct"}}, {filepath.Join(root, "cpuset"), []string{"cpuset"}},
		{filepath.Join(root, "memory"), []string{"memory"}},
	}
	files(t, filepath.Join(root, "cpu", "ns", "c"), "cpu.shares", "cpu.cfs_period_us", "cpu.cfs_quota_us", "cgroup.procs")
	files(t, filepath.Join(root, "memory", "ns", "c"), "memory.limit_in_bytes", "cgroup.procs")
	files(t, filepath.Join(root, "cpuset"), "cpuset.cpus=0-7\n", "cpuset.mems=0\n")
	files(t, filepath.Join(root, "cpuset", "ns"), "cpuset.cpus=\n", "cpuset.mems=0\n")
	files(t, filepath.Join(root, "cpuset", "ns", "c"), "cpuset.cpus=\n", "cpuset.mems=\n", "cgroup.procs")
	c, err := New(all, "ns/c")
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Make(Limits{MemoryBytes: 4096, CPUQuotaUS: -1, CPUPeriodUS: 1000, CPUShares: 1}); err != nil {
		t.Fatal(err)
	}
	if err := c.Add(7); err != nil {
		t.Error(err)
	}
	demand(t, root, map[string]string{
		"cpuset/ns/cpuset.cpus": "0-7", "cpuset/ns/c/cpuset.cpus": "0-7", "cpuset/ns/c/cpuset.mems": "0",
		"cpu/ns/c/cpu.shares": "2", "cpu/ns/c/cpu.cfs_quota_us": "-1", "cpu/ns/c/cpu.cfs_period_us": "1000",
		"memory/ns/c/memory.limit_in_bytes": "4096", "memory/ns/c/cgroup.procs": "7", "cpuset/ns/c/cgroup.procs": "7",
	})
	if dir, err := c.Open(); err != nil || dir != nil {
		t.Errorf("open: %v, %v", dir, err)
	}
}

// TestHost makes a cgroup of this very host's, whichever version it has, and lives in it for a while.
func TestHost(t *testing.T) {
	mounted, err := Mounted()
	if err != nil {
		t.Fatal(err)
	}
	if len(mounted) == 0 || os.Getuid() != 0 {
		t.Skip("no cgroups here, or no right to make one")
	}
	path := "fcshim-" + strings.ToLower(t.Name()) + "-" + filepath.Base(t.TempDir())
	if err := os.Mkdir(filepath.Join(mounted[0].Dir, path), 0o755); err != nil {
		t.Skip(err)
	}
	_ = os.Remove(filepath.Join(mounted[0].Dir, path))
	c, err := New(mounted, path+"/c")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		for _, h := range mounted {
			_ = os.Remove(filepath.Join(h.Dir, path, "c"))
			_ = os.Remove(filepath.Join(h.Dir, path))
		}
	})
	if len(c.Missing()) != len(mounted) {
		t.Errorf("of %v, missing: %v", mounted, c.Missing())
	}
	if err := c.Make(Limits{MemoryBytes: 64 << 20, CPUQuotaUS: 50000, CPUPeriodUS: 100000}); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("cat")
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if err := c.Add(cmd.Process.Pid); err != nil {
		t.Error(err)
	}
	b, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(cmd.Process.Pid), "cgroup"))
	if err != nil || strings.Count(string(b), ":/"+path+"/c\n") != len(mounted) {
		t.Errorf("its cgroups: %s, %v", b, err)
	}
	in.Close()
	if err := cmd.Wait(); err != nil {
		t.Error(err)
	}
	if err := Remove(c.Missing()); err != nil {
		t.Error(err)
	}
	again, err := New(mounted, path+"/c")
	if err != nil || len(again.Missing()) != len(mounted) {
		t.Errorf("after Remove, missing: %v, %v", again.Missing(), err)
	}
	if err := Remove(c.Missing()); err != nil {
		t.Errorf("removed twice: %v", err)
	}
}

// needMachine skips a test that needs cgroup v2, which the KVM machine has.
func needMachine(t *testing.T) {
	t.Helper()
	if os.Getenv("FC_KVMHOST") == "" {
		t.Skip("makes cgroups (v2): run it with -exec integration/kvmhost")
	}
}

// TestAwaitEmpty: the kernel tells of the end of a cgroup's last process; nobody asks again and again.
func TestAwaitEmpty(t *testing.T) {
	needMachine(t)
	mounted, err := Mounted()
	if err != nil {
		t.Fatal(err)
	}
	c, err := New(mounted, "fcshim-awaitempty")
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Make(Limits{}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = Remove(c.Missing()) })
	cmd := exec.Command("sleep", "60")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill() })
	if err := c.Add(cmd.Process.Pid); err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(mounted[0].Dir, "fcshim-awaitempty")
	events, err := os.Open(filepath.Join(dir, "cgroup.events"))
	if err != nil {
		t.Fatal(err)
	}
	defer events.Close()
	begin := time.Now()
	if !awaitEmpty(events, begin.Add(10*time.Millisecond)) || time.Since(begin) < 10*time.Millisecond {
		t.Errorf("it waited for %v", time.Since(begin))
	}
	time.AfterFunc(20*time.Millisecond, func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	begin = time.Now()
	if !awaitEmpty(events, begin.Add(time.Minute)) || time.Since(begin) > 30*time.Second {
		t.Errorf("the end was not heard of in %v", time.Since(begin))
	}
	if awaitEmpty(events, begin.Add(time.Minute)) {
		t.Error("it waited for an empty cgroup")
	}
	if err := Remove(c.Missing()); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(dir); err == nil {
		t.Error("the cgroup is left")
	}
}

func TestChoose(t *testing.T) {
	v2 := &mountinfo.Info{FSType: "cgroup2", Mountpoint: "/sys/fs/cgroup"}
	cpu := &mountinfo.Info{FSType: "cgroup", Mountpoint: "/c/cpu", VFSOptions: "rw,cpu,cpuacct"}
	systemd := &mountinfo.Info{FSType: "cgroup", Mountpoint: "/c/systemd", VFSOptions: "rw,xattr,name=systemd"}
	for name, tt := range map[string]struct {
		mounts []*mountinfo.Info
		want   string
	}{
		"v2":             {[]*mountinfo.Info{v2}, "/sys/fs/cgroup"},
		"v1":             {[]*mountinfo.Info{cpu, systemd}, "/c/cpu cpu,cpuacct"},
		"hybrid":         {[]*mountinfo.Info{v2, systemd, cpu}, "/c/cpu cpu,cpuacct"},
		"v2 and systemd": {[]*mountinfo.Info{systemd, v2}, "/sys/fs/cgroup"},
		"twice":          {[]*mountinfo.Info{cpu, {FSType: "cgroup", Mountpoint: "/other", VFSOptions: "rw,cpu"}}, "/c/cpu cpu,cpuacct"},
		"none":           {nil, ""},
	} {
		var got []string
		for _, h := range choose(tt.mounts) {
			got = append(got, strings.TrimSpace(h.Dir+" "+strings.Join(h.Controllers, ",")))
		}
		if strings.Join(got, ";") != tt.want {
			t.Errorf("%s: %v, want %s", name, got, tt.want)
		}
	}
}
