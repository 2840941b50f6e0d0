package service

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs/pkg/errgrpc"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/fcshim/containerd-shim-fc-v2/guest/link"
	"github.com/fcshim/containerd-shim-fc-v2/guest/reaper"
	_ "github.com/fcshim/containerd-shim-fc-v2/guest/reexec"
	"github.com/fcshim/containerd-shim-fc-v2/guest/setup"
	"github.com/fcshim/containerd-shim-fc-v2/pkg/agent"
	"github.com/fcshim/containerd-shim-fc-v2/pkg/agent/agentpb"
)

// guest is a service that believes itself in a VM, with the shim's end of its connections.
type guest struct {
	*agent.Client
	t         *testing.T
	ctx       context.Context
	streams   *agent.StreamBroker
	rootfs    string
	writeBack error // what writing back ends with
	writes    int   // how often that has been asked for
}

const busybox = "/bin/busybox"

// needMachine skips a test that must be root in a machine whose cgroups it may use: no host of somebody's.
func needMachine(t *testing.T) {
	t.Helper()
	if os.Getenv("FC_KVMHOST") == "" {
		t.Skip("makes cgroups at the root: run it with -exec integration/kvmhost")
	}
	var fs unix.Statfs_t
	if err := unix.Statfs(setup.CgroupRoot, &fs); os.Getuid() != 0 || err != nil || fs.Type != unix.CGROUP2_SUPER_MAGIC {
		t.Skip("needs root and cgroup v2 at " + setup.CgroupRoot + ": run it with -exec integration/kvmhost")
	}
	if err := setup.DelegateCgroups(setup.CgroupRoot); err != nil {
		t.Skip(err)
	}
	if _, err := os.Stat(busybox); err != nil {
		t.Skip(err)
	}
}

func newGuest(t *testing.T) *guest {
	t.Helper()
	dir := t.TempDir()
	listen := func(port string) net.Listener {
		l, err := net.Listen("unix", filepath.Join(dir, port))
		if err != nil {
			t.Fatal(err)
		}
		return l
	}
	control, streams := listen("1024"), agent.NewStreamBroker(listen("1025"))
	go streams.Serve()
	dial := link.Dialer(func(_ context.Context, port uint32) (link.Conn, error) {
		name := map[uint32]string{agent.ControlPort: "1024", agent.StreamPort: "1025"}[port]
		conn, err := net.Dial("unix", filepath.Join(dir, name))
		if err != nil {
			return nil, err
		}
		return conn.(*net.UnixConn), nil
	})
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	children := reaper.New()
	go children.Run(ctx)
	g := &guest{t: t, ctx: ctx, streams: streams, rootfs: filepath.Join(dir, "rootfs")}
	s, err := New(Config{
		Version: "test", StateDir: filepath.Join(dir, "state"), Dial: dial, Reaper: children, WriteBack: func() error { g.writes++; return g.writeBack },
	})
	if err != nil {
		t.Fatal(err)
	}
	go s.Run()
	conn, err := dial.Control(ctx)
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- s.Serve(ctx, conn) }()
	if g.Client, err = agent.Accept(ctx, control); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		s.StopAll(ctx)
		g.Client.Close()
		if err := <-served; err != nil {
			t.Errorf("Serve: %v", err)
		}
		s.Close()
		streams.Close()
		cancel()
	})
	return g
}

// makeRootfs fills the root file system with busybox and its applets.
func (g *guest) makeRootfs() {
	g.t.Helper()
	for _, d := range []string{"bin", "etc", "proc", "sys", "dev", "tmp"} {
		if err := os.MkdirAll(filepath.Join(g.rootfs, d), 0o755); err != nil {
			g.t.Fatal(err)
		}
	}
	b, err := os.ReadFile(busybox)
	if err != nil {
		g.t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(g.rootfs, busybox), b, 0o755); err != nil {
		g.t.Fatal(err)
	}
	for _, applet := range strings.Fields("sh cat echo sleep head true id stty dd awk grep mkdir touch kill ps hostname tr tty") {
		os.Symlink("busybox", filepath.Join(g.rootfs, "bin", applet))
	}
}

// spec is what containerd would ask for, more or less.
func (g *guest) spec(args ...string) *specs.Spec {
	caps := []string{"CAP_CHOWN", "CAP_KILL", "CAP_NET_BIND_SERVICE", "CAP_SETUID"}
	return &specs.Spec{
		Version: specs.Version, Root: &specs.Root{Path: g.rootfs}, Hostname: "box",
		Process: &specs.Process{
			Args: args, Cwd: "/", Env: []string{"PATH=/bin", "COLOUR=blue"}, NoNewPrivileges: true,
			Capabilities: &specs.LinuxCapabilities{Bounding: caps, Effective: caps, Permitted: caps},
			Rlimits:      []specs.POSIXRlimit{{Type: "RLIMIT_NOFILE", Hard: 1000, Soft: 999}},
		},
		Mounts: []specs.Mount{
			{Destination: "/proc", Type: "proc", Source: "proc", Options: []string{"nosuid", "noexec", "nodev"}},
			{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "strictatime", "mode=755", "size=65536k"}},
			{Destination: "/dev/pts", Type: "devpts", Source: "devpts", Options: []string{"nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"}},
			{Destination: "/dev/shm", Type: "tmpfs", Source: "shm", Options: []string{"nosuid", "noexec", "nodev", "mode=1777", "size=65536k"}},
			{Destination: "/dev/mqueue", Type: "mqueue", Source: "mqueue", Options: []string{"nosuid", "noexec", "nodev"}},
			{Destination: "/sys", Type: "sysfs", Source: "sysfs", Options: []string{"nosuid", "noexec", "nodev", "ro"}},
			{Destination: "/sys/fs/cgroup", Type: "cgroup", Source: "cgroup", Options: []string{"ro", "nosuid", "noexec", "nodev"}},
		},
		Linux: &specs.Linux{
			Namespaces: []specs.LinuxNamespace{
				{Type: specs.PIDNamespace}, {Type: specs.IPCNamespace}, {Type: specs.UTSNamespace}, {Type: specs.MountNamespace},
				{Type: specs.CgroupNamespace},
			},
			Resources:     &specs.LinuxResources{Devices: []specs.LinuxDeviceCgroup{{Allow: false, Access: "rwm"}}},
			MaskedPaths:   []string{"/proc/kcore", "/proc/keys"},
			ReadonlyPaths: []string{"/proc/sys"},
		},
	}
}

