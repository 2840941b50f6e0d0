package service

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/cgroups/v3/cgroup2/stats"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/runc/libcontainer/seccomp"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"

	"github.com/fcshim/containerd-shim-fc-v2/guest/stdio"
	"github.com/fcshim/containerd-shim-fc-v2/pkg/agent/agentpb"
)

// machine is newGuest where containers can be run.
func machine(t *testing.T) *guest {
	t.Helper()
	needMachine(t)
	g := newGuest(t)
	g.makeRootfs()
	return g
}

func TestStatuses(t *testing.T) {
	g := machine(t)
	for script, want := range map[string]uint32{"exit 0": 0, "exit 7": 7, "exit 255": 255, "sleep 60 & kill -9 $!; wait $!": 137} {
		if out := g.run("c", g.spec("sh", "-c", "echo hello; "+script), want); out != "hello\n" {
			t.Errorf("%s: output %q", script, out)
		}
	}
}

func TestInput(t *testing.T) {
	g := machine(t)
	p := g.create("c", g.spec("cat"))
	p.start()
	sent := make([]byte, 20<<20)
	rand.NewChaCha8([32]byte{2}).Read(sent)
	go func() {
		p.stdin.Write(sent)
		p.stdin.(*net.UnixConn).CloseWrite()
	}()
	if got := p.finish(0); sha256.Sum256([]byte(got)) != sha256.Sum256(sent) {
		t.Errorf("%d bytes came back of %d", len(got), len(sent))
	}
}

// TestAsked: what the spec asks for is what the process sees.
func TestAsked(t *testing.T) {
	g := machine(t)
	s := g.spec("sh", "-c", `echo env=$COLOUR; echo host=$(hostname); echo cwd=$PWD; echo id=$(id -u):$(id -g):$(id -G)
		grep -E '^(CapBnd|CapEff|NoNewPrivs|Seccomp):' /proc/self/status | tr -d '\t '
		echo nofile=$(ulimit -n):$(ulimit -Hn); echo oom=$(cat /proc/self/oom_score_adj)
		touch /x 2>/dev/null || echo root=ro; echo 1 2>/dev/null >/proc/sys/kernel/shmmni || echo sys=ro
		[ -s /proc/keys ] || echo masked; mkdir /tmp/d 2>/dev/null || echo mkdir=refused; echo pid=$$; cat /proc/self/cgroup
		cat /sys/fs/cgroup/memory.max /sys/fs/cgroup/pids.max /sys/fs/cgroup/cpu.max`)
	s.Root.Readonly = true
	s.Process.Cwd = "/tmp"
	s.Process.User = specs.User{UID: 1000, GID: 1001, AdditionalGids: []uint32{1002}}
	memory, pids, quota, period := int64(64<<20), int64(50), int64(50000), uint64(100000)
	s.Linux.Resources.Memory = &specs.LinuxMemory{Limit: &memory}
	s.Linux.Resources.Pids = &specs.LinuxPids{Limit: &pids}
	s.Linux.Resources.CPU = &specs.LinuxCPU{Quota: &quota, Period: &period}
	want := []string{
		"env=blue", "host=box", "cwd=/tmp", "id=1000:1001:1001 1002", "CapEff:0000000000000000", "CapBnd:00000000000004a1",
		"NoNewPrivs:1", "nofile=999:1000", "oom=0", "root=ro", "sys=ro", "masked", "pid=1", "0::/", "67108864", "50", "50000 100000",
	}
	if seccomp.Enabled {
		s.Linux.Seccomp = &specs.LinuxSeccomp{DefaultAction: specs.ActAllow, Syscalls: []specs.LinuxSyscall{
			{Names: []string{"mkdir", "mkdirat"}, Action: specs.ActErrno},
		}}
		want = append(want, "Seccomp:2", "mkdir=refused")
	}
	// A user that is not root has no effective capabilities unless they are ambient; the bounding set is the spec's.
	got := strings.Split(g.run("c", s, 0), "\n")
	for _, w := range want {
		found := false
		for _, l := range got {
			found = found || l == w
		}
		if !found {
			t.Errorf("no line %q in\n%s", w, strings.Join(got, "\n"))
		}
	}
}

