package shim

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"sync"
	"time"

	eventstypes "github.com/containerd/containerd/api/events"
	taskapi "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/containerd/api/types/runc/options"
	"github.com/containerd/containerd/api/types/task"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/containerd/v2/pkg/shim"
	"github.com/containerd/containerd/v2/pkg/shutdown"
	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"github.com/containerd/ttrpc"
	"github.com/containerd/typeurl/v2"
	"github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/protobuf/types/known/emptypb"
	"google.golang.org/protobuf/types/known/timestamppb"
)

// closeTimeout bounds the end of a shim that is told to leave while its VM runs.
const closeTimeout = 10 * time.Second

// service is the task API (v3) of one pod. Its errors carry errdefs classes; UnaryServerInterceptor turns them into
// statuses.
type service struct {
	namespace string
	self      string // the shim's own binary, for paths relative to it
	kvm       kvmProbe
	shutdown  shutdown.Service
	events    *eventQueue
	buffers   *sync.Pool
	mounts    *os.File // the host's mount namespace, for hooks and loggers; nil for the shim's own

	createMu sync.Mutex // one Create or Delete at a time

	mu     sync.Mutex
	pod    *pod // nil before the first Create and after the last Delete
	closed bool
}

var _ taskapi.TTRPCTaskService = (*service)(nil)

func newService(ctx context.Context, publisher shim.Publisher, sd shutdown.Service) (*service, error) {
	ns, err := namespaces.NamespaceRequired(ctx)
	if err != nil {
		return nil, err
	}
	self, err := os.Executable()
	if err != nil {
		return nil, fmt.Errorf("find the shim's own path: %w", err)
	}
	s := &service{
		namespace: ns, self: self, kvm: probeKVM, shutdown: sd,
		events: newEventQueue(ctx, publisher), buffers: newBuffers(),
	}
	sd.RegisterCallback(s.close)
	return s, nil
}

// close ends what still runs and has its end published.
func (s *service) close(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, closeTimeout)
	defer cancel()
	s.mu.Lock()
	s.closed = true
	p := s.pod
	s.pod = nil
	containers := map[string]*container{}
	if p != nil {
		maps.Copy(containers, p.containers)
	}
	s.mu.Unlock()
	var left error
	if p != nil {
		left = p.vm.kill()
		for id, c := range containers {
			select {
			case <-c.init.exited:
			case <-ctx.Done():
			}
			c.awaitLoggers(ctx)
			left = errors.Join(left, c.host.abandon())
			if err := p.tree.remove(id); err != nil {
				log.G(ctx).WithError(err).WithField("container", id).Error("something of a container is left")
			}
		}
		_ = p.tree.close()
	}
	return errors.Join(left, s.events.close(ctx))
}

// RegisterTTRPC implements shim.TTRPCService.
func (s *service) RegisterTTRPC(server *ttrpc.Server) error {
	taskapi.RegisterTTRPCTaskService(server, s)
	return nil
}

func (s *service) container(id string) (*container, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.pod != nil && s.pod.containers[id] != nil {
		return s.pod.containers[id], nil
	}
	return nil, fmt.Errorf("container %s: %w", id, errdefs.ErrNotFound)
}

func (s *service) process(id, execID string) (*container, *process, error) {
	c, err := s.container(id)
	if err != nil {
		return nil, nil, err
	}
	p, err := c.process(execID)
	return c, p, err
}

// Create boots the VM and prepares the container.
func (s *service) Create(ctx context.Context, r *taskapi.CreateTaskRequest) (*taskapi.CreateTaskResponse, error) {
	c, err := s.create(ctx, r)
	if err != nil {
		return nil, err
	}
	pid := c.init.state().pid
	s.events.send(&eventstypes.TaskCreate{
		ContainerID: r.ID, Bundle: r.Bundle, Rootfs: r.Rootfs, Checkpoint: r.Checkpoint, Pid: pid,
		IO: &eventstypes.TaskIO{Stdin: r.Stdin, Stdout: r.Stdout, Stderr: r.Stderr, Terminal: r.Terminal},
	})
	lasting := context.WithoutCancel(ctx)
	go s.forward(lasting, c.vm)
	go c.watch(lasting, c.init)
	go c.host.watch(lasting, c)
	return &taskapi.CreateTaskResponse{Pid: pid}, nil
}

