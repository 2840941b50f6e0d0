package shim

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	taskapi "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/containerd/v2/pkg/shim"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// pid of init or an exec, as clients are told.
func (w *world) pid(execID string) int {
	w.Helper()
	r, err := w.State(w.ctx, &taskapi.StateRequest{ID: cid, ExecID: execID})
	if err != nil {
		w.Fatal(err)
	}
	return int(r.Pid)
}

func TestHostProcess(t *testing.T) {
	w := newWorld(t, "", "sleep", "100")
	if err := w.create(nil); err != nil {
		t.Fatal(err)
	}
	pid := w.pid("")
	at := fmt.Sprintf("/proc/%d/", pid)
	if got, err := os.ReadFile(at + "root/hello"); err != nil || string(got) != "hello" {
		t.Errorf("its root: %q, %v", got, err)
	}
	own, _ := os.Readlink("/proc/self/ns/net")
	if got, err := os.Readlink(at + "ns/net"); err != nil || got == own {
		t.Errorf("its network %s is the shim's, %v", got, err)
	}
	if cmdline, _ := os.ReadFile(at + "cmdline"); !strings.HasSuffix(string(cmdline), "\x00--\x00"+cid+"\x00sleep\x00100\x00") {
		t.Errorf("a process list shows %q", cmdline)
	}
	w.start("")
	pids := map[int]bool{pid: true}
	for _, id := range []string{"e1", "e2"} {
		if err := w.exec(id, nil, "sleep", "100"); err != nil {
			t.Fatal(err)
		}
		w.start(id)
		if p := w.pid(id); pids[p] || unix.Kill(p, 0) != nil {
			t.Errorf("pid %d of %s is not its own", p, id)
		} else {
			pids[p] = true
		}
	}
	r, err := w.Pids(w.ctx, &taskapi.PidsRequest{ID: cid})
	if err != nil || len(r.Processes) != 3 {
		t.Errorf("%v, %v", r, err)
	}
	if err := unix.Kill(pid, unix.SIGTERM); err != nil {
		t.Fatal(err)
	}
	w.wait("", 128+15)
	w.delete("")
	for p := range pids {
		if err := unix.Kill(p, 0); !errors.Is(err, unix.ESRCH) {
			t.Errorf("pid %d is left: %v", p, err)
		}
	}
}

// An exec's thread ends with the exec, however long its client takes to delete it; and that does not end another one's.
func TestHostThreads(t *testing.T) {
	w := newWorld(t, "", "sleep", "100")
	w.run(nil)
	run := func(id string, args ...string) int {
		if err := w.exec(id, nil, args...); err != nil {
			t.Fatal(err)
		}
		_, _ = w.Start(w.ctx, &taskapi.StartRequest{ID: cid, ExecID: id})
		return w.pid(id)
	}
	w.gone(run("e1", "true"))
	w.gone(run("e2", "/no/such/program"))
	lives := run("e3", "sleep", "100")
	for _, id := range []string{"e1", "e2"} {
		w.delete(id)
	}
	w.gone(run("e4", "true")) // all that was asked before has been done by then
	if err := unix.Kill(lives, 0); err != nil {
		t.Errorf("an exec's thread was ended with another's: %v", err)
	}
}

// gone waits for a thread's end.
func (w *world) gone(tid int) {
	w.Helper()
	if tid == 0 {
		w.Error("no pid")
		return
	}
	for end := time.Now().Add(10 * time.Second); unix.Kill(tid, 0) == nil; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			w.Errorf("pid %d is left", tid)
			return
		}
	}
}

