package shim

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/cgroups/v3/cgroup2/stats"
	taskapi "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/containerd/api/types"
	"github.com/containerd/containerd/api/types/task"
	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"github.com/containerd/typeurl/v2"
	"github.com/opencontainers/runtime-spec/specs-go"
	"github.com/sirupsen/logrus"
)

func TestLifecycle(t *testing.T) {
	w := newWorld(t, "", "sh", "-c", "echo out; exit 7")
	c := w.client(false)
	c.read(0)
	if err := w.create(c); err != nil {
		t.Fatal(err)
	}
	if st := w.state(""); st.Status != task.Status_CREATED || st.Pid == 0 || st.Stdout != c.stdoutPath {
		t.Errorf("after Create: %v", st)
	}
	if err := w.create(c); !errdefs.IsAlreadyExists(err) {
		t.Errorf("a second Create: %v", err)
	}
	w.start("")
	w.wait("", 7)
	if out := <-c.out; out != "out\n" {
		t.Errorf("output %q", out)
	}
	if st := w.state(""); st.Status != task.Status_STOPPED || st.ExitStatus != 7 || st.ExitedAt == nil {
		t.Errorf("after the exit: %v", st)
	}
	if p, err := w.Pids(w.ctx, &taskapi.PidsRequest{ID: cid}); err != nil || len(p.Processes) == 0 {
		t.Errorf("Pids of a stopped task: %v %v: containerd would take the shim for a leaked one", p, err)
	}
	if _, err := w.Kill(w.ctx, &taskapi.KillRequest{ID: cid, Signal: 9}); !errdefs.IsNotFound(err) {
		t.Errorf("Kill after the exit: %v", err)
	}
	if _, err := w.Shutdown(w.ctx, &taskapi.ShutdownRequest{ID: cid}); err != nil {
		t.Fatal(err)
	}
	if r := w.delete(""); r.ExitStatus != 7 || r.Pid == 0 {
		t.Errorf("Delete answered %v", r)
	}
	w.nothingLeft() // already, not only after Shutdown
	if _, err := w.Delete(w.ctx, &taskapi.DeleteRequest{ID: cid}); !errdefs.IsNotFound(err) {
		t.Errorf("a second Delete: %v", err)
	}
	w.wantEvents("create", "start", "exit c1 7", "delete")
}

func (w *world) state(execID string) *taskapi.StateResponse {
	w.Helper()
	r, err := w.State(w.ctx, &taskapi.StateRequest{ID: cid, ExecID: execID})
	if err != nil {
		w.Fatal(err)
	}
	return r
}

// bulk is 20 MiB that do not repeat soon.
func bulk() string {
	var b strings.Builder
	for i := 0; b.Len() < 20<<20; i++ {
		sum := sha256.Sum256(fmt.Append(nil, i))
		b.Write(sum[:])
	}
	return b.String()
}

func TestInputAndOutputAreExact(t *testing.T) {
	w := newWorld(t, "", "cat")
	c, data := w.client(true), bulk()
	c.read(time.Millisecond)
	w.run(c)
	stdin, err := os.OpenFile(c.stdinPath, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		_, _ = stdin.WriteString(data)
		_, _ = w.CloseIO(w.ctx, &taskapi.CloseIORequest{ID: cid, Stdin: true})
		stdin.Close()
	}()
	w.wait("", 0)
	if out := <-c.out; out != data {
		t.Errorf("%d bytes came back of %d, or others", len(out), len(data))
	}
	w.delete("")
	w.wantEvents("create", "start", "exit c1 0", "delete")
}

