package shim

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	eventstypes "github.com/containerd/containerd/api/events"
	taskapi "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/containerd/api/types"
	runtimeoptions "github.com/containerd/containerd/api/types/runtimeoptions/v1"
	"github.com/containerd/containerd/v2/core/events"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/containerd/v2/pkg/shutdown"
	"github.com/containerd/typeurl/v2"
	"github.com/moby/sys/mountinfo"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/types/known/anypb"
)

// recorder is a publisher that keeps what it is given, in order.
type recorder struct {
	mu   sync.Mutex
	list []string
}

func (r *recorder) Publish(_ context.Context, topic string, event events.Event) error {
	s := strings.TrimPrefix(topic, "/tasks/")
	switch e := event.(type) {
	case *eventstypes.TaskExit:
		s = fmt.Sprintf("%s %s %d", s, e.ID, e.ExitStatus)
	case *eventstypes.TaskExecAdded:
		s += " " + e.ExecID
	case *eventstypes.TaskExecStarted:
		s += " " + e.ExecID
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.list = append(r.list, s)
	return nil
}

func (r *recorder) Close() error { return nil }

// world is a service with a bundle, as containerd would have made them.
type world struct {
	*testing.T
	*service
	ctx      context.Context
	bundle   string
	settings string // a fc.toml
	recorder *recorder
	sd       shutdown.Service
	rootfs   []*types.Mount
	closed   bool
}

const cid = "c1"

// newWorld makes a world whose container runs args; fake goes to the fake VMM.
func newWorld(t *testing.T, fake string, args ...string) *world {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root, for mounts")
	}
	dir := t.TempDir()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	w := &world{T: t, bundle: filepath.Join(dir, strings.Repeat("long", 30), cid), settings: filepath.Join(dir, "fc.toml"), recorder: &recorder{}}
	kernel, image, root := filepath.Join(dir, "vmlinux"), filepath.Join(dir, "guest.img"), filepath.Join(dir, "root")
	w.write(kernel, "\x7fELF")
	w.write(image, strings.Repeat("\x00", 1024)+"\xe2\xe1\xf5\xe0")
	w.write(w.settings, fmt.Sprintf("vmm=%q\nkernel=%q\nimage=%q\nboot_timeout=\"10s\"\nkernel_args=\"fake=%s\"\n", self, kernel, image, fake))
	for _, d := range []string{root, w.bundle} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	w.write(filepath.Join(root, "hello"), "hello")
	w.rootfs = []*types.Mount{{Type: "bind", Source: root, Options: []string{"rbind", "rw"}}}
	w.spec(args...)
	ctx, sd := shutdown.WithShutdown(namespaces.WithNamespace(context.Background(), "test"))
	w.ctx, w.sd = ctx, sd
	if w.service, err = newService(ctx, w.recorder, sd); err != nil {
		t.Fatal(err)
	}
	w.kvm = func() (int, error) { return 4, nil }
	t.Cleanup(w.leave)
	return w
}

func (w *world) write(name, text string) {
	w.Helper()
	if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
		w.Fatal(err)
	}
}

// spec writes the bundle's config.json.
func (w *world) spec(args ...string) {
	w.Helper()
	data, err := json.Marshal(&specs.Spec{
		Process: &specs.Process{Args: args, Cwd: "/"}, Root: &specs.Root{Path: "rootfs"}, Linux: ownNetwork(),
		Mounts: []specs.Mount{{Destination: "/proc", Type: "proc", Source: "proc"}, {Destination: "/x", Source: w.settings, Options: []string{"bind", "ro"}}},
	})
	if err != nil {
		w.Fatal(err)
	}
	w.write(filepath.Join(w.bundle, "config.json"), string(data))
}

// leave ends the shim and checks that nothing of the pod is left.
func (w *world) leave() {
	if w.shutDown() {
		w.nothingLeft()
	}
}

// shutDown ends the shim; false means that it had been ended before.
func (w *world) shutDown() bool {
	if w.closed {
		return false
	}
	w.closed = true
	w.sd.Shutdown()
	select {
	case <-w.sd.Done():
	case <-time.After(15 * time.Second):
		w.Error("the shim did not shut down")
	}
	return true
}

func (w *world) nothingLeft() {
	w.Helper()
	mounts, err := mountinfo.GetMounts(mountinfo.PrefixFilter(w.bundle))
	if err != nil || len(mounts) > 0 {
		w.Errorf("mounts left: %v %v", mounts, err)
	}
	entries, err := os.ReadDir(w.bundle)
	if err != nil {
		w.Error(err)
	}
	for _, e := range entries {
		switch e.Name() {
		case "config.json", exitName, "resized", "updated", "fs.pid":
		default:
			w.Errorf("left in the bundle: %s", e.Name())
		}
	}
	// fc-vmm sends its folder in the place of what it has the shim keep.
	for deadline := time.Now().Add(5 * time.Second); w.keeps(w.bundle); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			w.Errorf("a descriptor that came from fc-vmm is left")
			break
		}
	}
	home, _ := os.Stat(w.bundle)
	pids, _ := filepath.Glob("/proc/[0-9]*")
	for _, p := range pids {
		if wd, err := os.Stat(filepath.Join(p, "cwd")); err == nil && os.SameFile(wd, home) {
			cmdline, _ := os.ReadFile(filepath.Join(p, "cmdline"))
			w.Errorf("process left: %s %q", p, cmdline)
		}
	}
}