// remote is one process, with the shim's ends of its streams.
type remote struct {
	g                     *guest
	id, exec              string
	stdin, stdout, stderr net.Conn
}

func (g *guest) open(terminal bool) (*agentpb.Streams, func() (in, out, errs net.Conn)) {
	g.t.Helper()
	expect := func() *agent.Expected {
		e, err := g.streams.Expect()
		if err != nil {
			g.t.Fatal(err)
		}
		return e
	}
	in, out := expect(), expect()
	s := &agentpb.Streams{Stdin: in.ID(), Stdout: out.ID(), Terminal: terminal}
	var errs *agent.Expected
	if !terminal {
		errs = expect()
		s.Stderr = errs.ID()
	}
	take := func(e *agent.Expected) net.Conn {
		if e == nil {
			return nil
		}
		conn, err := e.Wait(g.ctx)
		if err != nil {
			g.t.Fatal(err)
		}
		g.t.Cleanup(func() { conn.Close() })
		return conn
	}
	return s, func() (net.Conn, net.Conn, net.Conn) { return take(in), take(out), take(errs) }
}

// create makes a container, and fails the test if that fails.
func (g *guest) create(id string, spec *specs.Spec) *remote {
	g.t.Helper()
	p, err := g.tryCreate(id, spec)
	if err != nil {
		g.t.Fatal(err)
	}
	return p
}

func (g *guest) tryCreate(id string, spec *specs.Spec) (*remote, error) {
	g.t.Helper()
	b, err := json.Marshal(spec)
	if err != nil {
		g.t.Fatal(err)
	}
	streams, take := g.open(spec.Process.Terminal)
	if _, err := g.Create(g.ctx, &agentpb.CreateRequest{ContainerId: id, Spec: b, Streams: streams}); err != nil {
		return nil, errgrpc.ToNative(err)
	}
	p := &remote{g: g, id: id}
	p.stdin, p.stdout, p.stderr = take()
	return p, nil
}

func (p *remote) execIn(exec string, spec *specs.Process) *remote {
	p.g.t.Helper()
	b, err := json.Marshal(spec)
	if err != nil {
		p.g.t.Fatal(err)
	}
	streams, take := p.g.open(spec.Terminal)
	if _, err := p.g.Exec(p.g.ctx, &agentpb.ExecRequest{ContainerId: p.id, ExecId: exec, Process: b, Streams: streams}); err != nil {
		p.g.t.Fatal(err)
	}
	e := &remote{g: p.g, id: p.id, exec: exec}
	e.stdin, e.stdout, e.stderr = take()
	return e
}

func (p *remote) tryStart() error {
	_, err := p.g.Start(p.g.ctx, &agentpb.StartRequest{ContainerId: p.id, ExecId: p.exec})
	return errgrpc.ToNative(err)
}

func (p *remote) start() {
	p.g.t.Helper()
	if err := p.tryStart(); err != nil {
		p.g.t.Fatal(err)
	}
}

func (p *remote) kill(sig unix.Signal, all bool) error {
	_, err := p.g.Kill(p.g.ctx, &agentpb.KillRequest{ContainerId: p.id, ExecId: p.exec, Signal: uint32(sig), All: all})
	return errgrpc.ToNative(err)
}

func (p *remote) delete() error {
	_, err := p.g.Delete(p.g.ctx, &agentpb.DeleteRequest{ContainerId: p.id, ExecId: p.exec})
	return errgrpc.ToNative(err)
}

func (p *remote) wait() *agentpb.WaitResponse {
	p.g.t.Helper()
	r, err := p.g.Wait(p.g.ctx, &agentpb.WaitRequest{ContainerId: p.id, ExecId: p.exec})
	if err != nil {
		p.g.t.Fatal(err)
	}
	return r
}

// finish reads all output, waits, and checks the exit status.
func (p *remote) finish(status uint32) string {
	p.g.t.Helper()
	if p.stderr != nil {
		go func() {
			if b, _ := io.ReadAll(p.stderr); len(b) > 0 {
				p.g.t.Logf("stderr: %s", b)
			}
		}()
	}
	out, err := io.ReadAll(p.stdout)
	if err != nil && !errors.Is(err, net.ErrClosed) {
		p.g.t.Errorf("stdout: %v", err)
	}
	if r := p.wait(); r.ExitStatus != status || r.ExitedAt.AsTime().Before(time.Now().Add(-time.Minute)) {
		p.g.t.Errorf("exit %v, want %d", r, status)
	}
	return string(out)
}

// run runs a container to its end and removes it.
func (g *guest) run(id string, spec *specs.Spec, status uint32) string {
	g.t.Helper()
	p := g.create(id, spec)
	p.start()
	out := p.finish(status)
	if err := p.delete(); err != nil {
		g.t.Errorf("delete: %v", err)
	}
	return out
}