func TestInputEndsWithCloseIOOnly(t *testing.T) {
	w := newWorld(t, "", "cat")
	c := w.client(true)
	c.read(0)
	w.run(c)
	for _, word := range []string{"a", "b"} { // a client that goes, and one that comes
		if err := os.WriteFile(c.stdinPath, []byte(word), 0); err != nil {
			t.Fatal(err)
		}
		time.Sleep(50 * time.Millisecond)
	}
	if st := w.state(""); st.Status != task.Status_RUNNING {
		t.Fatalf("the process ended with the client: %v", st)
	}
	for range 2 {
		if _, err := w.CloseIO(w.ctx, &taskapi.CloseIORequest{ID: cid, Stdin: true}); err != nil {
			t.Fatal(err)
		}
	}
	w.wait("", 0)
	if out := <-c.out; out != "ab" {
		t.Errorf("output %q", out)
	}
	w.delete("")
}

func TestOutputBeforeExit(t *testing.T) {
	w := newWorld(t, "", "head", "-c", "20971520", "/dev/zero")
	c := w.client(false)
	c.read(2 * time.Millisecond) // slower than the process
	w.run(c)
	w.wait("", 0)
	select {
	case out := <-c.out:
		if len(out) != 20<<20 {
			t.Errorf("%d bytes", len(out))
		}
	case <-time.After(5 * time.Second):
		t.Error("the output did not end with Wait")
	}
	w.delete("")
}

func TestExec(t *testing.T) {
	w := newWorld(t, "", "sleep", "100")
	w.run(nil)
	c := w.client(false)
	c.read(0)
	if err := w.exec("e1", c, "sh", "-c", "echo exec; exit 3"); err != nil {
		t.Fatal(err)
	}
	if err := w.exec("e1", nil, "true"); !errdefs.IsAlreadyExists(err) {
		t.Errorf("the same id again: %v", err)
	}
	if _, err := w.Kill(w.ctx, &taskapi.KillRequest{ID: cid, ExecID: "e1", Signal: 9}); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("Kill before the start: %v", err)
	}
	w.start("e1")
	w.wait("e1", 3)
	if out := <-c.out; out != "exec\n" {
		t.Errorf("output %q", out)
	}
	if r := w.delete("e1"); r.ExitStatus != 3 {
		t.Errorf("Delete answered %v", r)
	}
	if err := w.exec("e2", nil, "sleep", "100"); err != nil {
		t.Fatal(err)
	}
	w.start("e2")
	if _, err := w.Delete(w.ctx, &taskapi.DeleteRequest{ID: cid, ExecID: "e2"}); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("Delete of a running exec: %v", err)
	}
	if p, err := w.Pids(w.ctx, &taskapi.PidsRequest{ID: cid}); err != nil || len(p.Processes) != 2 || p.Processes[1].Info == nil {
		t.Errorf("Pids: %v %v", p, err)
	}
	if err := w.exec("e3", nil, "/no/such/program"); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Start(w.ctx, &taskapi.StartRequest{ID: cid, ExecID: "e3"}); err == nil {
		t.Error("a program that is not there was started")
	}
	w.delete("e3")
	if _, err := w.Kill(w.ctx, &taskapi.KillRequest{ID: cid, Signal: uint32(syscall.SIGTERM)}); err != nil {
		t.Fatal(err)
	}
	w.wait("", 128+15)
	if err := w.exec("e4", nil, "true"); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("an exec after the end: %v", err)
	}
	w.delete("")
	w.wantEvents("create", "start", "exec-added e1", "exec-started e1", "exit e1 3", "exec-added e2", "exec-started e2",
		"exec-added e3", "exit e2 137", "exit c1 143", "delete")
}

