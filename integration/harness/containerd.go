package harness

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/pkg/namespaces"

	"github.com/fcshim/containerd-shim-fc-v2/integration/ociimage"
)

const (
	// Namespace is the containerd namespace that the tests live in.
	Namespace = "fctest"
	// Image is the image that every containerd of the harness holds.
	Image = ociimage.Name
)

var (
	// readyTimeout bounds containerd's start; on an emulated CPU it takes some seconds.
	readyTimeout = Slow(90 * time.Second)
	stopTimeout  = Slow(30 * time.Second)
)

// Options change how Start starts containerd.
type Options struct {
	// Wrap is put before containerd's command line, to run it through another program that ends by executing it.
	Wrap []string
}

// Containerd is a running containerd with a root, a state and sockets of its own.
type Containerd struct {
	Env
	dir     string
	opts    Options
	cmd     *exec.Cmd
	exited  chan struct{}
	client  *client.Client
	nextID  atomic.Uint64
	address string
}

// Start starts a containerd and imports Image. The caller calls Stop.
func Start(env Env, opts Options) (*Containerd, error) {
	dir, err := os.MkdirTemp(os.Getenv(EnvScratch), "fcit")
	if err != nil {
		return nil, err
	}
	c := &Containerd{Env: env, dir: dir, opts: opts, address: filepath.Join(dir, "c.sock")}
	if err := c.setUp(); err != nil {
		return nil, errors.Join(err, c.Stop())
	}
	return c, nil
}

func (c *Containerd) setUp() error {
	// The folders in /run stay after the first container; they are not what it leaves behind.
	for _, d := range []string{c.tmp(), c.path("console"), "/run/containerd/fifo", "/run/containerd/s", "/run/containerd/runc", "/run/nerdctl"} {
		if err := os.MkdirAll(d, 0o711); err != nil {
			return err
		}
	}
	if err := os.WriteFile(c.path("config.toml"), []byte(c.config()), 0o600); err != nil {
		return err
	}
	if err := c.writeDefaults(); err != nil {
		return err
	}
	if err := c.start(); err != nil {
		return err
	}
	return c.importImage()
}

// config leaves out what these tests never use, so that containerd starts quickly and asks for nothing.
func (c *Containerd) config() string {
	return fmt.Sprintf(`version = 3
root = %q
state = %q
disabled_plugins = [
  "io.containerd.cri.v1.images", "io.containerd.cri.v1.runtime", "io.containerd.grpc.v1.cri",
  "io.containerd.nri.v1.nri", "io.containerd.tracing.processor.v1.otlp", "io.containerd.internal.v1.tracing",
  "io.containerd.snapshotter.v1.blockfile", "io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.devmapper",
  "io.containerd.snapshotter.v1.erofs", "io.containerd.snapshotter.v1.native", "io.containerd.snapshotter.v1.zfs",
]
[grpc]
  address = %q
[ttrpc]
  address = %q
[debug]
  level = "debug"
  address = %q
`, c.path("root"), c.path("state"), c.address, c.address+".ttrpc", c.debugSocket())
}

func (c *Containerd) path(elem ...string) string {
	return filepath.Join(append([]string{c.dir}, elem...)...)
}

// tmp is the TMPDIR of containerd, hence of the shims.
func (c *Containerd) tmp() string { return c.path("tmp") }

// Address is the path of containerd's socket.
func (c *Containerd) Address() string { return c.address }

// Pid is containerd's own pid.
func (c *Containerd) Pid() int { return c.cmd.Process.Pid }

// start starts the daemon and waits until it says that it is ready.
func (c *Containerd) start() error {
	notify, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: c.path("notify"), Net: "unixgram"})
	if err != nil {
		return err
	}
	defer os.Remove(c.path("notify"))
	defer notify.Close()

	log, err := os.OpenFile(c.path("log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	argv := append(append([]string{}, c.opts.Wrap...), filepath.Join(c.Tools, "containerd"), "--config", c.path("config.toml"))
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Env = append(os.Environ(), "PATH="+c.Bin+":"+c.Tools+":"+os.Getenv("PATH"), "TMPDIR="+c.tmp(), "NOTIFY_SOCKET="+c.path("notify"))
	cmd.Stdout, cmd.Stderr = log, log
	// A process group of its own: Ctrl-C is for the tests, which stop containerd in order.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start containerd: %w", err)
	}
	exited := make(chan struct{})
	c.cmd, c.exited = cmd, exited
	go func() {
		_ = cmd.Wait()
		close(exited)
	}()
	if err := c.awaitReady(notify); err != nil {
		return err
	}
	c.client, err = client.New(c.address, client.WithDefaultNamespace(Namespace))
	return err
}

