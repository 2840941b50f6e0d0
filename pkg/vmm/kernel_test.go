package vmm

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/config"
	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/uring"
	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/vmmtest"
)

// bootTimeout is generous: the machine may be emulated, and busy.
const bootTimeout = 3 * time.Minute

const bootArgs = "console=ttyS0 quiet loglevel=6 reboot=k panic=1"

func bootSource(kernel, initrd string) *config.BootSource {
	args := bootArgs
	return &config.BootSource{KernelImagePath: kernel, InitrdPath: initrd, BootArgs: &args}
}

func startKernel(t *testing.T, cfg config.VM) (*Machine, *vmmtest.Console) {
	t.Helper()
	var out vmmtest.Console
	m, err := New(context.Background(), cfg, Options{Console: &out})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		m.Close()
		if t.Failed() {
			t.Logf("console:\n%s", out.String())
		}
	})
	if err := m.Start(context.Background()); err != nil {
		t.Fatal(err)
	}
	return m, &out
}

// awaitText waits until the guest has printed text.
func awaitText(t *testing.T, m *Machine, out *vmmtest.Console, text string) {
	t.Helper()
	for begin := time.Now(); ; time.Sleep(10 * time.Millisecond) {
		over := m.State() == config.Ended || time.Since(begin) > bootTimeout // first: it may be the guest's last word
		if strings.Contains(out.String(), text) {
			return
		}
		if over {
			t.Fatalf("the guest did not print %q within %v", text, bootTimeout)
		}
	}
}

func waitKernel(t *testing.T, m *Machine) Exit {
	t.Helper()
	select {
	case <-m.Done():
		return m.Wait()
	case <-time.After(bootTimeout):
		t.Fatalf("the guest did not end within %s", bootTimeout)
		return Exit{}
	}
}

func TestKernel(t *testing.T) {
	vmmtest.NeedKVM(t)
	for _, c := range []struct {
		name      string
		cpus, mib int
		end       string
		want      Reason
	}{
		{"small, reboot", 1, 64, "reboot -f", Rebooted},
		{"two CPUs, panic", 2, 128, "echo c >/proc/sysrq-trigger", Panicked},
		{"four CPUs above the gap, power off", 4, 5 << 10, "poweroff -f", PoweredOff},
	} {
		t.Run(c.name, func(t *testing.T) {
			initrd := vmmtest.Busybox(t, "exec >/dev/console; echo seen $(nproc) cpus $(awk '/MemTotal/{print $2}' /proc/meminfo) kB; sleep 0.2\n"+c.end)
			m, out := startKernel(t, config.VM{
				Machine:    config.Machine{VCPUCount: c.cpus, MemSizeMiB: c.mib},
				BootSource: bootSource(vmmtest.Kernel(t), initrd),
			})
			if e := waitKernel(t, m); e.Reason != c.want || e.Err != nil {
				t.Errorf("ended with %v, %v; want %v", e.Reason, e.Err, c.want)
			}
			seen := regexp.MustCompile(`seen (\d+) cpus (\d+) kB`).FindStringSubmatch(out.String())
			if seen == nil {
				t.Fatal("the guest did not get to its script")
			}
			cpus, _ := strconv.Atoi(seen[1])
			kib, _ := strconv.Atoi(seen[2])
			// The kernel keeps some for itself: less than 48 MiB and a 32nd.
			if least := c.mib<<10 - 48<<10 - c.mib<<10/32; cpus != c.cpus || kib > c.mib<<10 || kib < least {
				t.Errorf("the guest sees %d CPUs and %d kB, want %d and %d to %d", cpus, kib, c.cpus, least, c.mib<<10)
			}
		})
	}
}

// asynchronous is the engine of that name where the host has what it needs.
func asynchronous(t *testing.T) string {
	r, err := uring.New(1)
	if err != nil {
		t.Log(err)
		return config.IOSync
	}
	r.Close()
	return config.IOAsync
}

