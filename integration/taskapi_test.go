package integration

import (
	"context"
	"testing"
	"time"

	"github.com/containerd/containerd/api/services/tasks/v1"
	"github.com/containerd/typeurl/v2"
	"github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/fcshim/containerd-shim-fc-v2/integration/harness"
)

// taskCall is a call of containerd's task service, which passes it on to the shim.
type taskCall struct {
	name string
	do   func(ctx context.Context, api tasks.TasksClient, id string) error
}

// onTask are the calls that are made in each state of a task, and change none.
var onTask = []taskCall{
	{"state of no exec", getState("none")},
	{"start no exec", startExec("none")},
	{"wait for no exec", waitFor("none")},
	{"kill no exec", signal("none", 9)},
	{"delete no exec", deleteExec("none")},
	{"resize no exec", resize("none")},
	{"close the input of no exec", closeInput("none")},
	{"resize", resize("")},
	{"close the input", closeInput("")},
	{"close the input again", closeInput("")},
	{"kill by signal 0", signal("", 0)},
	{"kill by signal 99", signal("", 99)},
	{"update to nothing", update(`{}`)},
	{"update by bad JSON", update(`{`)},
	{"list the pids", func(ctx context.Context, api tasks.TasksClient, id string) error {
		_, err := api.ListPids(ctx, &tasks.ListPidsRequest{ContainerID: id})
		return err
	}},
	{"state", getState("")},
}

func getState(exec string) func(context.Context, tasks.TasksClient, string) error {
	return func(ctx context.Context, api tasks.TasksClient, id string) error {
		_, err := api.Get(ctx, &tasks.GetRequest{ContainerID: id, ExecID: exec})
		return err
	}
}

func startExec(exec string) func(context.Context, tasks.TasksClient, string) error {
	return func(ctx context.Context, api tasks.TasksClient, id string) error {
		_, err := api.Start(ctx, &tasks.StartRequest{ContainerID: id, ExecID: exec})
		return err
	}
}

func waitFor(exec string) func(context.Context, tasks.TasksClient, string) error {
	return func(ctx context.Context, api tasks.TasksClient, id string) error {
		_, err := api.Wait(ctx, &tasks.WaitRequest{ContainerID: id, ExecID: exec})
		return err
	}
}

func signal(exec string, number uint32) func(context.Context, tasks.TasksClient, string) error {
	return func(ctx context.Context, api tasks.TasksClient, id string) error {
		_, err := api.Kill(ctx, &tasks.KillRequest{ContainerID: id, ExecID: exec, Signal: number})
		return err
	}
}

func signalAll(number uint32) func(context.Context, tasks.TasksClient, string) error {
	return func(ctx context.Context, api tasks.TasksClient, id string) error {
		_, err := api.Kill(ctx, &tasks.KillRequest{ContainerID: id, Signal: number, All: true})
		return err
	}
}

func deleteExec(exec string) func(context.Context, tasks.TasksClient, string) error {
	return func(ctx context.Context, api tasks.TasksClient, id string) error {
		_, err := api.DeleteProcess(ctx, &tasks.DeleteProcessRequest{ContainerID: id, ExecID: exec})
		return err
	}
}

func deleteTask(ctx context.Context, api tasks.TasksClient, id string) error {
	_, err := api.Delete(ctx, &tasks.DeleteTaskRequest{ContainerID: id})
	return err
}

func resize(exec string) func(context.Context, tasks.TasksClient, string) error {
	return func(ctx context.Context, api tasks.TasksClient, id string) error {
		_, err := api.ResizePty(ctx, &tasks.ResizePtyRequest{ContainerID: id, ExecID: exec, Width: 80, Height: 25})
		return err
	}
}

func closeInput(exec string) func(context.Context, tasks.TasksClient, string) error {
	return func(ctx context.Context, api tasks.TasksClient, id string) error {
		_, err := api.CloseIO(ctx, &tasks.CloseIORequest{ContainerID: id, ExecID: exec, Stdin: true})
		return err
	}
}

func update(resources string) func(context.Context, tasks.TasksClient, string) error {
	return func(ctx context.Context, api tasks.TasksClient, id string) error {
		r, err := typeurl.MarshalAnyToProto(&specs.LinuxResources{})
		if err != nil {
			return err
		}
		r.Value = []byte(resources)
		_, err = api.Update(ctx, &tasks.UpdateTaskRequest{ContainerID: id, Resources: r})
		return err
	}
}

func pause(ctx context.Context, api tasks.TasksClient, id string) error {
	_, err := api.Pause(ctx, &tasks.PauseTaskRequest{ContainerID: id})
	return err
}

func resume(ctx context.Context, api tasks.TasksClient, id string) error {
	_, err := api.Resume(ctx, &tasks.ResumeTaskRequest{ContainerID: id})
	return err
}

// addExec adds an exec without streams.
func addExec(exec string, args ...string) func(context.Context, tasks.TasksClient, string) error {
	return func(ctx context.Context, api tasks.TasksClient, id string) error {
		p, err := typeurl.MarshalAnyToProto(&specs.Process{Args: args, Cwd: "/", Env: []string{"PATH=/bin"}})
		if err != nil {
			return err
		}
		_, err = api.Exec(ctx, &tasks.ExecProcessRequest{ContainerID: id, ExecID: exec, Spec: p})
		return err
	}
}

