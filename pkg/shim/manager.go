package shim

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime/debug"
	"strconv"
	"syscall"
	"time"

	bootapi "github.com/containerd/containerd/api/runtime/bootstrap/v1"
	"github.com/containerd/containerd/v2/defaults"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/containerd/v2/pkg/shim"
	"github.com/containerd/containerd/v2/pkg/shutdown"
	"github.com/containerd/containerd/v2/plugins"
	"github.com/containerd/plugin"
	"golang.org/x/sys/unix"

	"github.com/fcshim/containerd-shim-fc-v2/pkg/hold"
	"github.com/fcshim/containerd-shim-fc-v2/pkg/nsthread"
)

// RuntimeName is what clients call this runtime.
const RuntimeName = "io.containerd.fc.v2"

// sandboxAnnotation groups the containers of a pod into one shim, and so into one VM.
const sandboxAnnotation = "io.kubernetes.cri.sandbox-id"

// addressFile in the bundle has the address of the shim's socket; pkg/shim removes that socket when a shim leaves.
const addressFile = "address"

// Manager starts shims, cleans up after them, and describes the runtime, each as a short-lived process of containerd's.
type Manager struct {
	version string
}

// NewManager makes a manager that gives the version as the runtime's.
func NewManager(version string) *Manager { return &Manager{version: version} }

var _ shim.Shim = (*Manager)(nil)

// Name implements shim.Shim.
func (*Manager) Name() string { return RuntimeName }

// TaskPlugin is the registration of the task service, for the process that serves.
func TaskPlugin() *plugin.Registration {
	return &plugin.Registration{
		Type:     plugins.TTRPCPlugin,
		ID:       "task",
		Requires: []plugin.Type{plugins.EventPlugin, plugins.InternalPlugin},
		InitFn: func(ic *plugin.InitContext) (any, error) {
			keepSocket()
			publisher, err := ic.GetByID(plugins.EventPlugin, "publisher")
			if err != nil {
				return nil, err
			}
			sd, err := ic.GetByID(plugins.InternalPlugin, "shutdown")
			if err != nil {
				return nil, err
			}
			if err := awaitHandover(sd.(shutdown.Service).Shutdown); err != nil {
				return nil, err
			}
			if os.Getenv(goDebugEnv) == hold.LeanHeap {
				// It has worked, and is nothing for hooks and loggers.
				os.Unsetenv(goDebugEnv)
				hold.AllowHugePages()
			}
			s, err := newService(ic.Context, publisher.(shim.Publisher), sd.(shutdown.Service))
			if err != nil {
				return nil, err
			}
			s.mounts, err = inherited(mountsEnv)
			collectLater()
			return s, err
		},
	}
}

const (
	// startGCPercent has garbage collected from 4 MiB of heap on. A pod's start makes less than 2 MiB.
	startGCPercent = 100
	// startPeriod is how long that holds, and far longer than a start takes.
	startPeriod = 10 * time.Second
)

// collectLater keeps the garbage collector, which containerd's package sets to be keen, out of the pod's start: somebody waits for that.
func collectLater() {
	usual := debug.SetGCPercent(startGCPercent)
	time.AfterFunc(startPeriod, func() { debug.SetGCPercent(usual) })
}

// Start implements shim.Shim: it starts the process that serves, or finds that of the pod. The working directory is the
// bundle.
func (*Manager) Start(ctx context.Context, params *bootapi.BootstrapParams) (*bootapi.BootstrapResult, error) {
	id := params.GetInstanceID()
	group, err := groupOf("config.json", id)
	if err != nil {
		return nil, err
	}
	dir := params.GetSocketDir()
	if dir == "" {
		dir = filepath.Join(defaults.DefaultStateDir, "s")
	}
	address, err := shim.CreateSocketAddress(ctx, dir, params.GetContainerdGrpcAddress(), group, false)
	if err != nil {
		return nil, err
	}
	result := &bootapi.BootstrapResult{Version: 3, Protocol: "ttrpc", Address: address}
	if err := os.WriteFile(addressFile, []byte(address), 0o600); err != nil {
		return nil, fmt.Errorf("note the shim's address in the bundle: %w", err)
	}
	l, err := listen(address)
	if err != nil {
		return nil, err
	}
	if l == nil {
		return result, nil // the pod's shim answers there
	}
	defer l.Close()
	if err := serve(ctx, id, params, l); err != nil {
		return nil, errors.Join(err, shim.RemoveSocket(address))
	}
	return result, nil
}

// groupOf is the sandbox that the spec belongs to, or else the container itself.
func groupOf(spec, id string) (string, error) {
	data, err := os.ReadFile(spec)
	if errors.Is(err, os.ErrNotExist) {
		return id, nil // Create says what is wrong with that
	}
	if err != nil {
		return "", err
	}
	var s struct {
		Annotations map[string]string `json:"annotations"`
	}
	if err := json.Unmarshal(data, &s); err != nil {
		return "", fmt.Errorf("config.json: %w", err)
	}
	if g := s.Annotations[sandboxAnnotation]; g != "" {
		return g, nil
	}
	return id, nil
}