// keeps tells whether this process has a file open.
func (w *world) keeps(path string) bool {
	w.Helper()
	fds, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		w.Fatal(err)
	}
	for _, fd := range fds {
		if target, _ := os.Readlink(filepath.Join("/proc/self/fd", fd.Name())); target == path {
			return true
		}
	}
	return false
}

// client is a task's client with its FIFOs.
type client struct {
	stdinPath, stdoutPath string
	out                   chan string
}

func (w *world) client(stdin bool) *client {
	w.Helper()
	dir := w.TempDir()
	c := &client{stdoutPath: filepath.Join(dir, "stdout"), out: make(chan string, 1)}
	if err := unix.Mkfifo(c.stdoutPath, 0o600); err != nil {
		w.Fatal(err)
	}
	if stdin {
		c.stdinPath = filepath.Join(dir, "stdin")
		if err := unix.Mkfifo(c.stdinPath, 0o600); err != nil {
			w.Fatal(err)
		}
	}
	return c
}

// read collects the output until the shim closes it.
func (c *client) read(slow time.Duration) {
	go func() {
		f, err := os.Open(c.stdoutPath)
		if err != nil {
			c.out <- err.Error()
			return
		}
		defer f.Close()
		var b strings.Builder
		buf := make([]byte, 1<<20)
		for {
			n, err := f.Read(buf)
			b.Write(buf[:n])
			if err == io.EOF {
				break
			}
			time.Sleep(slow)
		}
		c.out <- b.String()
	}()
}

func (w *world) options() *anypb.Any {
	w.Helper()
	options, err := typeurl.MarshalAnyToProto(&runtimeoptions.Options{ConfigPath: w.settings})
	if err != nil {
		w.Fatal(err)
	}
	return options
}

func (w *world) create(c *client) error {
	w.Helper()
	r := &taskapi.CreateTaskRequest{ID: cid, Bundle: w.bundle, Rootfs: w.rootfs, Options: w.options()}
	if c != nil {
		r.Stdin, r.Stdout = c.stdinPath, c.stdoutPath
	}
	_, err := w.Create(w.ctx, r)
	return err
}

func (w *world) start(execID string) {
	w.Helper()
	r, err := w.Start(w.ctx, &taskapi.StartRequest{ID: cid, ExecID: execID})
	if err != nil {
		w.Fatal(err)
	}
	if r.Pid == 0 {
		w.Error("Start answered with pid 0")
	}
}

func (w *world) run(c *client) {
	w.Helper()
	if err := w.create(c); err != nil {
		w.Fatal(err)
	}
	w.start("")
}

func (w *world) wait(execID string, want uint32) {
	w.Helper()
	ctx, cancel := context.WithTimeout(w.ctx, 10*time.Second)
	defer cancel()
	r, err := w.Wait(ctx, &taskapi.WaitRequest{ID: cid, ExecID: execID})
	if err != nil {
		w.Fatal(err)
	}
	if r.ExitStatus != want {
		w.Errorf("exit status %d, want %d", r.ExitStatus, want)
	}
}

func (w *world) exec(id string, c *client, args ...string) error {
	w.Helper()
	spec, err := typeurl.MarshalAnyToProto(&specs.Process{Args: args, Cwd: "/"})
	if err != nil {
		w.Fatal(err)
	}
	r := &taskapi.ExecProcessRequest{ID: cid, ExecID: id, Spec: spec}
	if c != nil {
		r.Stdin, r.Stdout = c.stdinPath, c.stdoutPath
	}
	_, err = w.Exec(w.ctx, r)
	return err
}

// execTo is exec with both outputs at one URI.
func (w *world) execTo(id, uri string, args ...string) error {
	w.Helper()
	spec, err := typeurl.MarshalAnyToProto(&specs.Process{Args: args, Cwd: "/"})
	if err != nil {
		w.Fatal(err)
	}
	_, err = w.Exec(w.ctx, &taskapi.ExecProcessRequest{ID: cid, ExecID: id, Spec: spec, Stdout: uri, Stderr: uri})
	return err
}

func (w *world) delete(execID string) *taskapi.DeleteResponse {
	w.Helper()
	r, err := w.Delete(w.ctx, &taskapi.DeleteRequest{ID: cid, ExecID: execID})
	if err != nil {
		w.Fatal(err)
	}
	return r
}

// events ends the shim and compares what it has published.
func (w *world) wantEvents(want ...string) {
	w.Helper()
	w.leave()
	if got, want := strings.Join(w.recorder.list, "\n"), strings.Join(want, "\n"); got != want {
		w.Errorf("events:\n%s\nwant:\n%s", got, want)
	}
}

// edit changes the bundle's config.json.
func (w *world) edit(change func(*specs.Spec)) {
	w.Helper()
	spec, err := readSpec(w.bundle)
	if err != nil {
		w.Fatal(err)
	}
	change(spec)
	data, err := json.Marshal(spec)
	if err != nil {
		w.Fatal(err)
	}
	w.write(filepath.Join(w.bundle, "config.json"), string(data))
}

// hook is a shell script as a hook, which works in the bundle.
func (*world) hook(script string) specs.Hook {
	return specs.Hook{Path: "/bin/sh", Args: []string{"sh", "-c", script}, Env: []string{"PATH=" + os.Getenv("PATH")}}
}