func TestUserNamespace(t *testing.T) {
	g := machine(t)
	s := g.spec("sh", "-c", "echo again >/dev/stdout; cat /proc/self/uid_map")
	s.Linux.Namespaces = append(s.Linux.Namespaces, specs.LinuxNamespace{Type: specs.UserNamespace})
	ids := []specs.LinuxIDMapping{{ContainerID: 0, HostID: 100000, Size: 65536}}
	s.Linux.UIDMappings, s.Linux.GIDMappings = ids, ids
	for _, dir := range []string{g.rootfs, filepath.Dir(g.rootfs), filepath.Dir(filepath.Dir(g.rootfs))} {
		os.Chmod(dir, 0o755) // the mapped root must get there
	}
	if out := strings.Fields(g.run("c", s, 0)); len(out) != 4 || out[0] != "again" || out[2] != "100000" {
		t.Errorf("%q", out)
	}
}

func TestExec(t *testing.T) {
	g := machine(t)
	c := g.create("c", g.spec("sleep", "60"))
	c.start()
	e := c.execIn("e", &specs.Process{Args: []string{"sh", "-c", "cat; echo $A; exit 9"}, Cwd: "/tmp", Env: []string{"PATH=/bin", "A=b"}})
	if err := e.kill(unix.SIGTERM, false); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("kill before start: %v", err)
	}
	e.start()
	if err := e.tryStart(); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("second start: %v", err)
	}
	if err := e.delete(); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("delete while running: %v", err)
	}
	io.WriteString(e.stdin, "in ")
	e.stdin.(*net.UnixConn).CloseWrite()
	if out := e.finish(9); out != "in b\n" {
		t.Errorf("output %q", out)
	}
	if err := e.kill(unix.SIGKILL, false); !errdefs.IsNotFound(err) || !strings.Contains(err.Error(), "process already finished") {
		t.Errorf("kill after the end: %v", err)
	}
	if err := e.delete(); err != nil {
		t.Error(err)
	}
	if err := e.delete(); !errdefs.IsNotFound(err) {
		t.Errorf("second delete: %v", err)
	}
	bad := c.execIn("bad", &specs.Process{Args: []string{"nonexistent"}, Cwd: "/", Env: []string{"PATH=/bin"}})
	if err := bad.tryStart(); err == nil || !strings.Contains(err.Error(), `exec: "nonexistent": executable file not found in $PATH`) {
		t.Errorf("start of nothing: %v", err)
	}
	bad.finish(255)
	long := c.execIn("long", &specs.Process{Args: []string{"sleep", "60"}, Cwd: "/", Env: []string{"PATH=/bin"}})
	long.start()
	if err := long.kill(unix.SIGKILL, false); err != nil {
		t.Error(err)
	}
	long.finish(137)
	if err := c.kill(unix.SIGKILL, false); err != nil {
		t.Error(err)
	}
	c.finish(137)
	if err := c.delete(); err != nil {
		t.Error(err)
	}
}

func TestFailures(t *testing.T) {
	g := machine(t)
	_, err := g.tryCreate("c", g.spec("nonexistent"))
	if err == nil || !strings.Contains(err.Error(), `exec: "nonexistent": executable file not found in $PATH`) {
		t.Errorf("nonexistent: %v", err)
	}
	s := g.spec("true")
	s.Root.Path += "-missing"
	if _, err := g.tryCreate("c", s); err == nil {
		t.Error("no rootfs, no error")
	}
	if _, err := g.tryCreate("a/b", g.spec("true")); !errdefs.IsInvalidArgument(err) {
		t.Errorf("bad id: %v", err)
	}
	c := g.create("c", g.spec("sleep", "60")) // the id is free again after the failures
	if _, err := g.tryCreate("c", g.spec("true")); !errdefs.IsAlreadyExists(err) {
		t.Errorf("second c: %v", err)
	}
	if err := c.delete(); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("delete before the end: %v", err)
	}
	if err := c.kill(99, false); !errdefs.IsInvalidArgument(err) {
		t.Errorf("signal 99: %v", err)
	}
	if err := c.kill(unix.SIGKILL, true); err != nil { // created, never started
		t.Errorf("kill all: %v", err)
	}
	c.finish(137)
	if err := c.kill(unix.SIGKILL, true); !errdefs.IsNotFound(err) {
		t.Errorf("kill all after the end: %v", err)
	}
	if err := c.tryStart(); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("start after the end: %v", err)
	}
	if err := c.delete(); err != nil {
		t.Error(err)
	}
	if err := c.kill(unix.SIGKILL, false); !errdefs.IsNotFound(err) {
		t.Errorf("kill after delete: %v", err)
	}
}

