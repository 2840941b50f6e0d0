package vmm

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"

	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/config"
	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/memory"
	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/virtio/block"
	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/virtio/vhostuser/vhosttest"
	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/virtio/vhostuser/wire"
	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/vmmtest"
)

// backendEnv has the back-end's process serve this file.
const backendEnv = "FC_TEST_BACKEND"

// TestBackendProcess is no test but the process behind TestKernelBackend's drive.
func TestBackendProcess(t *testing.T) {
	file := os.Getenv(backendEnv)
	if file == "" {
		t.Skip("part of TestKernelBackend")
	}
	l, err := net.FileListener(os.NewFile(3, "listener"))
	if err != nil {
		t.Fatal(err)
	}
	c, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	dev, err := block.New(config.Drive{DriveID: "served", PathOnHost: file, CacheType: config.CacheWriteback})
	if err != nil {
		t.Fatal(err)
	}
	b := vhosttest.Backend{Dev: dev, Before: func(h wire.Header, _ []byte) ([]byte, bool) {
		if h.Request == wire.GetConfig {
			// Its size may have changed.
			n, err := dev.Open(file)
			if err != nil {
				t.Error(err)
				return nil, true
			}
			if old := dev.Swap(n); old != nil {
				old.Close()
			}
		}
		return nil, true
	}}
	if err := b.Serve(c.(*net.UnixConn)); err != nil {
		t.Fatal(err)
	}
}

// startBackend has another process serve file at the socket.
func startBackend(t *testing.T, socket, file string) *exec.Cmd {
	t.Helper()
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: socket})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	defer l.Close()
	f, err := l.File()
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	cmd := exec.Command("/proc/self/exe", "-test.run", "^TestBackendProcess$")
	cmd.Env = append(os.Environ(), backendEnv+"="+file)
	cmd.ExtraFiles = []*os.File{f}
	cmd.Stdout, cmd.Stderr = os.Stderr, os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
	})
	return cmd
}

// A guest reads and writes a drive that another process serves, lets go of it and takes it again, and sees it grow. That process is killed while the
// guest reads: the guest is told so, and its other drive goes on.
func TestKernelBackend(t *testing.T) {
	vmmtest.NeedKVM(t)
	dir := t.TempDir()
	served, plain, socket := filepath.Join(dir, "served"), filepath.Join(dir, "plain"), filepath.Join(dir, "socket")
	for _, f := range []string{served, plain} {
		if err := os.WriteFile(f, []byte("contents of "+filepath.Base(f)+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Truncate(f, 4<<20); err != nil {
			t.Fatal(err)
		}
	}
	const script = `exec >/dev/console
first() { dd if=$1 iflag=direct bs=4k count=1 2>/dev/null | head -n 1; }
echo "vda: $(first /dev/vda)"
head -c 2097152 /dev/zero | tr '\0' y | dd of=/dev/vda bs=64k seek=16 conv=fsync 2>/dev/null && echo "written"
echo virtio0 >/sys/bus/virtio/drivers/virtio_blk/unbind
echo "gone: $(ls /dev/vda)"
echo virtio0 >/sys/bus/virtio/drivers/virtio_blk/bind
echo "again: $(first /dev/vda), $(dd if=/dev/vda iflag=direct bs=64k skip=16 count=32 2>/dev/null | tr -d y | wc -c) differ"
echo "want larger"
while [ $(cat /sys/block/vda/size) != 16384 ]; do usleep 20000; done
while :; do first /dev/vda; done &
echo "want death"
while ! grep -q 4f /sys/bus/virtio/devices/virtio0/status; do usleep 20000; done
echo "still: $(first /dev/vdb)"
poweroff -n -f`
	backend := startBackend(t, socket, served)
	m, out := startKernel(t, config.VM{
		Machine:    config.Machine{VCPUCount: 1, MemSizeMiB: 128},
		BootSource: bootSource(vmmtest.Kernel(t), vmmtest.Busybox(t, script)),
		Drives: []config.Drive{
			{DriveID: "served", Socket: socket, CacheType: config.CacheWriteback},
			{DriveID: "plain", PathOnHost: plain},
		},
	})
	await := func(text string) {
		t.Helper()
		awaitText(t, m, out, text)
	}
	ctx := context.Background()
	await("want larger")
	if err := os.Truncate(served, 8<<20); err != nil {
		t.Fatal(err)
	}
	for _, bad := range []config.DriveUpdate{{DriveID: "served", PathOnHost: plain}, {DriveID: "served", RateLimiter: &config.RateLimiter{}}} {
		if err := m.UpdateDrive(ctx, bad); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%+v: %v", bad, err)
		}
	}
	if err := m.UpdateDrive(ctx, config.DriveUpdate{DriveID: "served"}); err != nil {
		t.Fatal(err)
	}
	await("want death")
	if err := backend.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	if e := waitKernel(t, m); e.Reason != PoweredOff || e.Err != nil {
		t.Errorf("ended with %v, %v", e.Reason, e.Err)
	}
	for _, want := range []string{"vda: contents of served", "written", "again: contents of served, 0 differ", "still: contents of plain"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("the console lacks %q", want)
		}
	}
	if strings.Contains(out.String(), "gone: /dev/vda") {
		t.Error("the guest did not let go of the drive")
	}
	if b, err := os.ReadFile(served); err != nil || strings.Trim(string(b[1<<20:3<<20]), "y") != "" || b[3<<20] != 0 || b[1<<20-1] != 0 {
		t.Errorf("the file has something else: %v", err)
	}
}

