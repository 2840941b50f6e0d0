package vmm

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"

	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/config"
	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/virtio/block"
	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/vmmtest"
)

// A guest measures its limits by its own clock: a drive's bytes, the entropy device's requests, and, after an update, the drive's
// requests. It sees the drive's other file, and that one grow, and has a piece of it discarded. At last the machine is paused, resumed and closed while a request
// waits for ever.
func TestKernelLimits(t *testing.T) {
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
rate() { # what command...: three times, after one that empties the bucket
	what=$1; shift; "$@" of=/dev/null 2>/dev/null
	for i in 1 2 3; do
		a=$(cut -d' ' -f1 /proc/uptime); "$@" of=/dev/null 2>/dev/null; echo "$what: $a $(cut -d' ' -f1 /proc/uptime)"
	done
}
expect() { # what sectors
	echo "want $1"
	while [ $(cat /sys/block/vda/size) != $2 ]; do usleep 20000; done
	echo "$1: $2 sectors, $(dd if=/dev/vda iflag=direct bs=4k count=1 2>/dev/null | head -n 1)"
}
rate bytes dd if=/dev/vda iflag=direct bs=32k count=125
rate entropy dd if=/dev/hwrng bs=64 count=200
expect another 24576
rate requests dd if=/dev/vda iflag=direct bs=4k count=200
expect larger 32768
blkdiscard -o 8388608 -l 1048576 /dev/vda && echo "discarded"
echo "want block"
dd if=/dev/vda iflag=direct bs=4k count=300 of=/dev/null 2>/dev/null
echo "went on"`
	m, out := startKernel(t, config.VM{
		Machine:    config.Machine{VCPUCount: 1, MemSizeMiB: 128},
		BootSource: bootSource(vmmtest.Kernel(t), vmmtest.Busybox(t, script)),
		Drives: []config.Drive{{DriveID: "data", PathOnHost: first, RateLimiter: &config.RateLimiter{
			Bandwidth: &config.TokenBucket{Size: 150 << 10, RefillTime: 150}}}},
		Entropy: &config.Entropy{RateLimiter: &config.RateLimiter{Ops: &config.TokenBucket{Size: 5, RefillTime: 100}}},
	})
	ctx := context.Background()
	await := func(text string) {
		t.Helper()
		for begin := time.Now(); !strings.Contains(out.String(), text); time.Sleep(10 * time.Millisecond) {
			if m.State() == config.Ended || time.Since(begin) > bootTimeout {
				t.Fatalf("the guest did not print %q within %v", text, bootTimeout)
			}
		}
	}
	update := func(u config.DriveUpdate) {
		t.Helper()
		if err := m.UpdateDrive(ctx, u); err != nil {
			t.Fatal(err)
		}
	}
	await("want another")
	update(config.DriveUpdate{DriveID: "data", PathOnHost: second, RateLimiter: &config.RateLimiter{
		Bandwidth: &config.TokenBucket{}, Ops: &config.TokenBucket{Size: 5, RefillTime: 100}}})
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
	for _, what := range []string{"bytes", "entropy", "requests"} {
		checkTimes(t, out.String(), what, 4)
	}
	if err := m.UpdateDrive(ctx, config.DriveUpdate{DriveID: "data", PathOnHost: second}); !errors.Is(err, ErrState) {
		t.Errorf("update of a machine that has ended: %v", err)
	}
}

// checkTimes wants each of a guest's measurements to be no shorter than its limit has it, within 5 %; what the bucket gains between two
// of them is less than that. How much longer they are is for the log: a guest on a busy host has not always something to send.
func checkTimes(t *testing.T, console, what string, seconds float64) {
	t.Helper()
	shortest := 0.0
	all := regexp.MustCompile(what+`: ([0-9.]+) ([0-9.]+)\r?\n`).FindAllStringSubmatch(console, -1)
	for _, m := range all {
		begin, _ := strconv.ParseFloat(m[1], 64)
		end, _ := strconv.ParseFloat(m[2], 64)
		took := end - begin
		t.Logf("%s: %.2f s of the guest's clock, want %.2f", what, took, seconds)
		if took < 0.95*seconds {
			t.Errorf("%s: %.2f s, want at least %.2f", what, took, 0.95*seconds)
		}
		if shortest == 0 || took < shortest {
			shortest = took
		}
	}
	if len(all) != 3 || shortest > 5*seconds {
		t.Errorf("%s: %d measurements, the shortest %.2f s, want 3, and about %.2f s", what, len(all), shortest, seconds)
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