// Start starts init or an exec.
func (s *service) Start(ctx context.Context, r *taskapi.StartRequest) (*taskapi.StartResponse, error) {
	c, p, err := s.process(r.ID, r.ExecID)
	if err != nil {
		return nil, err
	}
	if err := c.start(ctx, p); err != nil {
		return nil, c.vm.blame(err)
	}
	return &taskapi.StartResponse{Pid: p.state().pid}, nil
}

// Exec adds a process to a running container.
func (s *service) Exec(_ context.Context, r *taskapi.ExecProcessRequest) (*emptypb.Empty, error) {
	c, err := s.container(r.ID)
	if err != nil {
		return nil, err
	}
	if r.ExecID == "" {
		return nil, fmt.Errorf("exec id is empty: %w", errdefs.ErrInvalidArgument)
	}
	p := newProcess(r.ExecID, stdioPaths{
		ID: r.ExecID, Stdin: r.Stdin, Stdout: r.Stdout, Stderr: r.Stderr, Terminal: r.Terminal, Mounts: s.mounts,
	})
	if p.spec, err = execSpec(r.Spec.GetValue(), r.Terminal); err != nil {
		return nil, err
	}
	return &emptypb.Empty{}, c.addExec(p)
}

// execSpec rewrites a process for the guest as guestSpec does with init's.
func execSpec(data []byte, terminal bool) ([]byte, error) {
	var p specs.Process
	if err := json.Unmarshal(data, &p); err != nil {
		return nil, fmt.Errorf("exec's process: %w: %w", err, errdefs.ErrInvalidArgument)
	}
	if len(p.Args) == 0 {
		return nil, fmt.Errorf("exec's args are empty: there is nothing to run: %w", errdefs.ErrInvalidArgument)
	}
	p.ApparmorProfile, p.SelinuxLabel, p.ExecCPUAffinity = "", "", nil
	p.Terminal = terminal
	return json.Marshal(&p)
}

// Delete forgets a process that has ended; with init goes the container, and with the last container the VM.
func (s *service) Delete(ctx context.Context, r *taskapi.DeleteRequest) (*taskapi.DeleteResponse, error) {
	c, p, err := s.process(r.ID, r.ExecID)
	if err != nil {
		return nil, err
	}
	st := p.state()
	if p == c.init {
		st, err = s.remove(ctx, c)
	} else {
		err = c.removeExec(ctx, p)
	}
	if err != nil {
		return nil, err
	}
	return &taskapi.DeleteResponse{Pid: st.pid, ExitStatus: st.exitStatus, ExitedAt: timestamp(st.exitedAt)}, nil
}

// State describes a process.
func (s *service) State(_ context.Context, r *taskapi.StateRequest) (*taskapi.StateResponse, error) {
	c, p, err := s.process(r.ID, r.ExecID)
	if err != nil {
		return nil, err
	}
	st := p.state()
	c.mu.Lock()
	if p == c.init && c.paused && st.status == task.Status_RUNNING {
		st.status = task.Status_PAUSED
	}
	c.mu.Unlock()
	id := r.ExecID
	if id == "" {
		id = c.id
	}
	return &taskapi.StateResponse{
		ID: id, Bundle: c.bundle, Pid: st.pid, Status: st.status, ExecID: r.ExecID,
		Stdin: p.paths.Stdin, Stdout: p.paths.Stdout, Stderr: p.paths.Stderr, Terminal: p.paths.Terminal,
		ExitStatus: st.exitStatus, ExitedAt: timestamp(st.exitedAt),
	}, nil
}