// A guest drives every device, is paused and resumed in between, and what it wrote is there afterwards.
func TestKernelDevices(t *testing.T) {
	vmmtest.NeedKVM(t)
	dir := t.TempDir()
	disk, shared := filepath.Join(dir, "disk"), filepath.Join(dir, "shared")
	if err := os.Mkdir(shared, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(shared, "from-host"), []byte("hello from the host"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(disk, []byte("contents of the root drive"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(disk, 16<<20); err != nil {
		t.Fatal(err)
	}
	second := filepath.Join(dir, "second")
	if err := os.WriteFile(second, make([]byte, 4<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	const script = `
echo "vda: $(head -c 26 /dev/vda)"
head -c 3000000 /dev/zero | tr '\0' x >/dev/vdb && sync
echo 3 >/proc/sys/vm/drop_caches; echo "vdb: $(head -c 3000000 /dev/vdb | tr -d x | wc -c) differ"
echo "entropy: $(cat /sys/class/misc/hw_random/rng_available) $(dd if=/dev/hwrng bs=64 count=1 2>/dev/null | wc -c)"
mount -t virtiofs shared /mnt && echo "fs: $(cat /mnt/from-host)"
i=0; while [ $i -lt 50 ]; do echo $i >/mnt/counter; i=$((i+1)); done
echo hello from the guest >/mnt/from-guest; umount /mnt
echo "vsock: $(ls /dev/vsock)"`
	m, out := startKernel(t, config.VM{
		Machine:    config.Machine{VCPUCount: 2, MemSizeMiB: 128},
		BootSource: bootSource(vmmtest.Kernel(t), vmmtest.Busybox(t, script)),
		Drives: []config.Drive{
			{DriveID: "second", PathOnHost: second, CacheType: config.CacheWriteback, IOEngine: asynchronous(t)},
			{DriveID: "root", PathOnHost: disk, IsRootDevice: true, IsReadOnly: true},
		},
		Vsock:       &config.Vsock{GuestCID: 3, UDSPath: filepath.Join(dir, "v.sock")},
		Entropy:     &config.Entropy{},
		Filesystems: []config.Filesystem{{FSID: "shared", Tag: "shared", PathOnHost: shared}},
	})
	for m.State() == config.Running {
		if err := m.Pause(context.Background()); err != nil {
			break // it has ended
		}
		time.Sleep(10 * time.Millisecond)
		if err := m.Resume(context.Background()); err != nil {
			break
		}
		select {
		case <-m.Done():
		case <-time.After(200 * time.Millisecond):
		}
	}
	if e := waitKernel(t, m); e.Reason != PoweredOff || e.Err != nil {
		t.Errorf("ended with %v, %v", e.Reason, e.Err)
	}
	for _, want := range []string{"vda: contents of the root drive", "vdb: 0 differ", "entropy: virtio_rng.0  64", "fs: hello from the host", "vsock: /dev/vsock"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("the console lacks %q", want)
		}
	}
	if p, err := os.ReadFile(filepath.Join(shared, "from-guest")); string(p) != "hello from the guest\n" {
		t.Errorf("from the guest: %q, %v", p, err)
	}
	if p, err := os.ReadFile(filepath.Join(shared, "counter")); string(p) != "49\n" {
		t.Errorf("counter: %q, %v", p, err)
	}
	p, err := os.ReadFile(second)
	if err != nil || len(p) != 4<<20 || strings.Trim(string(p[:3000000]), "x") != "" || p[3000000] != 0 {
		t.Errorf("second drive: %d bytes, %v: not what the guest wrote", len(p), err)
	}
	if l, _ := filepath.Glob(filepath.Join(dir, "v.sock*")); len(l) != 0 {
		t.Errorf("sockets left: %v", l)
	}
}

// A stock kernel boots too: a bzImage, its serial port driven by interrupts, its reset by the keyboard controller.
func TestDebianKernel(t *testing.T) {
	vmmtest.NeedKVM(t)
	kernel := vmmtest.DebianKernel(t)
	var digits strings.Builder
	for i := range 2000 {
		fmt.Fprintf(&digits, "%d ", i)
	}
	// The kernel's own messages ("hrtimer: interrupt took …", on a slow machine) must not come between.
	initrd := vmmtest.Busybox(t, `dmesg -n 1; exec >/dev/console 2>&1; echo $(seq 0 1999); echo "the end"; sleep 1; reboot -f`)
	m, out := startKernel(t, config.VM{Machine: config.Machine{VCPUCount: 2, MemSizeMiB: 256}, BootSource: bootSource(kernel, initrd)})
	if e := waitKernel(t, m); e.Reason != Rebooted || e.Err != nil {
		t.Errorf("ended with %v, %v", e.Reason, e.Err)
	}
	if !strings.Contains(out.String(), strings.TrimSpace(digits.String())+"\r\nthe end\r\n") {
		t.Error("the console's output is not what the guest wrote")
	}
}

// The ends of a stock kernel: it finds ACPI's S5, and its pvpanic driver is a module that nobody loads here, so that a panic
// is what panic=1 makes of it, as the package's comment says.
func TestDebianKernelEnds(t *testing.T) {
	vmmtest.NeedKVM(t)
	kernel := vmmtest.DebianKernel(t)
	for _, c := range []struct {
		name, end string
		want      Reason
	}{
		{"power off", "poweroff -f", PoweredOff},
		{"panic", "echo c >/proc/sysrq-trigger", Rebooted},
	} {
		t.Run(c.name, func(t *testing.T) {
			m, out := startKernel(t, config.VM{
				Machine:    config.Machine{VCPUCount: 1, MemSizeMiB: 256},
				BootSource: bootSource(kernel, vmmtest.Busybox(t, "echo the script runs >/dev/console; sleep 0.2\n"+c.end)),
			})
			if e := waitKernel(t, m); e.Reason != c.want || e.Err != nil {
				t.Errorf("ended with %v, %v; want %v", e.Reason, e.Err, c.want)
			}
			if !strings.Contains(out.String(), "the script runs") {
				t.Error("the guest did not get to its script")
			}
		})
	}
}

// A stock kernel restarts when the three keys are pressed, also while it was paused.
func TestDebianKernelKeys(t *testing.T) {
	vmmtest.NeedKVM(t)
	ctx := context.Background()
	for _, paused := range []bool{false, true} {
		t.Run(map[bool]string{false: "running", true: "paused"}[paused], func(t *testing.T) {
			m, out := startKernel(t, config.VM{
				Machine:    config.Machine{VCPUCount: 1, MemSizeMiB: 256},
				BootSource: bootSource(vmmtest.DebianKernel(t), vmmtest.Busybox(t, "echo the script runs >/dev/console; sleep 1000")),
			})
			for end := time.Now().Add(bootTimeout); !strings.Contains(out.String(), "the script runs"); time.Sleep(10 * time.Millisecond) {
				if time.Now().After(end) {
					t.Fatalf("the guest did not get to its script within %s", bootTimeout)
				}
			}
			if paused {
				if err := m.Pause(ctx); err != nil {
					t.Fatal(err)
				}
			}
			if err := m.SendCtrlAltDel(ctx); err != nil {
				t.Fatal(err)
			}
			if paused {
				if err := m.Resume(ctx); err != nil {
					t.Fatal(err)
				}
			}
			if e := waitKernel(t, m); e.Reason != Rebooted || e.Err != nil {
				t.Errorf("ended with %v, %v; want %v", e.Reason, e.Err, Rebooted)
			}
		})
	}
}