// A back-end that is not there is told of before anything else is made, and nothing is left.
func TestBackendMissing(t *testing.T) {
	before := openFiles(t)
	cfg := config.VM{BootSource: &config.BootSource{KernelImagePath: "/nonexistent"}, Drives: []config.Drive{{DriveID: "a", Socket: filepath.Join(t.TempDir(), "none")}}}
	_, err := New(t.Context(), cfg, Options{KVMPath: "/nonexistent"})
	if want := fmt.Sprintf("drive %q: socket %q: vhost-user: ", "a", cfg.Drives[0].Socket); !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), want) {
		t.Errorf("%v, want %s", err, want)
	}
	if after := openFiles(t); after != before {
		t.Errorf("%d files are open, %d were", after, before)
	}
}

// The kernel is told what the back-end says of the root drive. A machine that comes to nothing ends its connections.
func TestBackendOfRoot(t *testing.T) {
	file := filepath.Join(t.TempDir(), "disk")
	if err := os.WriteFile(file, make([]byte, 4096), 0o600); err != nil {
		t.Fatal(err)
	}
	dev, err := block.New(config.Drive{DriveID: "served", PathOnHost: file, IsReadOnly: true})
	if err != nil {
		t.Fatal(err)
	}
	defer dev.Close()
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: filepath.Join(t.TempDir(), "socket")})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	ended := make(chan error, 1)
	go func() {
		c, err := l.AcceptUnix()
		if err == nil {
			b := vhosttest.Backend{Dev: dev}
			err = b.Serve(c)
		}
		ended <- err
	}()
	cfg := config.VM{Drives: []config.Drive{{DriveID: "a", Socket: l.Addr().String(), IsRootDevice: true}}}
	m := &Machine{}
	if err := m.connectBackends(t.Context(), &cfg); err != nil {
		t.Fatal(err)
	}
	if got := rootArguments(&cfg); got != " root=/dev/vda ro" {
		t.Errorf("command line %q", got)
	}
	for huge, want := range map[string]memory.Pages{"None": memory.HostPages, "Transparent": memory.TransparentPages, "2M": memory.HugeTLBPages} {
		cfg.Machine.HugePages = huge
		if got := pages(&cfg); got != want {
			t.Errorf("huge_pages %s: %d, want %d", huge, got, want)
		}
	}
	if err := m.release(true); err != nil {
		t.Error(err)
	}
	if err := <-ended; err != nil {
		t.Errorf("the back-end's end: %v", err)
	}
}
