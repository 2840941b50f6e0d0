package harness

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/containerd/api/events"
	"github.com/containerd/containerd/api/types/runtimeoptions/v1"
	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/pkg/cio"
	"github.com/containerd/containerd/v2/pkg/oci"
	"github.com/containerd/errdefs"
	"github.com/containerd/typeurl/v2"
)

// Task is a container's task that the Go client started; its output is collected.
type Task struct {
	client.Task
	Container client.Container
	// Stdout holds a terminal's output as well.
	Stdout, Stderr *Buffer
	// Exit gets the task's exit status once.
	Exit <-chan client.ExitStatus
}

// NewTask makes a container and its task by containerd's Go client, with what opts say on top of Image's defaults, and does not
// start it. At the test's end the task is killed, and both are deleted.
func (c *Containerd) NewTask(t testing.TB, config string, stdin io.Reader, opts ...oci.SpecOpts) *Task {
	t.Helper()
	ctx, cancel := context.WithTimeout(c.Context(), commandTimeout)
	defer cancel()
	container, err := c.NewContainer(ctx, t, config, opts...)
	if err != nil {
		t.Fatal(err)
	}
	task := &Task{Container: container, Stdout: &Buffer{}, Stderr: &Buffer{}}
	spec, err := container.Spec(ctx)
	if err != nil {
		t.Fatal(err)
	}
	// FIFOs are the client's to remove.
	streams := []cio.Opt{cio.WithFIFODir(t.TempDir())}
	if spec.Process != nil && spec.Process.Terminal {
		streams = append(streams, cio.WithStreams(stdin, task.Stdout, nil), cio.WithTerminal)
	} else {
		streams = append(streams, cio.WithStreams(stdin, task.Stdout, task.Stderr))
	}
	if task.Task, err = container.NewTask(ctx, cio.NewCreator(streams...)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if _, err := c.deleteTask(task, client.WithProcessKill); err != nil && !errdefs.IsNotFound(err) {
			t.Errorf("delete the task of %s: %v", container.ID(), err)
		}
		if io := task.IO(); io != nil {
			io.Cancel()
			_ = io.Close()
		}
	})
	// Waiting must have begun before the start, or a quick end is missed; it lasts as long as the task.
	if task.Exit, err = task.Wait(c.Context()); err != nil {
		t.Fatal(err)
	}
	return task
}

// NewContainer makes a container, which is deleted at the test's end.
func (c *Containerd) NewContainer(ctx context.Context, t testing.TB, config string, opts ...oci.SpecOpts) (client.Container, error) {
	id := c.ID(t)
	image, err := c.client.GetImage(ctx, Image)
	if err != nil {
		return nil, err
	}
	var options any
	if c.FC() {
		if config == "" {
			config = c.defaults()
		}
		options = &runtimeoptions.Options{ConfigPath: config}
	}
	container, err := c.client.NewContainer(ctx, id,
		client.WithImage(image),
		client.WithNewSnapshot(id, image),
		client.WithRuntime(c.Runtime, options),
		client.WithNewSpec(append([]oci.SpecOpts{oci.WithImageConfig(image)}, opts...)...),
	)
	if err != nil {
		return nil, err
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(c.Context(), commandTimeout)
		defer cancel()
		// Through the client of now: containerd may have been restarted since.
		again, err := c.client.LoadContainer(ctx, id)
		if err == nil {
			err = again.Delete(ctx, client.WithSnapshotCleanup)
		}
		if err != nil && !errdefs.IsNotFound(err) {
			t.Errorf("delete container %s: %v", id, err)
		}
	})
	return container, nil
}

// StartTask starts a container with a task and returns it running.
func (c *Containerd) StartTask(t testing.TB, config string, stdin io.Reader, opts ...oci.SpecOpts) *Task {
	t.Helper()
	task := c.NewTask(t, config, stdin, opts...)
	ctx, cancel := context.WithTimeout(c.Context(), commandTimeout)
	defer cancel()
	if err := task.Start(ctx); err != nil {
		t.Fatalf("start the task of %s: %v", task.ID(), err)
	}
	return task
}

