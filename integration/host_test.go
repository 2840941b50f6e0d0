package integration

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/containers"
	"github.com/containerd/containerd/v2/pkg/cio"
	"github.com/containerd/containerd/v2/pkg/oci"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/fcshim/containerd-shim-fc-v2/integration/harness"
)

// TestHostPid looks at a task's pid as host programs do.
func TestHostPid(t *testing.T) {
	eachRuntime(t, containerd(t), func(t *testing.T, c *harness.Containerd) {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, "volume"), nil, 0o600); err != nil {
			t.Fatal(err)
		}
		task := c.StartTask(t, "", nil,
			oci.WithProcessArgs("sh", "-c", `trap "exit 7" TERM; echo mine >/made; echo ready; while :; do sleep 0.1; done`),
			oci.WithMounts([]specs.Mount{{Destination: "/vol", Type: "bind", Source: dir, Options: []string{"rbind", "rw"}}}))
		task.Stdout.Await(t, "ready", harness.Slow(time.Minute))
		at := fmt.Sprintf("/proc/%d/", task.Pid())
		if got, err := os.ReadFile(at + "root/made"); err != nil || string(got) != "mine\n" {
			t.Errorf("its root has %q, %v", got, err)
		}
		if _, err := os.Stat(at + "root/vol/volume"); err != nil {
			t.Errorf("its volume: %v", err)
		}
		if same(t, at+"root/.", "/") {
			t.Error("its root is the host's")
		}
		if same(t, at+"ns/net", "/proc/self/ns/net") {
			t.Error("its network is the host's")
		}
		ctx, cancel := context.WithTimeout(c.Context(), harness.Slow(time.Minute))
		defer cancel()
		pids := map[uint32]bool{task.Pid(): true}
		for _, id := range []string{"one", "two"} {
			spec := &specs.Process{Args: []string{"/bin/sleep", "1000"}, Cwd: "/", User: specs.User{}}
			p, err := task.Exec(ctx, id, spec, cio.NullIO)
			if err == nil {
				err = p.Start(ctx)
			}
			if err != nil {
				t.Fatal(err)
			}
			if pids[p.Pid()] || unix.Kill(int(p.Pid()), 0) != nil {
				t.Errorf("pid %d of %s is not its own", p.Pid(), id)
			}
			pids[p.Pid()] = true
		}
		listed, err := task.Pids(ctx)
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range listed {
			delete(pids, p.Pid)
		}
		if len(pids) > 0 {
			t.Errorf("the task's pids %v lack %v", listed, pids)
		}
		// A signal from the host, to the process on the host.
		if err := unix.Kill(int(task.Pid()), unix.SIGTERM); err != nil {
			t.Fatal(err)
		}
		if got := task.Await(t, harness.Slow(time.Minute)); got != 7 {
			t.Errorf("exit status %d after a SIGTERM, want 7", got)
		}
	})
}

func same(t *testing.T, a, b string) bool {
	t.Helper()
	var x, y unix.Stat_t
	if err := errors.Join(unix.Stat(a, &x), unix.Stat(b, &y)); err != nil {
		t.Error(err)
	}
	return x.Dev == y.Dev && x.Ino == y.Ino
}

// TestHooks has a hook at each point note its name and what it was told, and then one fail.
func TestHooks(t *testing.T) {
	eachRuntime(t, containerd(t), func(t *testing.T, c *harness.Containerd) {
		dir := t.TempDir()
		trace := filepath.Join(dir, "trace")
		hook := func(script string) []specs.Hook {
			return []specs.Hook{{Path: "/bin/sh", Args: []string{"sh", "-c", script}, Env: []string{"PATH=" + os.Getenv("PATH")}}}
		}
		note := func(point string) []specs.Hook {
			return hook(`s=$(cat); st=${s#*status\":\"}; a=${s#*fc.test\":\"}; [ "$(readlink /proc/self/ns/mnt)" = ` + readlink(t, "/proc/self/ns/mnt") + ` ] && h=host; echo ` + point + ` ${st%%\"*} ${a%%\"*} $h >>` + trace)
		}
		withHooks := func(_ context.Context, _ oci.Client, _ *containers.Container, s *specs.Spec) error {
			s.Annotations = map[string]string{"fc.test": "noted"}
			s.Hooks = &specs.Hooks{CreateRuntime: note("createRuntime"), Poststart: note("poststart"), Poststop: note("poststop")}
			//lint:ignore SA1019 deprecated, and still in use
			s.Hooks.Prestart = note("prestart")
			return nil
		}
		ctx, cancel := context.WithTimeout(c.Context(), harness.Slow(time.Minute))
		defer cancel()
		task := c.StartTask(t, "", nil, oci.WithProcessArgs("true"), withHooks)
		if got := task.Await(t, harness.Slow(time.Minute)); got != 0 {
			t.Errorf("exit status %d", got)
		}
		if _, err := task.Delete(ctx); err != nil {
			t.Fatal(err)
		}
		poststart := "running"
		if !c.FC() {
			poststart = "created" // runc is not as OCI says there
		}
		want := "prestart creating noted host\ncreateRuntime creating noted host\npoststart " + poststart + " noted host\npoststop stopped noted host\n"
		if got, err := os.ReadFile(trace); err != nil || string(got) != want {
			t.Errorf("hooks: %q, %v, want %q", got, err, want)
		}
		os.Remove(trace)

		failing := func(_ context.Context, _ oci.Client, _ *containers.Container, s *specs.Spec) error {
			s.Hooks = &specs.Hooks{CreateRuntime: hook("echo not today >&2; exit 3"), Poststop: hook("echo cleaned >>" + trace)}
			return nil
		}
		container, err := c.NewContainer(ctx, t, "", oci.WithProcessArgs("true"), failing)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := container.NewTask(ctx, cio.NullIO); err == nil || !strings.Contains(err.Error(), "exit status 3") || !strings.Contains(err.Error(), "not today") {
			t.Errorf("a failing hook: %v", err)
		}
		if got, err := os.ReadFile(trace); err != nil || string(got) != "cleaned\n" {
			t.Errorf("after a failing hook: %q, %v", got, err)
		}
	})
}

func readlink(t *testing.T, name string) string {
	t.Helper()
	s, err := os.Readlink(name)
	if err != nil {
		t.Fatal(err)
	}
	return "'" + s + "'"
}