func TestPauseStatsOOM(t *testing.T) {
	w := newWorld(t, "", "sleep", "100")
	if err := w.create(nil); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Pause(w.ctx, &taskapi.PauseRequest{ID: cid}); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("Pause before the start: %v", err)
	}
	w.start("")
	if _, err := w.Pause(w.ctx, &taskapi.PauseRequest{ID: cid}); err != nil {
		t.Fatal(err)
	}
	if st := w.state(""); st.Status != task.Status_PAUSED {
		t.Errorf("after Pause: %v", st)
	}
	if _, err := w.Resume(w.ctx, &taskapi.ResumeRequest{ID: cid}); err != nil {
		t.Fatal(err)
	}
	if _, err := w.ResizePty(w.ctx, &taskapi.ResizePtyRequest{ID: cid, Width: 80, Height: 25}); err != nil {
		t.Errorf("ResizePty without a terminal: %v", err)
	}
	if r, err := w.Connect(w.ctx, &taskapi.ConnectRequest{ID: cid}); err != nil || r.TaskPid == 0 || r.ShimPid != uint32(os.Getpid()) {
		t.Errorf("Connect: %v %v", r, err)
	}
	if _, err := w.Update(w.ctx, &taskapi.UpdateTaskRequest{ID: cid}); !errdefs.IsInvalidArgument(err) {
		t.Errorf("Update without resources: %v", err)
	}
	if _, err := w.Kill(w.ctx, &taskapi.KillRequest{ID: cid, Signal: uint32(syscall.SIGUSR1)}); err != nil { // the fake's OOM
		t.Fatal(err)
	}
	w.eventually("the OOM event", func() bool {
		w.recorder.mu.Lock()
		defer w.recorder.mu.Unlock()
		return w.recorder.list[len(w.recorder.list)-1] == "oom"
	})
	m := w.metrics()
	if m.GetPids().GetCurrent() != 3 || m.GetMemoryEvents().GetOomKill() != 1 {
		t.Errorf("Stats: %v", m)
	}
	if _, err := w.Delete(w.ctx, &taskapi.DeleteRequest{ID: cid}); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("Delete of a running task: %v", err)
	}
	_ = kill(w.pod.vm.process)
	w.wait("", 137)
	if m := w.metrics(); m.GetMemoryEvents().GetOomKill() != 1 || m.GetPids().GetCurrent() != 3 {
		t.Errorf("Stats after the VM's death: %v", m)
	}
	w.delete("")
	w.wantEvents("create", "start", "paused", "resumed", "oom", "exit c1 137", "delete")
}

// The metrics of the end are kept; a guest that does not give them holds nothing up.
func TestStatsAfterExit(t *testing.T) {
	for fake, want := range map[string]uint64{"": 3, "nostats": 0} {
		w := newWorld(t, fake, "true")
		w.run(nil)
		w.wait("", 0)
		for range 2 {
			if m := w.metrics(); m.Pids.Current != want {
				t.Errorf("%q: %v, want pids %d, which the guest said when it was asked first", fake, m, want)
			}
		}
		_ = kill(w.pod.vm.process)
		<-w.pod.vm.ended
		if m := w.metrics(); m.Pids.Current != want {
			t.Errorf("%q: when the VM was gone: %v", fake, m)
		}
		w.delete("")
	}
}

func (w *world) metrics() *stats.Metrics {
	w.Helper()
	r, err := w.Stats(w.ctx, &taskapi.StatsRequest{ID: cid})
	if err != nil {
		w.Fatal(err)
	}
	m := &stats.Metrics{}
	if err := typeurl.UnmarshalTo(r.Stats, m); err != nil {
		w.Fatal(err)
	}
	if m.CPU == nil || m.Memory == nil || m.Pids == nil || m.MemoryEvents == nil || len(m.ProtoReflect().GetUnknown()) > 0 {
		w.Errorf("Stats: %v: clients expect all of CPU, memory and pids, and nothing else", m)
	}
	return m
}

func (w *world) eventually(what string, ok func() bool) {
	w.Helper()
	for end := time.Now().Add(5 * time.Second); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			w.Fatalf("%s did not come", what)
		}
	}
}

func TestDeleteBeforeStart(t *testing.T) {
	w := newWorld(t, "", "true")
	if err := w.create(nil); err != nil {
		t.Fatal(err)
	}
	if r := w.delete(""); r.ExitStatus != 137 {
		t.Errorf("Delete answered %v", r)
	}
	w.wantEvents("create", "exit c1 137", "delete")
}