func TestTerminal(t *testing.T) {
	g := machine(t)
	s := g.spec("sh", "-c", "stty size; read x; stty size; echo got $x; tty")
	s.Process.Terminal = true
	s.Process.ConsoleSize = &specs.Box{Width: 91, Height: 33}
	c := g.create("c", s)
	c.start()
	buf := make([]byte, 7)
	if _, err := io.ReadFull(c.stdout, buf); err != nil || string(buf) != "33 91\r\n" {
		t.Fatalf("first size %q, %v", buf, err)
	}
	if _, err := g.ResizePty(g.ctx, &agentpb.ResizePtyRequest{ContainerId: "c", Width: 100, Height: 40}); err != nil {
		t.Fatal(err)
	}
	io.WriteString(c.stdin, "word\n")
	if out := c.finish(0); !strings.Contains(out, "40 100\r\ngot word\r\n/dev/pts/0\r\n") {
		t.Errorf("%q", out)
	}
	e := g.create("d", g.spec("sleep", "60"))
	e.start()
	te := e.execIn("t", &specs.Process{Args: []string{"tty"}, Cwd: "/", Env: []string{"PATH=/bin"}, Terminal: true})
	te.start()
	if out := te.finish(0); out != "/dev/pts/0\r\n" {
		t.Errorf("exec: %q", out)
	}
	if _, err := g.ResizePty(g.ctx, &agentpb.ResizePtyRequest{ContainerId: "d"}); err == nil {
		t.Error("resized what has no terminal")
	}
}

func TestPauseAndPids(t *testing.T) {
	g := machine(t)
	c := g.create("c", g.spec("sh", "-c", "trap 'exit 3' TERM; sleep 60 & echo up; wait"))
	c.start()
	io.ReadFull(c.stdout, make([]byte, 3))
	pids, err := g.Pids(g.ctx, &agentpb.PidsRequest{ContainerId: "c"})
	if err != nil || len(pids.Pids) != 2 {
		t.Errorf("pids: %v, %v", pids, err)
	}
	if _, err := g.Pause(g.ctx, &agentpb.PauseRequest{ContainerId: "c"}); err != nil {
		t.Fatal(err)
	}
	e := c.execIn("e", &specs.Process{Args: []string{"true"}, Cwd: "/", Env: []string{"PATH=/bin"}})
	if err := e.tryStart(); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("exec while paused: %v", err)
	}
	if err := c.kill(unix.SIGTERM, false); err != nil {
		t.Error(err)
	}
	ended := make(chan *agentpb.WaitResponse, 1)
	go func() { ended <- c.wait() }()
	select {
	case r := <-ended:
		t.Errorf("a paused container ended: %v", r)
	case <-time.After(300 * time.Millisecond):
	}
	if _, err := g.Resume(g.ctx, &agentpb.ResumeRequest{ContainerId: "c"}); err != nil {
		t.Fatal(err)
	}
	if r := <-ended; r.ExitStatus != 3 {
		t.Errorf("%v", r)
	}
	if _, err := g.Resume(g.ctx, &agentpb.ResumeRequest{ContainerId: "c"}); !strings.Contains(fmt.Sprint(err), "not paused") {
		t.Errorf("second resume: %v", err)
	}
}