// Wait answers when a process has ended and its client has its output.
func (s *service) Wait(ctx context.Context, r *taskapi.WaitRequest) (*taskapi.WaitResponse, error) {
	_, p, err := s.process(r.ID, r.ExecID)
	if err != nil {
		return nil, err
	}
	select {
	case <-p.exited:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	st := p.state()
	return &taskapi.WaitResponse{ExitStatus: st.exitStatus, ExitedAt: timestamp(st.exitedAt)}, nil
}

// Kill sends a signal.
func (s *service) Kill(ctx context.Context, r *taskapi.KillRequest) (*emptypb.Empty, error) {
	c, p, err := s.process(r.ID, r.ExecID)
	if err != nil {
		return nil, err
	}
	return &emptypb.Empty{}, c.kill(ctx, p, r.Signal, r.All)
}

// CloseIO lets a process see the end of its input.
func (s *service) CloseIO(_ context.Context, r *taskapi.CloseIORequest) (*emptypb.Empty, error) {
	_, p, err := s.process(r.ID, r.ExecID)
	if err != nil {
		return nil, err
	}
	if io := p.stdio(); io != nil && r.Stdin {
		io.closeStdin()
	}
	return &emptypb.Empty{}, nil
}

// ResizePty sets the size of a process's terminal.
func (s *service) ResizePty(ctx context.Context, r *taskapi.ResizePtyRequest) (*emptypb.Empty, error) {
	c, p, err := s.process(r.ID, r.ExecID)
	if err != nil {
		return nil, err
	}
	return &emptypb.Empty{}, c.resize(ctx, p, r.Width, r.Height)
}

// Pids lists pids of this host, which is what clients take them for: those of the processes and threads that stand for init and
// the execs. What these start in the guest has none.
func (s *service) Pids(_ context.Context, r *taskapi.PidsRequest) (*taskapi.PidsResponse, error) {
	c, err := s.container(r.ID)
	if err != nil {
		return nil, err
	}
	list := []*task.ProcessInfo{{Pid: c.init.state().pid}}
	c.mu.Lock()
	defer c.mu.Unlock()
	for id, p := range c.execs {
		st := p.state()
		if st.status != task.Status_RUNNING || st.pid == 0 {
			continue
		}
		details, err := typeurl.MarshalAnyToProto(&options.ProcessDetails{ExecID: id})
		if err != nil {
			return nil, fmt.Errorf("encode the details of exec %s: %w", id, err)
		}
		list = append(list, &task.ProcessInfo{Pid: st.pid, Info: details})
	}
	return &taskapi.PidsResponse{Processes: list}, nil
}

// Connect tells who serves the task. It never fails: containerd asks it whether the shim is alive.
func (s *service) Connect(_ context.Context, r *taskapi.ConnectRequest) (*taskapi.ConnectResponse, error) {
	resp := &taskapi.ConnectResponse{ShimPid: uint32(os.Getpid())}
	if c, err := s.container(r.ID); err == nil {
		resp.TaskPid = c.init.state().pid
	}
	return resp, nil
}

// Shutdown ends the shim once it has no container left; containerd sends it after every Delete.
func (s *service) Shutdown(context.Context, *taskapi.ShutdownRequest) (*emptypb.Empty, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.pod == nil {
		s.shutdown.Shutdown()
	}
	return &emptypb.Empty{}, nil
}

// Pause freezes a container.
func (s *service) Pause(ctx context.Context, r *taskapi.PauseRequest) (*emptypb.Empty, error) {
	c, err := s.container(r.ID)
	if err != nil {
		return nil, err
	}
	return &emptypb.Empty{}, c.setPaused(ctx, true)
}

// Resume thaws a container.
func (s *service) Resume(ctx context.Context, r *taskapi.ResumeRequest) (*emptypb.Empty, error) {
	c, err := s.container(r.ID)
	if err != nil {
		return nil, err
	}
	return &emptypb.Empty{}, c.setPaused(ctx, false)
}

// Stats are the metrics of the container's cgroup in the guest.
func (s *service) Stats(ctx context.Context, r *taskapi.StatsRequest) (*taskapi.StatsResponse, error) {
	c, err := s.container(r.ID)
	if err != nil {
		return nil, err
	}
	metrics, err := c.stats(ctx)
	if err != nil {
		return nil, err
	}
	return &taskapi.StatsResponse{Stats: metrics}, nil
}

// Checkpoint is not supported.
func (s *service) Checkpoint(context.Context, *taskapi.CheckpointTaskRequest) (*emptypb.Empty, error) {
	return nil, fmt.Errorf("checkpoint: %w", errdefs.ErrNotImplemented)
}

// Update changes the limits of a container, within the size of its VM.
func (s *service) Update(ctx context.Context, r *taskapi.UpdateTaskRequest) (*emptypb.Empty, error) {
	c, err := s.container(r.ID)
	if err != nil {
		return nil, err
	}
	return &emptypb.Empty{}, c.update(ctx, r.Resources.GetValue())
}

// timestamp is nil for a process that has not ended.
func timestamp(t time.Time) *timestamppb.Timestamp {
	if t.IsZero() {
		return nil
	}
	return timestamppb.New(t)
}