func TestTerminal(t *testing.T) {
	w := newWorld(t, "", "sleep", "100")
	c := w.client(false)
	c.read(0)
	if _, err := w.Create(w.ctx, &taskapi.CreateTaskRequest{ID: cid, Bundle: w.bundle, Rootfs: w.rootfs, Options: w.options(), Stdout: c.stdoutPath, Stderr: "/nowhere", Terminal: true}); err != nil {
		t.Fatal(err)
	}
	w.start("")
	if _, err := w.ResizePty(w.ctx, &taskapi.ResizePtyRequest{ID: cid, Width: 80, Height: 25}); err != nil {
		t.Fatal(err)
	}
	if got, _ := os.ReadFile(filepath.Join(w.bundle, "resized")); string(got) != "80x25" {
		t.Errorf("resized to %q", got)
	}
	if _, err := w.Kill(w.ctx, &taskapi.KillRequest{ID: cid, Signal: 9, All: true}); err != nil {
		t.Fatal(err)
	}
	w.wait("", 137)
	w.delete("")
}

// Each way in which a VM can die ends its tasks within 5 s.
func TestDeaths(t *testing.T) {
	for name, die := range map[string]func(w *world){
		"fc-vmm killed": func(w *world) { _ = w.pod.vm.process.cmd.Process.Kill() },
		"files gone":    func(w *world) { _ = w.pod.vm.files.cmd.Process.Kill() },
		"agent gone":    func(w *world) { _, _ = w.Resume(w.ctx, &taskapi.ResumeRequest{ID: cid}) },
		"power off":     func(w *world) { _, _ = w.Pause(w.ctx, &taskapi.PauseRequest{ID: cid}) },
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, "mortal", "sleep", "100")
			c := w.client(false) // nobody reads on
			f, err := os.OpenFile(c.stdoutPath, os.O_RDWR, 0)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			w.run(c)
			if err := w.exec("e1", nil, "sleep", "100"); err != nil {
				t.Fatal(err)
			}
			w.start("e1")
			begin := time.Now()
			die(w)
			w.wait("", 137)
			if d := time.Since(begin); d > 5*time.Second {
				t.Errorf("it took %v", d)
			}
			w.wait("e1", 137)
			if _, err := w.Start(w.ctx, &taskapi.StartRequest{ID: cid}); err == nil {
				t.Error("a dead task was started")
			}
			w.delete("e1")
			w.delete("")
			w.wantEvents("create", "start", "exec-added e1", "exec-started e1", "exit e1 137", "exit c1 137", "delete")
		})
	}
}