func TestOOM(t *testing.T) {
	g := machine(t)
	s := g.spec("dd", "if=/dev/zero", "of=/dev/null", "bs=200M", "count=1")
	limit, none := int64(32<<20), int64(32<<20)
	s.Linux.Resources.Memory = &specs.LinuxMemory{Limit: &limit, Swap: &none}
	events, err := g.Events(g.ctx, &agentpb.EventsRequest{})
	if err != nil {
		t.Fatal(err)
	}
	c := g.create("c", s)
	c.start()
	if r := c.wait(); r.ExitStatus != 137 || !r.OomKilled {
		t.Errorf("%v", r)
	}
	if e, err := events.Recv(); err != nil || e.OomContainerId != "c" {
		t.Errorf("event %v, %v", e, err)
	}
	resp, err := g.Stats(g.ctx, &agentpb.StatsRequest{ContainerId: "c"})
	if err != nil {
		t.Fatal(err)
	}
	var m stats.Metrics
	if err := proto.Unmarshal(resp.Metrics, &m); err != nil || m.MemoryEvents.OomKill == 0 || m.Memory.UsageLimit != uint64(limit) || m.CPU.UsageUsec == 0 {
		t.Errorf("%v, %v", &m, err)
	}
	if err := c.delete(); err != nil {
		t.Error(err)
	}
}

// TestSharedPIDNamespace: without a PID namespace of its own a container ends with its init all the same, and at once.
func TestSharedPIDNamespace(t *testing.T) {
	g := machine(t)
	for name, end := range map[string]func(p *remote){
		"exit": func(p *remote) { io.WriteString(p.stdin, "\n") },
		"kill": func(p *remote) {
			if err := p.kill(unix.SIGKILL, false); err != nil {
				t.Error(err)
			}
		},
	} {
		spec := g.spec("sh", "-c", "sleep 1000 & echo ready; read x; exit 137") // the child holds the output
		spec.Linux.Namespaces = slices.DeleteFunc(spec.Linux.Namespaces, func(ns specs.LinuxNamespace) bool { return ns.Type == specs.PIDNamespace })
		p := g.create(name, spec)
		p.start()
		if _, err := io.ReadFull(p.stdout, make([]byte, len("ready\n"))); err != nil {
			t.Fatal(err)
		}
		e := p.execIn("e", &specs.Process{Args: []string{"sleep", "1000"}, Cwd: "/", Env: []string{"PATH=/bin"}})
		e.start()
		begun := time.Now()
		end(p)
		p.finish(137)
		e.finish(137)
		if took := time.Since(begun); took > stdio.Grace*3/4 {
			t.Errorf("%s: it took %v", name, took)
		}
		if err := p.delete(); err != nil {
			t.Errorf("%s: delete: %v", name, err)
		}
	}
}

func TestMany(t *testing.T) {
	g := machine(t)
	var wg sync.WaitGroup
	for i := range 5 {
		wg.Go(func() {
			id := fmt.Sprint("c", i)
			if out := g.run(id, g.spec("sh", "-c", "echo "+id+"; exit "+fmt.Sprint(i)), uint32(i)); out != id+"\n" {
				t.Errorf("%s: %q", id, out)
			}
		})
	}
	wg.Wait()
}

func TestShutdown(t *testing.T) {
	g := machine(t)
	c := g.create("c", g.spec("sh", "-c", "echo up; exec sleep 60")) // PID 1 of its namespace, no handler: TERM does nothing
	c.start()
	io.ReadFull(c.stdout, make([]byte, 3))
	if _, err := g.Shutdown(g.ctx, &agentpb.ShutdownRequest{}); err != nil || g.writes != 1 {
		t.Fatalf("%v, and asked %d times to write back", err, g.writes)
	}
	c.finish(137)
}

func TestShutdownLosesPages(t *testing.T) {
	g := newGuest(t)
	g.writeBack = errors.New("pages are left")
	if _, err := g.Shutdown(g.ctx, &agentpb.ShutdownRequest{}); err == nil || !strings.Contains(err.Error(), "pages are left") {
		t.Error(err)
	}
}

func TestWithoutContainers(t *testing.T) {
	g := newGuest(t)
	info, err := g.Info(g.ctx, &agentpb.InfoRequest{})
	if err != nil || info.Version != "test" || info.KernelRelease == "" {
		t.Errorf("%v, %v", info, err)
	}
	c := &remote{g: g, id: "c"}
	for name, err := range map[string]error{"start": c.tryStart(), "kill": c.kill(9, true), "delete": c.delete()} {
		if !errdefs.IsNotFound(err) || !strings.Contains(err.Error(), `container "c"`) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := g.tryCreate("c", &specs.Spec{Process: &specs.Process{Cwd: "/"}}); !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), "process.args") {
		t.Errorf("create: %v", err)
	}
}