// Await waits for the task's end and returns its exit status.
func (task *Task) Await(t testing.TB, limit time.Duration) uint32 {
	t.Helper()
	select {
	case s := <-task.Exit:
		code, _, err := s.Result()
		if err != nil {
			t.Fatalf("wait for the task %s: %v", task.ID(), err)
		}
		return code
	case <-time.After(limit):
		t.Fatalf("the task %s was not reported as exited within %v", task.ID(), limit)
		return 0
	}
}

// Delete deletes the ended task and returns its exit status.
func (c *Containerd) Delete(t testing.TB, task *Task) uint32 {
	t.Helper()
	code, err := c.deleteTask(task)
	if err != nil {
		t.Fatalf("delete the task of %s: %v", task.ID(), err)
	}
	return code
}

func (c *Containerd) deleteTask(task *Task, opts ...client.ProcessDeleteOpts) (uint32, error) {
	ctx, cancel := context.WithTimeout(c.Context(), commandTimeout)
	defer cancel()
	container, err := c.client.LoadContainer(ctx, task.ID())
	if err != nil {
		return 0, err
	}
	again, err := container.Task(ctx, nil)
	if err != nil {
		return 0, err
	}
	s, err := again.Delete(ctx, opts...)
	if err != nil {
		return 0, err
	}
	if io := task.IO(); io != nil {
		io.Wait()
	}
	return s.ExitCode(), nil
}

// ExitEvents subscribes to the events that tell of the end of container id's init process. The channel gets the first one.
func (c *Containerd) ExitEvents(t testing.TB, id string) <-chan *events.TaskExit {
	t.Helper()
	ctx, cancel := context.WithCancel(c.Context())
	t.Cleanup(cancel)
	seen, errs := c.client.Subscribe(ctx, `topic=="/tasks/exit"`)
	exits := make(chan *events.TaskExit, 1)
	go func() {
		for {
			select {
			case e := <-seen:
				v, err := typeurl.UnmarshalAny(e.Event)
				if exit, ok := v.(*events.TaskExit); err == nil && ok && exit.ContainerID == id && exit.ID == id {
					exits <- exit
					return
				}
			case <-errs:
				return
			}
		}
	}()
	return exits
}

// Role is a process's part in a container.
type Role string

// The roles whose deaths the tests look at.
const (
	Shim Role = "shim"
	// VMM is, with runc, the container's init process: that which runs the container's code.
	VMM Role = "vmm"
	// Files is the process that serves a container's files to its VM.
	Files Role = "files"
)

// ErrNoProcess says that no process plays a role.
var ErrNoProcess = errors.New("no such process")

// FindProcess returns the pid of the process that plays role for container id.
func (c *Containerd) FindProcess(id string, role Role) (int, error) {
	for _, p := range c.processes() {
		args := p.args
		switch {
		case !slices.Contains(args, id):
		case role == Shim && strings.HasPrefix(p.name, "containerd-shim") && !slices.Contains(args, "start") && !slices.Contains(args, "delete"):
			return p.pid, nil
		case role == VMM && c.FC() && p.name == "fc-vmm" && slices.Contains(args, "--api-fd"),
			role == Files && p.name == "fc-vmm" && args[1] == "fs":
			return p.pid, nil
		}
	}
	if role == VMM && !c.FC() {
		if pid, err := c.initProcess(id); err == nil {
			return pid, nil
		}
	}
	return 0, fmt.Errorf("%s of %s: %w", role, id, ErrNoProcess)
}

func (c *Containerd) initProcess(id string) (int, error) {
	ctx, cancel := context.WithTimeout(c.Context(), settleTimeout)
	defer cancel()
	container, err := c.client.LoadContainer(ctx, id)
	if err != nil {
		return 0, err
	}
	task, err := container.Task(ctx, nil)
	if err != nil {
		return 0, err
	}
	return int(task.Pid()), nil
}

// KillProcess sends SIGKILL to the process that plays role for container id.
func (c *Containerd) KillProcess(t testing.TB, id string, role Role) {
	t.Helper()
	pid, err := c.FindProcess(id, role)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("SIGKILL to the %s of %s, pid %d", role, id, pid)
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Fatalf("kill pid %s: %v", strconv.Itoa(pid), err)
	}
}