func TestCreateFails(t *testing.T) {
	for _, tt := range []struct {
		name, fake string
		break_     func(w *world)
		want       string
	}{
		{"no kernel", "", func(w *world) { os.Remove(filepath.Join(filepath.Dir(w.settings), "vmlinux")) }, "vmlinux: no such file"},
		{"kernel that is none", "", func(w *world) { w.write(filepath.Join(filepath.Dir(w.settings), "vmlinux"), "x") }, "neither an ELF kernel nor a bzImage"},
		{"no image", "", func(w *world) { os.Remove(filepath.Join(filepath.Dir(w.settings), "guest.img")) }, "guest.img: no such file"},
		{"no kvm", "", func(w *world) { w.kvm = func() (int, error) { return 0, errors.New("no /dev/kvm") } }, "no /dev/kvm"},
		{"too many vCPUs", "", func(w *world) { w.kvm = func() (int, error) { return 0, nil } }, "1 vCPUs asked for"},
		{"unknown key", "", func(w *world) { w.write(w.settings, "\nkernal = 1\n") }, `line 2: unknown key "kernal"`},
		{"no settings", "", func(w *world) { os.Remove(w.settings) }, "cannot read the settings"},
		{"no process", "", func(w *world) { w.write(filepath.Join(w.bundle, "config.json"), `{"linux":{}}`) }, "no process"},
		{"hook without a path", "", func(w *world) {
			w.edit(func(s *specs.Spec) { s.Hooks = &specs.Hooks{CreateRuntime: []specs.Hook{{Path: "x"}}} })
		}, `hooks.createRuntime[0].path "x": must be absolute`},
		{"hook that fails", "", func(w *world) {
			w.edit(func(s *specs.Spec) { s.Hooks = &specs.Hooks{CreateRuntime: []specs.Hook{w.hook("exit 9")}} })
		}, "createRuntime hook #0 (/bin/sh): exit status 9"},
		{"network that is none", "", func(w *world) {
			w.edit(func(s *specs.Spec) { s.Linux.Namespaces[0].Path = "/proc/self/exe" })
		}, "linux.namespaces[0]: network namespace /proc/self/exe: not a network namespace"},
		{"the host's network by path", "", func(w *world) {
			w.edit(func(s *specs.Spec) { s.Linux.Namespaces[0].Path = "/proc/self/ns/net" })
		}, "linux.namespaces[0]: /proc/self/ns/net: the host's network (--net-host, --network host) cannot be used from a VM"},
		{"mount that fails", "", func(w *world) {
			w.rootfs = []*types.Mount{{Type: "bind", Source: "/no/such", Options: []string{"rbind"}}}
		}, "mount the root filesystem"},
		{"refused by fc-vmm", "refuse", nil, "fc-vmm: boot_args: not today"},
		{"fc-vmm dies", "die", nil, "the VM was not started: fc-vmm: something is wrong (fc-vmm gave no answer)"},
		{"fc-vmm crashes", "crash", nil, "fc-vmm ended with status 2: panic: a bug (fc-vmm gave no answer)"},
		{"the file server dies", "nofiles", nil, "fc-vmm fs was killed by SIGKILL (fc-vmm: vhost-user: EOF)"},
		{"guest panics", "panic", nil, "kernel has panicked"},
		{"agent silent", "silent", func(w *world) {
			data, _ := os.ReadFile(w.settings)
			w.write(w.settings, strings.Replace(string(data), "10s", "300ms", 1))
		}, "guest agent did not connect within 300ms"},
		{"agent refuses", "nocreate", nil, "no container today"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := newWorld(t, tt.fake, "true")
			if tt.break_ != nil {
				tt.break_(w)
			}
			begin := time.Now()
			err := w.create(nil)
			if err == nil || !strings.Contains(err.Error(), tt.want) || strings.Contains(err.Error(), "\n") {
				t.Errorf("error %q, want %q in one line", err, tt.want)
			}
			if d := time.Since(begin); d > 5*time.Second {
				t.Errorf("it took %v", d)
			}
			if errdefs.IsInvalidArgument(err) != (tt.fake == "refuse") && tt.fake != "" && tt.fake != "nocreate" {
				t.Errorf("class of %v", err)
			}
			w.nothingLeft()
			w.wantEvents()
		})
	}
}

// What fc-vmm has to say of a start that failed is told, also where its streams' end is noticed before it is asked.
func TestEndDuringStdio(t *testing.T) {
	for fake, want := range map[string]string{
		"refuse": "fc-vmm: boot_args: not today", "crash": "fc-vmm ended with status 2: panic: a bug (fc-vmm gave no answer)", "panic": "kernel has panicked",
	} {
		t.Run(fake, func(t *testing.T) {
			w := newWorld(t, fake, "true")
			_, uri := loggerURI(t, "binary", "late")
			err := w.create(&client{stdoutPath: uri})
			if err == nil || !strings.Contains(err.Error(), want) || errdefs.IsInvalidArgument(err) != (fake == "refuse") {
				t.Errorf("error %q, want %q", err, want)
			}
			w.nothingLeft()
			w.wantEvents()
		})
	}
}

func TestNoCheckpoints(t *testing.T) {
	w := newWorld(t, "", "true")
	_, err := w.Create(w.ctx, &taskapi.CreateTaskRequest{ID: cid, Bundle: w.bundle, Rootfs: w.rootfs, Options: w.options(), Checkpoint: "/x"})
	if !errdefs.IsNotImplemented(err) {
		t.Errorf("restored: %v", err)
	}
	if _, err := w.Checkpoint(w.ctx, &taskapi.CheckpointTaskRequest{ID: cid}); !errdefs.IsNotImplemented(err) {
		t.Errorf("taken: %v", err)
	}
	w.nothingLeft()
}