// awaitReady waits for containerd's "READY=1" (sd_notify(3)).
func (c *Containerd) awaitReady(notify *net.UnixConn) error {
	ready := make(chan error, 1)
	go func() {
		buf := make([]byte, 4096)
		for {
			n, err := notify.Read(buf)
			if err != nil || strings.Contains(string(buf[:n]), "READY=1") {
				ready <- err
				return
			}
		}
	}()
	select {
	case err := <-ready:
		return err
	case <-c.exited:
		return fmt.Errorf("containerd ended at its start: %s\n%s", c.cmd.ProcessState, c.LogTail(0))
	case <-time.After(readyTimeout):
		return fmt.Errorf("containerd was not ready after %v\n%s", readyTimeout, c.LogTail(0))
	}
}

func (c *Containerd) importImage() error {
	r, w := io.Pipe()
	go func() { w.CloseWithError(ociimage.Write(w, ociimage.DefaultBusybox)) }()
	ctx, cancel := context.WithTimeout(c.Context(), commandTimeout)
	defer cancel()
	images, err := c.client.Import(ctx, r)
	if err != nil {
		return fmt.Errorf("import the tests' image: %w", err)
	}
	for _, i := range images {
		if err := client.NewImage(c.client, i).Unpack(ctx, ""); err != nil {
			return fmt.Errorf("unpack the tests' image: %w", err)
		}
	}
	return nil
}

// Kill ends containerd by SIGKILL and waits for its end; shims live on. Restart starts it again.
func (c *Containerd) Kill() error {
	if c.client != nil {
		_ = c.client.Close()
		c.client = nil
	}
	if err := c.cmd.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	select {
	case <-c.exited:
		return nil
	case <-time.After(stopTimeout):
		return fmt.Errorf("containerd lives on %v after SIGKILL", stopTimeout)
	}
}

// Restart starts containerd again after Kill.
func (c *Containerd) Restart() error { return c.start() }

// Stop ends containerd and whatever still belongs to it, and removes its files.
func (c *Containerd) Stop() error {
	if c.client != nil {
		_ = c.client.Close()
	}
	var errs []error
	if c.cmd != nil {
		_ = c.cmd.Process.Signal(syscall.SIGTERM)
		select {
		case <-c.exited:
		case <-time.After(stopTimeout):
			errs = append(errs, fmt.Errorf("containerd lives on %v after SIGTERM\n%s", stopTimeout, c.LogTail(0)), c.Kill())
		}
	}
	for _, p := range c.processes() {
		_ = syscall.Kill(p.pid, syscall.SIGKILL)
	}
	mounts, err := mountPoints("self")
	if err != nil {
		return errors.Join(append(errs, err)...)
	}
	for i := len(mounts) - 1; i >= 0; i-- {
		if strings.HasPrefix(mounts[i], c.dir+"/") {
			_ = mount.UnmountAll(mounts[i], syscall.MNT_DETACH)
		}
	}
	return errors.Join(append(errs, os.RemoveAll(c.dir))...)
}

// Context is the context for calls of the client.
func (c *Containerd) Context() context.Context {
	return namespaces.WithNamespace(context.Background(), Namespace)
}

// Client is a client of this containerd; it is another one after Restart.
func (c *Containerd) Client() *client.Client { return c.client }

// ID makes a container's id that no other test uses.
func (c *Containerd) ID(t testing.TB) string {
	name := strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= '0' && r <= '9' {
			return r
		}
		return '-'
	}, strings.ToLower(strings.TrimPrefix(t.Name(), "Test")))
	if len(name) > 40 {
		name = name[:40]
	}
	return fmt.Sprintf("%s-%d", strings.Trim(name, "-"), c.nextID.Add(1))
}

// LogSize is the present size of containerd's log, for LogTail.
func (c *Containerd) LogSize() int64 {
	fi, err := os.Stat(c.path("log"))
	if err != nil {
		return 0
	}
	return fi.Size()
}

// LogTail returns containerd's log from the offset on, at most its last 16 KiB.
func (c *Containerd) LogTail(from int64) string {
	const most = 16 << 10
	f, err := os.Open(c.path("log"))
	if err != nil {
		return err.Error()
	}
	defer f.Close()
	from = max(from, c.LogSize()-most)
	b, err := io.ReadAll(io.NewSectionReader(f, from, most))
	if err != nil {
		return err.Error()
	}
	return "containerd's log:\n" + string(b)
}

// As is this containerd for containers of another runtime, to compare the two. Its containers belong into subtests of their own,
// from whose names their ids are made.
func (c *Containerd) As(runtime string) *Containerd {
	other := &Containerd{Env: c.Env, dir: c.dir, opts: c.opts, cmd: c.cmd, exited: c.exited, client: c.client, address: c.address}
	other.Runtime = runtime
	return other
}
