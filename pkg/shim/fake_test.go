package shim

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/cgroups/v3/cgroup2/stats"
	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"github.com/containerd/ttrpc"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"github.com/fcshim/containerd-shim-fc-v2/pkg/agent"
	"github.com/fcshim/containerd-shim-fc-v2/pkg/agent/agentpb"
	"github.com/fcshim/containerd-shim-fc-v2/pkg/hold"
	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/config"
)

// The test binary is also its own fc-vmm: called as the shim calls one, it serves the API and plays a guest whose
// "containers" are processes of the host. What it shall do wrong comes in the kernel arguments, as fake=….

func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == "hold" {
		if err := hold.Main(3, 4); err != nil {
			panic(err)
		}
		os.Exit(0)
	}
	if len(os.Args) > 1 && os.Args[1] == "fs" {
		fakeMetrics(`"fs_shared":{"request_count":5}`)
		if err := os.WriteFile("fs.pid", strconv.AppendInt(nil, int64(os.Getpid()), 10), 0o600); err != nil {
			panic(err)
		}
		_, _ = io.Copy(io.Discard, os.NewFile(3, "parent"))
		os.Exit(0)
	}
	for _, a := range os.Args[1:] {
		if a == "--api-fd" {
			fakeVMM()
		}
		if a == fakeLoggerArg {
			fakeLogger(os.Args[1:])
		}
	}
	if os.Getuid() != 0 || os.Getenv("FCSHIM_PRIVATE") != "" {
		os.Exit(m.Run())
	}
	// Mounts of these tests shall be seen by them only.
	cmd := exec.Command(os.Args[0], os.Args[1:]...)
	cmd.Env = append(os.Environ(), "FCSHIM_PRIVATE=1")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS}
	if err := cmd.Run(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}

func fakeVMM() {
	go func() {
		_, _ = io.Copy(io.Discard, os.NewFile(3, "parent"))
		os.Exit(0)
	}()
	start := os.NewFile(5, "start")
	text, err := io.ReadAll(start)
	if err != nil {
		panic(err)
	}
	answer := func(a config.StartAnswer) {
		text, _ := json.Marshal(a)
		// In the place of KVM's VM and of a TAP, and more than there is room for.
		self, err := os.Open(".")
		if err != nil {
			panic(err)
		}
		fd := int(self.Fd())
		if err := unix.Sendmsg(int(start.Fd()), text, unix.UnixRights(fd, fd, fd, fd), nil, 0); err != nil {
			panic(err)
		}
		self.Close()
		start.Close()
	}
	var vm config.VM
	if err := json.Unmarshal(text, &vm); err != nil {
		panic(err)
	}
	args, fake := *vm.BootSource.BootArgs, ""
	if _, f, ok := strings.Cut(args, "fake="); ok {
		fake, _, _ = strings.Cut(f, " ")
	}
	if strings.Contains(args, "fc_boot_timer=1") != slices.Contains(os.Args, "--boot-timer") {
		panic("a boot timer on one side only")
	}
	switch fake {
	case "refuse":
		fmt.Fprintln(os.Stderr, "fc-vmm: the last of several lines")
		answer(config.StartAnswer{Fault: "boot_args: not\ntoday", Invalid: true})
		os.Exit(config.StatusBadConfig)
	case "die":
		fmt.Fprintln(os.Stderr, "fc-vmm: something is wrong")
		os.Exit(config.StatusBadConfig)
	case "crash":
		fmt.Fprintln(os.Stderr, "panic: a bug\n\ngoroutine 1 [running]:\nmain.main()")
		os.Exit(2)
	case "nofiles": // the file server dies, and the VM's start with it
		pid, err := os.ReadFile("fs.pid")
		for ; err != nil; pid, err = os.ReadFile("fs.pid") {
			time.Sleep(time.Millisecond)
		}
		n, err := strconv.Atoi(string(pid))
		if err == nil {
			err = syscall.Kill(n, syscall.SIGKILL)
		}
		if err != nil {
			panic(err)
		}
		answer(config.StartAnswer{Fault: "vhost-user: EOF", Invalid: true})
		os.Exit(config.StatusBadConfig)
	}
	answer(config.StartAnswer{})
	fakeMetrics(`"vcpu":{"exit_io_in":7},"block_root":{"read_count":3}`)
	switch fake {
	case "panic":
		time.Sleep(50 * time.Millisecond)
		os.Exit(config.StatusPanicked)
	case "silent":
		select {}
	}
	fakeGuest(fake)
	os.Exit(82)
}

// fakeMetrics writes a line where the real one does.
func fakeMetrics(groups string) {
	i := slices.Index(os.Args, "--metrics-path")
	if i < 0 {
		return
	}
	f, err := os.OpenFile(os.Args[i+1], os.O_RDWR, 0)
	if err != nil {
		panic(err)
	}
	if _, err := f.WriteString(`{"utc_timestamp_ms":1,` + groups + "}\n"); err != nil {
		panic(err)
	}
}