// A shim that is told to leave (SIGTERM) takes its VM along and says so.
func TestShutdownWithRunningTask(t *testing.T) {
	w := newWorld(t, "", "sleep", "100")
	w.run(nil)
	w.wantEvents("create", "start", "exit c1 137")
}

// A guest that does not carry out a SIGKILL loses its VM.
func TestKillCannotBeEvaded(t *testing.T) {
	w := newWorld(t, "deafkill", "sleep", "100")
	w.run(nil)
	begin := time.Now()
	if _, err := w.Kill(w.ctx, &taskapi.KillRequest{ID: cid, Signal: 9}); err != nil {
		t.Errorf("Kill: %v", err)
	}
	w.wait("", 137)
	if d := time.Since(begin); d > sigkillTimeout+4*time.Second {
		t.Errorf("it took %v", d)
	}
	w.delete("")

	w = newWorld(t, "refusekill", "sleep", "100")
	w.run(nil)
	if _, err := w.Kill(w.ctx, &taskapi.KillRequest{ID: cid, Signal: 9}); err == nil {
		t.Error("the agent's error was not passed on")
	}
	c, err := w.container(cid)
	if err != nil {
		t.Fatal(err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.guarded {
		t.Error("nobody sees to it that the SIGKILL is carried out")
	}
}

// An exec whose terminal cannot be given its size runs all the same, and its exit is told.
func TestExecOutlivesResize(t *testing.T) {
	w := newWorld(t, "noresize", "sleep", "100")
	w.run(nil)
	c := w.client(false)
	c.read(0)
	spec, err := typeurl.MarshalAnyToProto(&specs.Process{Args: []string{"sh", "-c", "echo here; exit 5"}, Cwd: "/"})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Exec(w.ctx, &taskapi.ExecProcessRequest{ID: cid, ExecID: "e1", Spec: spec, Stdout: c.stdoutPath, Terminal: true}); err != nil {
		t.Fatal(err)
	}
	if _, err := w.ResizePty(w.ctx, &taskapi.ResizePtyRequest{ID: cid, ExecID: "e1", Width: 80, Height: 25}); err != nil {
		t.Fatal(err)
	}
	w.start("e1")
	w.wait("e1", 5)
	if out := <-c.out; out != "here\n" {
		t.Errorf("output %q", out)
	}
	w.delete("e1")
}

// A guest that takes all the time it may have for its end, to write its pages, is not killed meanwhile.
func TestSlowShutdown(t *testing.T) {
	if testing.Short() {
		t.Skip("takes 9 s")
	}
	w := newWorld(t, "slowoff", "true")
	w.run(nil)
	w.wait("", 0)
	w.delete("")
	if got, _ := os.ReadFile(filepath.Join(w.bundle, "resized")); string(got) != "in order" {
		t.Error("the VM was killed before its guest's own bound")
	}
}

// A guest that has not written back what it should have is ended all the same, and the log tells of it.
func TestUnorderlyShutdown(t *testing.T) {
	for mode, cause := range map[string]string{"dirty": "pages are left", "diesoff": "the guest's kernel has panicked"} {
		t.Run(mode, func(t *testing.T) {
			w := newWorld(t, mode, "true")
			w.run(nil)
			w.wait("", 0)
			var text bytes.Buffer
			logger := logrus.New()
			logger.SetOutput(&text)
			w.ctx = log.WithLogger(w.ctx, logrus.NewEntry(logger))
			w.delete("")
			if !strings.Contains(text.String(), "did not shut down in order") || !strings.Contains(text.String(), cause) {
				t.Errorf("the log has\n%s", &text)
			}
			w.nothingLeft()
		})
	}
}