// states are what a task goes through, with calls that are made there and may change it. A running exec is not started again:
// runc's shim would count its end twice, and panic at the container's.
var states = []struct {
	name  string
	enter func(t *testing.T, c *harness.Containerd, task *harness.Task)
	calls []taskCall
}{
	{"created", nil, []taskCall{
		{"exec", addExec("c1", "true")},
		{"start the exec", startExec("c1")},
		{"wait for the exec", waitFor("c1")},
		{"delete the exec", deleteExec("c1")},
		{"pause", pause},
		{"resume", resume},
	}},
	{"running", start, []taskCall{
		{"start", startExec("")},
		{"delete", deleteTask},
		{"resume", resume},
		{"an exec without an id", addExec("", "true")},
		{"an exec with a bad id", addExec("a/b", "true")},
		{"an exec of no such program", addExec("e0", "/no/such/program")},
		{"start it", startExec("e0")},
		{"delete it", deleteExec("e0")},
		{"exec", addExec("e1", "sleep", "1000")},
		{"exec of the same id", addExec("e1", "true")},
		{"kill the exec before its start", signal("e1", 15)},
		{"resize the exec before its start", resize("e1")},
		{"start the exec", startExec("e1")},
		{"delete the running exec", deleteExec("e1")},
		{"resize the exec without a terminal", resize("e1")},
		{"kill the exec", signal("e1", 9)},
		{"wait for the exec", waitFor("e1")},
		{"wait for the exec again", waitFor("e1")},
		{"kill the ended exec", signal("e1", 9)},
		{"start the ended exec", startExec("e1")},
		{"delete the ended exec", deleteExec("e1")},
		{"delete the exec again", deleteExec("e1")},
		{"an exec that is never started", addExec("e2", "true")},
		{"delete it unstarted", deleteExec("e2")},
	}},
	{"paused", func(t *testing.T, c *harness.Containerd, task *harness.Task) {
		if err := task.Pause(c.Context()); err != nil {
			t.Error(err)
		}
	}, []taskCall{
		{"pause", pause},
		{"start", startExec("")},
		{"exec", addExec("p1", "true")},
		{"delete", deleteTask},
		{"resume", resume},
		{"resume again", resume},
	}},
	{"stopped", func(t *testing.T, c *harness.Containerd, task *harness.Task) {
		kill(t, c, task, 9)
		task.Await(t, long)
	}, []taskCall{
		{"wait", waitFor("")},
		{"wait again", waitFor("")},
		{"kill", signal("", 9)},
		{"kill all", signalAll(9)},
		{"start", startExec("")},
		{"pause", pause},
		{"resume", resume},
		{"exec", addExec("s1", "true")},
	}},
	{"deleted", func(t *testing.T, c *harness.Containerd, task *harness.Task) { c.Delete(t, task) }, []taskCall{
		{"delete", deleteTask},
		{"start", startExec("")},
		{"kill", signal("", 9)},
		{"wait", waitFor("")},
	}},
}

// TestTaskAPI makes the same calls with runc and in a VM, and compares how they are answered.
func TestTaskAPI(t *testing.T) {
	c := containerd(t)
	fcOnly(t, c) // and runc, for comparison
	answers := map[string]map[string]error{}
	eachRuntime(t, c, func(t *testing.T, c *harness.Containerd) {
		answers[c.Runtime] = map[string]error{}
		task := c.NewTask(t, "", nil, idle)
		for _, s := range states {
			if s.enter != nil {
				s.enter(t, c, task)
			}
			for _, call := range append(onTask[:len(onTask):len(onTask)], s.calls...) {
				ctx, cancel := context.WithTimeout(c.Context(), long)
				began := time.Now()
				err := call.do(ctx, c.Client().TaskService(), task.ID())
				cancel()
				if took := time.Since(began); took >= long {
					t.Errorf("%s: %s took %v", s.name, call.name, took)
				}
				answers[c.Runtime][s.name+": "+call.name] = err
			}
		}
	})
	for call, runc := range answers[harness.RuncRuntime] {
		fc := answers[harness.FCRuntime][call]
		// Where runc has no class for an error, any will do.
		same := status.Code(fc) == status.Code(runc) || status.Code(runc) == codes.Unknown && fc != nil
		if !same {
			t.Errorf("%s: runc answers %v; fc answers %v", call, answer(runc), answer(fc))
		}
	}
}

func answer(err error) string {
	if err == nil {
		return codes.OK.String()
	}
	return status.Code(err).String() + " (" + status.Convert(err).Message() + ")"
}

// TestCheckpoint asks for the one call that a VM's container does not have; the container goes on.
func TestCheckpoint(t *testing.T) {
	c := containerd(t)
	fcOnly(t, c)
	task := startIdle(t, c, "")
	ctx, cancel := context.WithTimeout(c.Context(), long)
	defer cancel()
	if _, err := c.Client().TaskService().Checkpoint(ctx, &tasks.CheckpointTaskRequest{ContainerID: task.ID()}); status.Code(err) != codes.Unimplemented {
		t.Errorf("the answer is %s, want %s", answer(err), codes.Unimplemented)
	}
	if out, err := execute(ctx, t, task, "e", "echo", "on"); err != nil || out != "on\n" {
		t.Errorf("exec afterwards: %q, %v", out, err)
	}
}