func fakeGuest(fake string) {
	conn, err := net.Dial("unix", fmt.Sprintf("%s_%d", vsockSocket, agent.ControlPort))
	if err != nil {
		panic(err)
	}
	server, err := ttrpc.NewServer(ttrpc.WithUnaryServerInterceptor(
		func(ctx context.Context, u ttrpc.Unmarshaler, _ *ttrpc.UnaryServerInfo, m ttrpc.Method) (any, error) {
			resp, err := m(ctx, u)
			return resp, errgrpc.ToGRPC(err)
		}))
	if err != nil {
		panic(err)
	}
	a := &fakeAgent{fake: fake, procs: map[string]*fakeProc{}, oom: make(chan string, 1), conn: conn}
	agentpb.RegisterAgentService(server, a)
	_ = server.Serve(context.Background(), &oneConn{conn: conn})
	select {}
}

// oneConn is a listener that gives one connection.
type oneConn struct {
	once sync.Once
	conn net.Conn
}

func (o *oneConn) Accept() (c net.Conn, err error) {
	o.once.Do(func() { c = o.conn })
	if c == nil {
		select {}
	}
	return c, nil
}
func (o *oneConn) Close() error   { return nil }
func (o *oneConn) Addr() net.Addr { return o.conn.LocalAddr() }

type fakeProc struct {
	cmd     *exec.Cmd
	conns   []net.Conn
	started chan struct{}
	ended   chan struct{}
	once    sync.Once
	status  uint32
}

type fakeAgent struct {
	agentpb.AgentService
	fake string
	conn net.Conn
	oom  chan string

	asked atomic.Uint64 // calls of Stats
	mu    sync.Mutex
	procs map[string]*fakeProc
}