// Who kills the process on the host kills the container.
func TestHostProcessKilled(t *testing.T) {
	w := newWorld(t, "", "sleep", "100")
	w.run(nil)
	if err := unix.Kill(w.pid(""), unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	w.wait("", exitKilled)
	w.delete("")
	w.nothingLeft()
}

// trace reads what hooks have left in the bundle, and removes it.
func (w *world) trace() string {
	w.Helper()
	name := filepath.Join(w.bundle, "trace")
	data, err := os.ReadFile(name)
	if ignoreMissing(err) != nil {
		w.Error(err)
	}
	os.Remove(name)
	return strings.Join(strings.Fields(string(data)), " ")
}

// traced has every point leave its name, the state's status, and whether the container's process is there. Poststop hooks are
// told no pid; theirs is the one that those before were told.
func (w *world) traced() {
	last := filepath.Join(w.TempDir(), "pid")
	hook := func(point string) []specs.Hook {
		return []specs.Hook{w.hook(`s=$(cat); st=${s#*status\":\"}
case $s in *pid\":*) p=${s#*pid\":}; p=${p%%,*}; echo $p >` + last + `;; *) p=$(cat ` + last + `);; esac
[ -e /proc/$p/ns/net ] && a=alive || a=gone # a zombie has none
echo ` + point + `:${st%%\"*}:$a >>trace`)}
	}
	w.edit(func(s *specs.Spec) {
		s.Version, s.Annotations = specs.Version, map[string]string{"a": "b"}
		s.Hooks = &specs.Hooks{CreateRuntime: hook("createRuntime"), Poststart: hook("poststart"), Poststop: hook("poststop")}
		//lint:ignore SA1019 deprecated, and still in use
		s.Hooks.Prestart = hook("prestart")
	})
}

func (w *world) wantTrace(want string) {
	w.Helper()
	if got := w.trace(); got != want {
		w.Errorf("hooks: %q, want %q", got, want)
	}
}

func TestHooks(t *testing.T) {
	w := newWorld(t, "", "sleep", "100")
	w.traced()
	if err := w.create(nil); err != nil {
		t.Fatal(err)
	}
	w.wantTrace("prestart:creating:alive createRuntime:creating:alive")
	w.start("")
	w.wantTrace("poststart:running:alive")
	if _, err := w.Kill(w.ctx, &taskapi.KillRequest{ID: cid, Signal: 9}); err != nil {
		t.Fatal(err)
	}
	w.wait("", exitKilled)
	w.wantTrace("")
	w.delete("")
	w.wantTrace("poststop:stopped:gone")
	w.nothingLeft()
}

func TestFailingHooks(t *testing.T) {
	t.Run("createRuntime", func(t *testing.T) {
		w := newWorld(t, "", "true")
		w.traced()
		w.edit(func(s *specs.Spec) { s.Hooks.CreateRuntime = append(s.Hooks.CreateRuntime, w.hook("exit 3")) })
		if err := w.create(nil); err == nil || !strings.Contains(err.Error(), "createRuntime hook #1 (/bin/sh): exit status 3") {
			t.Errorf("create: %v", err)
		}
		w.wantTrace("prestart:creating:alive createRuntime:creating:alive poststop:stopped:gone")
		w.nothingLeft()
	})
	t.Run("no VM", func(t *testing.T) {
		w := newWorld(t, "panic", "true")
		w.traced()
		if err := w.create(nil); err == nil {
			t.Error("created")
		}
		w.wantTrace("prestart:creating:alive createRuntime:creating:alive poststop:stopped:gone")
		w.nothingLeft()
	})
	t.Run("poststart", func(t *testing.T) {
		w := newWorld(t, "", "sleep", "100")
		w.edit(func(s *specs.Spec) { s.Hooks = &specs.Hooks{Poststart: []specs.Hook{w.hook("exit 4")}} })
		if err := w.create(nil); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Start(w.ctx, &taskapi.StartRequest{ID: cid}); err == nil || !strings.Contains(err.Error(), "poststart hook #0 (/bin/sh): exit status 4") {
			t.Errorf("start: %v", err)
		}
		w.wait("", exitKilled)
		w.delete("")
		w.nothingLeft()
	})
}

// A poststart hook keeps nobody from hearing of the container's exit.
func TestExitDuringHook(t *testing.T) {
	w := newWorld(t, "", "true")
	release := filepath.Join(t.TempDir(), "release")
	w.edit(func(s *specs.Spec) {
		s.Hooks = &specs.Hooks{Poststart: []specs.Hook{w.hook(`i=0; while ! [ -e ` + release + ` ] && [ $((i+=1)) -lt 400 ]; do sleep 0.05; done`)}}
	})
	if err := w.create(nil); err != nil {
		t.Fatal(err)
	}
	started := make(chan error, 1)
	go func() {
		_, err := w.Start(w.ctx, &taskapi.StartRequest{ID: cid})
		started <- err
	}()
	w.wait("", 0)
	select {
	case err := <-started:
		t.Errorf("Start did not wait for the hook: %v", err)
	default:
	}
	w.write(release, "")
	if err := <-started; err != nil {
		t.Error(err)
	}
	w.delete("")
	w.wantEvents("create", "start", "exit c1 0", "delete")
}

// `delete` runs the poststop hooks of a container whose shim has died, and only once. The test runs itself as that shim.
func TestHooksAfterDeath(t *testing.T) {
	const die = "FCSHIM_DIE" // the file for what a shim that shall die has to say
	if name := os.Getenv(die); name != "" {
		w := newWorld(t, "", "sleep", "100")
		w.traced()
		w.run(nil)
		w.trace()
		w.write(name, fmt.Sprintf("%d %s", w.pid(""), w.bundle))
		_ = unix.Kill(os.Getpid(), unix.SIGKILL)
		select {}
	}
	if os.Getuid() != 0 {
		t.Skip("needs root, for mounts")
	}
	dir := t.TempDir()
	name := filepath.Join(dir, "said")
	cmd := exec.Command(os.Args[0], "-test.run=^"+t.Name()+"$")
	cmd.Env = append(os.Environ(), die+"="+name, "FCSHIM_PRIVATE=1", "TMPDIR="+dir)
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: unix.CLONE_NEWNS} // as the manager does it
	out, err := cmd.CombinedOutput()
	if ws := cmd.ProcessState.Sys().(syscall.WaitStatus); !ws.Signaled() || ws.Signal() != unix.SIGKILL {
		t.Fatalf("%v: %s", err, out)
	}
	said, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	w := &world{T: t}
	var pid int
	if _, err := fmt.Sscanf(string(said), "%d %s", &pid, &w.bundle); err != nil {
		t.Fatalf("%s: %v", said, err)
	}
	for end := time.Now().Add(10 * time.Second); exists(fmt.Sprintf("/proc/%d/ns/net", pid)); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("the container's process has outlived the shim")
		}
	}
	ctx := context.WithValue(namespaces.WithNamespace(context.Background(), "test"), shim.OptsKey{}, shim.Opts{BundlePath: w.bundle})
	for _, want := range []string{"poststop:stopped:gone", ""} {
		if _, err := NewManager("v").Stop(ctx, cid); err != nil {
			t.Error(err)
		}
		w.wantTrace(want)
	}
	// What was mounted here has gone with the shim; containerd removes the empty folders, with the bundle.
	if err := os.RemoveAll(filepath.Join(w.bundle, sharedName)); err != nil {
		t.Error(err)
	}
	w.nothingLeft()
}