// listen makes the shim's socket; nil means that a shim serves there already. The socket of a dead one is replaced.
func listen(address string) (*net.UnixListener, error) {
	l, err := shim.NewSocket(address)
	if err != nil && shim.SocketEaddrinuse(err) {
		if shim.CanConnect(address) {
			return nil, nil
		}
		if err := ignoreMissing(shim.RemoveSocket(address)); err != nil {
			return nil, fmt.Errorf("replace a dead shim's socket: %w", err)
		}
		l, err = shim.NewSocket(address)
	}
	if err != nil {
		return nil, fmt.Errorf("make the shim's socket: %w", err)
	}
	l.SetUnlinkOnClose(false)
	return l, nil
}

// serve starts the long-lived process in a mount namespace of its own, which it shares with fc-vmm only: what is mounted
// there for a container goes away with them, whatever ends them.
func serve(ctx context.Context, id string, params *bootapi.BootstrapParams, l *net.UnixListener) error {
	ns, err := namespaces.NamespaceRequired(ctx)
	if err != nil {
		return err
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	sock, err := l.File()
	if err != nil {
		return err
	}
	defer sock.Close()
	cmd := exec.Command(self, "-namespace", ns, "-id", id, "-address", params.GetContainerdGrpcAddress())
	if params.GetLogLevel() <= bootapi.LogLevel_LOG_LEVEL_DEBUG {
		cmd.Args = append(cmd.Args, "-debug")
	}
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	defer r.Close()
	defer w.Close()
	mounts, err := os.Open("/proc/self/ns/mnt")
	if err != nil {
		return err
	}
	defer mounts.Close()
	cmd.ExtraFiles = []*os.File{sock, r, mounts}
	cmd.Env = append(os.Environ(), handoverEnv+"=4", mountsEnv+"=5")
	if os.Getenv(goDebugEnv) == "" {
		cmd.Env = append(cmd.Env, goDebugEnv+"="+hold.LeanHeap)
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := startPrivate(cmd); err != nil {
		return fmt.Errorf("start the serving shim: %w", err)
	}
	if err := joinShimCgroup(params, cmd.Process.Pid); err != nil {
		return giveUp(cmd, err)
	}
	if err := shim.AdjustOOMScore(cmd.Process.Pid); err != nil {
		return giveUp(cmd, fmt.Errorf("set the shim's OOM score: %w", err))
	}
	if _, err := w.Write([]byte{1}); err != nil {
		return fmt.Errorf("hand over to the serving shim: %w", err)
	}
	return cmd.Process.Release()
}

// giveUp kills a child because of err. That it died of this is no news.
func giveUp(cmd *exec.Cmd, err error) error {
	return errors.Join(err, cmd.Process.Kill(), ignoreKilled(cmd.Wait()))
}

// socketFD is the shim's socket in the serving process; pkg/shim of containerd expects it there, and listens on a copy.
const socketFD = 3

// keepSocket keeps what a process of Start's runs, hooks above all, from inheriting the socket: nobody would answer there after
// the shim's end, and callers would wait.
func keepSocket() {
	if os.Getenv(handoverEnv) != "" {
		unix.CloseOnExec(socketFD)
	}
}

const (
	// handoverEnv tells the serving shim which of its files is a pipe that Start writes a byte to at its end. If Start is
	// killed before, containerd never hears of the serving shim and never asks it to leave.
	handoverEnv = "FC_SHIM_HANDOVER"
	// mountsEnv tells it which one is containerd's mount namespace.
	mountsEnv = "FC_SHIM_MOUNTS"
	// goDebugEnv is Go's own.
	goDebugEnv = "GODEBUG"
)

// inherited is the file whose number Start has put into the environment; nil in a process that Start has not made.
func inherited(env string) (*os.File, error) {
	v := os.Getenv(env)
	if v == "" {
		return nil, nil
	}
	os.Unsetenv(env)
	fd, err := strconv.Atoi(v)
	if err != nil || fd < 3 {
		return nil, fmt.Errorf("%s is %q, not the number of a file", env, v)
	}
	unix.CloseOnExec(fd)
	return os.NewFile(uintptr(fd), env), nil
}

// awaitHandover calls abandon if Start has died. It does nothing in a process that Start has not made.
func awaitHandover(abandon func()) error {
	f, err := inherited(handoverEnv)
	if err != nil || f == nil {
		return err
	}
	go func() {
		defer f.Close()
		if n, _ := f.Read(make([]byte, 1)); n == 0 {
			abandon()
		}
	}()
	return nil
}

// startPrivate starts a command in a new mount namespace that hears of the host's mounts but tells of none. Go's own way
// (Unshareflags) would make everything private, deaf to the host too.
func startPrivate(cmd *exec.Cmd) error {
	return nsthread.Do(func() error {
		err := unix.Unshare(unix.CLONE_NEWNS)
		if err == nil {
			err = unix.Mount("", "/", "", unix.MS_SLAVE|unix.MS_REC, "")
		}
		if err != nil {
			return fmt.Errorf("make a mount namespace: %w", err)
		}
		return hold.StartLean(cmd.Start)
	})
}