func (a *fakeAgent) add(id string, p *specs.Process, s *agentpb.Streams) error {
	f := &fakeProc{cmd: exec.Command(p.Args[0], p.Args[1:]...), started: make(chan struct{}), ended: make(chan struct{})}
	f.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	for i, id := range []uint64{s.GetStdin(), s.GetStdout(), s.GetStderr()} {
		if id == 0 {
			continue
		}
		conn, err := net.Dial("unix", fmt.Sprintf("%s_%d", vsockSocket, agent.StreamPort))
		if err != nil {
			return err
		}
		if err := agent.WriteHeader(conn, id); err != nil {
			return err
		}
		f.conns = append(f.conns, conn)
		// As files, so that the process has the socket itself and ends it by its own end.
		file, err := conn.(*net.UnixConn).File()
		if err != nil {
			return err
		}
		switch i {
		case 0:
			f.cmd.Stdin = file
		case 1:
			f.cmd.Stdout = file
		case 2:
			f.cmd.Stderr = file
		}
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.procs[id] = f
	return nil
}

func (a *fakeAgent) get(cid, eid string) (*fakeProc, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if p := a.procs[cid+"/"+eid]; p != nil {
		return p, nil
	}
	return nil, fmt.Errorf("process: %w", errdefs.ErrNotFound)
}

func (p *fakeProc) end(status uint32) {
	p.once.Do(func() {
		for _, f := range []any{p.cmd.Stdin, p.cmd.Stdout, p.cmd.Stderr} {
			if file, ok := f.(*os.File); ok {
				file.Close()
			}
		}
		for _, c := range p.conns {
			c.Close()
		}
		p.status = status
		close(p.ended)
	})
}

func (a *fakeAgent) Create(_ context.Context, r *agentpb.CreateRequest) (*agentpb.CreateResponse, error) {
	if a.fake == "nocreate" {
		return nil, fmt.Errorf("no container today: %w", errdefs.ErrInvalidArgument)
	}
	var spec specs.Spec
	if err := json.Unmarshal(r.Spec, &spec); err != nil {
		return nil, err
	}
	// The guest's view of the tree must be there in ours.
	if _, err := os.Stat(filepath.Join(sharedName, r.ContainerId, rootfsName, "hello")); err != nil {
		return nil, err
	}
	return &agentpb.CreateResponse{Pid: 1, SetupNs: 1}, a.add(r.ContainerId+"/", spec.Process, r.Streams)
}

func (a *fakeAgent) Info(context.Context, *agentpb.InfoRequest) (*agentpb.InfoResponse, error) {
	return &agentpb.InfoResponse{Version: "fake"}, nil
}

func (a *fakeAgent) Clock(context.Context, *agentpb.ClockRequest) (*agentpb.ClockResponse, error) {
	return &agentpb.ClockResponse{NowNs: time.Now().UnixNano()}, nil
}

func (a *fakeAgent) Exec(_ context.Context, r *agentpb.ExecRequest) (*agentpb.ExecResponse, error) {
	var p specs.Process
	if err := json.Unmarshal(r.Process, &p); err != nil {
		return nil, err
	}
	return &agentpb.ExecResponse{}, a.add(r.ContainerId+"/"+r.ExecId, &p, r.Streams)
}

func (a *fakeAgent) Start(_ context.Context, r *agentpb.StartRequest) (*agentpb.StartResponse, error) {
	p, err := a.get(r.ContainerId, r.ExecId)
	if err != nil {
		return nil, err
	}
	if err := p.cmd.Start(); err != nil {
		p.end(255)
		return nil, err
	}
	close(p.started)
	go func() {
		_ = p.cmd.Wait()
		ws := p.cmd.ProcessState.Sys().(syscall.WaitStatus)
		status := uint32(ws.ExitStatus())
		if ws.Signaled() {
			status = 128 + uint32(ws.Signal())
		}
		if r.ExecId == "" { // the pid namespace ends with init
			a.mu.Lock()
			for id, e := range a.procs {
				if strings.HasPrefix(id, r.ContainerId+"/") && e != p && e.cmd.Process != nil {
					_ = syscall.Kill(-e.cmd.Process.Pid, syscall.SIGKILL)
				}
			}
			a.mu.Unlock()
		}
		p.end(status)
	}()
	return &agentpb.StartResponse{Pid: uint32(p.cmd.Process.Pid)}, nil
}

func (a *fakeAgent) Wait(ctx context.Context, r *agentpb.WaitRequest) (*agentpb.WaitResponse, error) {
	p, err := a.get(r.ContainerId, r.ExecId)
	if err != nil {
		return nil, err
	}
	select {
	case <-p.ended:
		return &agentpb.WaitResponse{ExitStatus: p.status}, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (a *fakeAgent) Kill(_ context.Context, r *agentpb.KillRequest) (*agentpb.KillResponse, error) {
	p, err := a.get(r.ContainerId, r.ExecId)
	if err != nil {
		return nil, err
	}
	select {
	case <-p.started:
		if syscall.Signal(r.Signal) == syscall.SIGUSR1 {
			a.oom <- r.ContainerId
			return &agentpb.KillResponse{}, nil
		}
		switch a.fake {
		case "deafkill":
			select {} // not even the end of the call is heeded
		case "refusekill":
			return nil, errors.New("no")
		}
		_ = syscall.Kill(-p.cmd.Process.Pid, syscall.Signal(r.Signal))
	default:
		p.end(128 + r.Signal)
	}
	return &agentpb.KillResponse{}, nil
}

func (a *fakeAgent) Delete(_ context.Context, r *agentpb.DeleteRequest) (*agentpb.DeleteResponse, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	delete(a.procs, r.ContainerId+"/"+r.ExecId)
	return &agentpb.DeleteResponse{}, nil
}

func (a *fakeAgent) ResizePty(_ context.Context, r *agentpb.ResizePtyRequest) (*agentpb.ResizePtyResponse, error) {
	if a.fake == "noresize" {
		return nil, errors.New("no")
	}
	return &agentpb.ResizePtyResponse{}, os.WriteFile("resized", fmt.Appendf(nil, "%dx%d", r.Width, r.Height), 0o600)
}

func (a *fakeAgent) Stats(context.Context, *agentpb.StatsRequest) (*agentpb.StatsResponse, error) {
	if a.fake == "nostats" {
		return nil, errors.New("no")
	}
	m := &stats.Metrics{Pids: &stats.PidsStat{Current: 2 + a.asked.Add(1)}}
	m.ProtoReflect().SetUnknown(protowire.AppendString(protowire.AppendTag(nil, 1000, protowire.BytesType), "smuggled"))
	b, err := proto.Marshal(m)
	return &agentpb.StatsResponse{Metrics: b}, err
}

func (a *fakeAgent) Update(_ context.Context, r *agentpb.UpdateRequest) (*agentpb.UpdateResponse, error) {
	return &agentpb.UpdateResponse{}, os.WriteFile("updated", r.Resources, 0o600)
}

func (a *fakeAgent) Pause(context.Context, *agentpb.PauseRequest) (*agentpb.PauseResponse, error) {
	if a.fake == "mortal" {
		a.killAll()
		os.Exit(config.StatusPoweredOff)
	}
	return &agentpb.PauseResponse{}, nil
}

func (a *fakeAgent) Resume(context.Context, *agentpb.ResumeRequest) (*agentpb.ResumeResponse, error) {
	if a.fake == "mortal" {
		a.conn.Close() // the agent has crashed
		return nil, errors.New("lost")
	}
	return &agentpb.ResumeResponse{}, nil
}

func (a *fakeAgent) Events(ctx context.Context, _ *agentpb.EventsRequest, s agentpb.Agent_EventsServer) error {
	for {
		select {
		case id := <-a.oom:
			if err := s.Send(&agentpb.Event{OomContainerId: id}); err != nil {
				return err
			}
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (a *fakeAgent) Shutdown(context.Context, *agentpb.ShutdownRequest) (*agentpb.ShutdownResponse, error) {
	a.killAll()
	switch a.fake {
	case "slowoff": // as slow as a guest may be
		time.Sleep(2*agent.StopTimeout + agent.SyncTimeout)
	case "dirty":
		return nil, errors.New("pages are left")
	case "diesoff":
		os.Exit(config.StatusPanicked)
	}
	return &agentpb.ShutdownResponse{}, os.WriteFile("resized", []byte("in order"), 0o600)
}

// killAll ends the processes of all containers.
func (a *fakeAgent) killAll() {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, p := range a.procs {
		if p.cmd.Process != nil {
			_ = syscall.Kill(-p.cmd.Process.Pid, syscall.SIGKILL)
		}
	}
}
