package vmm

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"

	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/config"
	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/virtio/block"
	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/vmmtest"
)

// A guest sees a drive's other file, and that one grow, and has a piece of it discarded. At last the machine is paused, resumed and closed
// while a request waits for ever.
func TestKernelUpdate(t *testing.T) {
	vmmtest.NeedKVM(t)
	dir := t.TempDir()
	file := func(name string, size int) string {
		p := filepath.Join(dir, name)
		if err := os.WriteFile(p, []byte(name+"\n"+strings.Repeat("x", int(size)-len(name)-1)), 0o600); err != nil {
			t.Fatal(err)
		}
		return p
	}
	first, second := file("the first file", 8<<20), file("the second file", 12<<20)
	const script = `exec >/dev/console
expect() { # what sectors
	echo "want $1"
	while [ $(cat /sys/block/vda/size) != $2 ]; do usleep 20000; done
	echo "$1: $2 sectors, $(dd if=/dev/vda iflag=direct bs=4k count=1 2>/dev/null | head -n 1)"
}
expect another 24576
expect larger 32768
blkdiscard -o 8388608 -l 1048576 /dev/vda && echo "discarded"
echo "want block"
dd if=/dev/vda iflag=direct bs=4k count=300 of=/dev/null 2>/dev/null
echo "went on"`
	m, out := startKernel(t, config.VM{
		Machine:    config.Machine{VCPUCount: 1, MemSizeMiB: 128},
		BootSource: bootSource(vmmtest.Kernel(t), vmmtest.Busybox(t, script)),
		Drives:     []config.Drive{{DriveID: "data", PathOnHost: first}},
	})
	ctx := context.Background()
	await := func(text string) {
		t.Helper()
		awaitText(t, m, out, text)
	}
	update := func(u config.DriveUpdate) {
		t.Helper()
		if err := m.UpdateDrive(ctx, u); err != nil {
			t.Fatal(err)
		}
	}
	await("want another")
	update(config.DriveUpdate{DriveID: "data", PathOnHost: second})
	await("want larger")
	if err := os.Truncate(second, 16<<20); err != nil {
		t.Fatal(err)
	}
	update(config.DriveUpdate{DriveID: "data", PathOnHost: second})
	await("want block")
	update(config.DriveUpdate{DriveID: "data", RateLimiter: &config.RateLimiter{Ops: &config.TokenBucket{Size: 1, OneTimeBurst: 1, RefillTime: 1e9}}})
	for range 3 {
		time.Sleep(50 * time.Millisecond)
		if err := m.Pause(ctx); err != nil {
			t.Fatal(err)
		}
		if err := m.Resume(ctx); err != nil {
			t.Fatal(err)
		}
	}
	if err := m.Close(); err != nil {
		t.Error(err)
	}
	for _, want := range []string{"another: 24576 sectors, the second file", "larger: 32768 sectors, the second file", "discarded"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("the console lacks %q", want)
		}
	}
	if b, err := os.ReadFile(second); err != nil || strings.Trim(string(b[8<<20:9<<20]), "\x00") != "" || b[8<<20-1] != 'x' || b[9<<20] != 'x' {
		t.Errorf("discarded something else, or nothing: %v", err)
	}
	if strings.Contains(out.String(), "went on") {
		t.Error("a request went through that should wait for days")
	}
	if err := m.UpdateDrive(ctx, config.DriveUpdate{DriveID: "data", PathOnHost: second}); !errors.Is(err, ErrState) {
		t.Errorf("update of a machine that has ended: %v", err)
	}
}

// What is refused needs no guest that runs.
func TestUpdateRefused(t *testing.T) {
	m := &Machine{}
	m.state.Store(config.NotStarted)
	ctx := context.Background()
	for _, err := range []error{
		m.UpdateDrive(ctx, config.DriveUpdate{DriveID: "none"}),
		m.UpdateNetworkInterface(ctx, config.NetworkInterfaceUpdate{IfaceID: "none"}),
	} {
		if !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), `is "none": want the id of a`) {
			t.Error(err)
		}
	}
	for _, err := range []error{
		m.UpdateDrive(ctx, config.DriveUpdate{DriveID: "a/b"}),
		m.UpdateNetworkInterface(ctx, config.NetworkInterfaceUpdate{IfaceID: ""}),
	} {
		if !errdefs.IsInvalidArgument(err) {
			t.Error(err)
		}
	}
}

// A file that takes too long to open is waited for no longer than the request lasts, and closed when it is there.
func TestOpenWithin(t *testing.T) {
	path := filepath.Join(t.TempDir(), "disk")
	if err := os.WriteFile(path, make([]byte, 4096), 0o600); err != nil {
		t.Fatal(err)
	}
	d, err := block.New(config.Drive{DriveID: "data", PathOnHost: path})
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	u := config.DriveUpdate{DriveID: "data", PathOnHost: path}
	cause := errors.New("too long")
	ctx, cancel := context.WithCancelCause(context.Background())
	b, err := openWithin(ctx, u, d.Open)
	if err != nil {
		t.Fatal(err)
	}
	if err := b.Close(); err != nil {
		t.Error(err)
	}
	late := make(chan *block.Backing, 1)
	release := make(chan struct{})
	_, err = openWithin(ctx, u, func(path string) (*block.Backing, error) {
		cancel(cause)
		<-release
		b, err := d.Open(path)
		late <- b
		return b, err
	})
	if !errors.Is(err, cause) || !strings.Contains(err.Error(), `"data"`) || !strings.Contains(err.Error(), path[:8]) {
		t.Error(err)
	}
	close(release)
	if b = <-late; b == nil {
		t.Fatal("not opened")
	}
	open := func() (n int) {
		fds, _ := os.ReadDir("/proc/self/fd")
		for _, fd := range fds {
			if to, _ := os.Readlink("/proc/self/fd/" + fd.Name()); to == path {
				n++
			}
		}
		return n
	}
	for begin := time.Now(); open() != 1; time.Sleep(time.Millisecond) {
		if time.Since(begin) > bootTimeout {
			t.Fatalf("the file is open %d times, want once, for the drive", open())
		}
	}
}
