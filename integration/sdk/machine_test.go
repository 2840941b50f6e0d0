package sdk

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	firecracker "github.com/firecracker-microvm/firecracker-go-sdk"
	"github.com/firecracker-microvm/firecracker-go-sdk/client/models"
	"github.com/firecracker-microvm/firecracker-go-sdk/vsock"
	"github.com/sirupsen/logrus"
)

func quiet() *logrus.Entry {
	l := logrus.New()
	l.SetOutput(io.Discard)
	return logrus.NewEntry(l)
}

// ask has the guest do one command, over a connection that the SDK makes, and gives its answer's first line.
func ask(t *testing.T, path, command string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), bound)
	defer cancel()
	c, err := vsock.DialContext(ctx, path, vsockPort, vsock.WithDialTimeout(bound), vsock.WithConnectionMsgTimeout(bound), vsock.WithAckMsgTimeout(bound))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(bound))
	fmt.Fprintln(c, command)
	line, err := bufio.NewReader(c).ReadString('\n')
	if err != nil && err != io.EOF {
		t.Fatalf("%s: %v", command, err)
	}
	return strings.TrimSpace(line)
}

func limiter(size, refill int64) *models.RateLimiter {
	return firecracker.NewRateLimiter(
		firecracker.TokenBucketBuilder{}.WithBucketSize(size).WithRefillDuration(time.Duration(refill)*time.Millisecond).Build(),
		firecracker.TokenBucketBuilder{}.WithBucketSize(size).WithInitialSize(1).WithRefillDuration(time.Duration(refill)*time.Millisecond).Build())
}

// TestMachine takes one machine through all that the SDK's Machine offers, as far as fc-vmm has it.
func TestMachine(t *testing.T) {
	found := needMachine(t)
	ctx := context.Background()
	dir := t.TempDir()
	write := func(name, text string) string {
		t.Helper()
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text+strings.Repeat("\x00", 1<<20-len(text))), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	first, second := write("first", "the first file"), write("second", "the second file")
	socket := filepath.Join(dir, "v.sock")
	const tap, mac = "fcsdk0", "06:00:ac:10:00:02"

	m := newMachine(t, found.kernel, func(c *firecracker.Config) {
		c.VMID = "sdk-test"
		c.MachineCfg.Smt = firecracker.Bool(false)
		image := rootFS(t)
		c.Drives = firecracker.NewDrivesBuilder(image).
			WithRootDrive(image, firecracker.WithReadOnly(false), firecracker.WithCacheType("Writeback"), firecracker.WithRateLimiter(*limiter(1<<30, 100))).
			AddDrive(first, true, firecracker.WithDriveID("data"), firecracker.WithIoEngine("Sync")).Build()
		c.VsockDevices = []firecracker.VsockDevice{{ID: "vsock0", Path: socket, CID: 3}}
		c.NetworkInterfaces = firecracker.NetworkInterfaces{{
			StaticConfiguration: &firecracker.StaticNetworkConfiguration{HostDevName: tap, MacAddress: mac,
				IPConfiguration: &firecracker.IPConfiguration{IPAddr: net.IPNet{IP: net.IPv4(172, 16, 0, 2), Mask: net.CIDRMask(24, 32)}, Gateway: net.IPv4(172, 16, 0, 1)}},
			InRateLimiter: limiter(1<<30, 100), OutRateLimiter: limiter(1<<30, 100),
		}}
	})
	if err := m.Start(ctx); err != nil {
		t.Fatal(err)
	}
	if err := m.Start(ctx); err != firecracker.ErrAlreadyStarted {
		t.Errorf("a second start: %v", err)
	}
	if pid, err := m.PID(); err != nil || pid == 0 {
		t.Errorf("PID %d, %v", pid, err)
	}
	if v, err := m.GetFirecrackerVersion(ctx); err != nil || v == "" {
		t.Errorf("version %q, %v", v, err)
	}
	state := func(want string) {
		t.Helper()
		i, err := m.DescribeInstanceInfo(ctx)
		if err != nil || *i.State != want || *i.ID != "sdk-test" || *i.AppName == "" || *i.VmmVersion == "" {
			t.Errorf("instance %+v, %v, want state %q", i, err, want)
		}
	}
	state(models.InstanceInfoStateRunning)
	if got := ask(t, socket, "echo hello"); got != "hello" {
		t.Errorf("over vsock: %q", got)
	}

	t.Run("drives", func(t *testing.T) {
		if got := ask(t, socket, "read /dev/vdb"); !strings.HasPrefix(got, "the first file") {
			t.Errorf("the drive has %q", got)
		}
		if err := m.UpdateGuestDrive(ctx, "data", second); err != nil {
			t.Fatal(err)
		}
		if err := m.UpdateGuestDrive(ctx, "nope", second); err == nil || !strings.Contains(err.Error(), "nope") {
			t.Errorf("a drive that is not there: %v", err)
		}
	})
	t.Run("network", func(t *testing.T) {
		serveTAP(t, tap, "172.16.0.1/24", "hello from the host")
		if got := ask(t, socket, "get 172.16.0.1:8080"); got != "hello from the host" {
			t.Errorf("over TCP: %q", got)
		}
		if got := ask(t, socket, "mac"); !strings.HasPrefix(got, mac) {
			t.Errorf("the guest's address is %q", got)
		}
		set := firecracker.RateLimiterSet{InRateLimiter: limiter(1<<20, 100), OutRateLimiter: limiter(1<<20, 100)}
		if err := m.UpdateGuestNetworkInterfaceRateLimit(ctx, "1", set); err != nil {
			t.Error(err)
		}
		if got := ask(t, socket, "get 172.16.0.1:8080"); got != "hello from the host" {
			t.Errorf("over TCP, with other limits: %q", got)
		}
	})
	t.Run("pause and resume", func(t *testing.T) {
		if err := m.PauseVM(ctx); err != nil {
			t.Fatal(err)
		}
		state(models.InstanceInfoStatePaused)
		if err := m.ResumeVM(ctx); err != nil {
			t.Fatal(err)
		}
		state(models.InstanceInfoStateRunning)
		if got := ask(t, socket, "echo again"); got != "again" {
			t.Errorf("over vsock: %q", got)
		}
	})
	t.Run("configuration", func(t *testing.T) {
		cfg, err := firecracker.NewClient(m.Cfg.SocketPath, quiet(), false).GetExportVMConfig()
		if err != nil {
			t.Fatal(err)
		}
		p := cfg.Payload
		if *p.MachineConfig.MemSizeMib != 256 || len(p.Drives) != 2 || len(p.NetworkInterfaces) != 1 || *p.Vsock.GuestCid != 3 || *p.Drives[1].PathOnHost == "" {
			t.Errorf("got %+v", p)
		}
	})
	t.Run("snapshot is refused", func(t *testing.T) {
		if err := m.CreateSnapshot(ctx, filepath.Join(dir, "mem"), filepath.Join(dir, "snap")); err == nil || !strings.Contains(err.Error(), "not supported") {
			t.Errorf("%v", err)
		}
	})
	ask(t, socket, "poweroff")
	// Firecracker cannot power off on x86, and its own statuses mean other things: 80 is ours.
	if err := m.end(t); err == nil || !strings.Contains(err.Error(), "exit status 80") {
		t.Errorf("ended with %v", err)
	}
	for _, path := range []string{m.Cfg.SocketPath, socket} {
		if _, err := os.Lstat(path); err == nil {
			t.Errorf("%s was left behind", path)
		}
	}
	if _, err := m.PID(); err == nil {
		t.Error("a PID after the end")
	}
}

// TestStop is the end that the host brings about.
func TestStop(t *testing.T) {
	found := needMachine(t)
	m := newMachine(t, found.kernel, func(c *firecracker.Config) { c.InitrdPath = initrd(t) })
	if err := m.Start(context.Background()); err != nil {
		t.Fatal(err)
	}
	m.console.await(t, "guest: up")
	if err := m.StopVMM(); err != nil {
		t.Fatal(err)
	}
	if err := m.end(t); err != nil {
		t.Errorf("ended with %v", err)
	}
	if _, err := os.Lstat(m.Cfg.SocketPath); err == nil {
		t.Error("the socket was left behind")
	}
}

// TestShutdown presses Ctrl+Alt+Del, for which the guest's kernel needs a keyboard driver: Debian's has it.
func TestShutdown(t *testing.T) {
	found := needMachine(t)
	if found.debian == "" {
		t.Skip("needs Debian's kernel")
	}
	m := newMachine(t, found.debian, func(c *firecracker.Config) { c.InitrdPath = initrd(t) })
	// What users of the SDK do: a handler of their own, among the others.
	seen := false
	m.Handlers.FcInit = m.Handlers.FcInit.Append(firecracker.Handler{Name: "test.Seen", Fn: func(_ context.Context, m *firecracker.Machine) error {
		seen = true
		return nil
	}})
	if err := m.Start(context.Background()); err != nil {
		t.Fatal(err)
	}
	if !seen {
		t.Error("the handler was not called")
	}
	m.console.await(t, "guest: up")
	if err := m.Shutdown(context.Background()); err != nil {
		t.Fatal(err)
	}
	if err := m.end(t); err != nil {
		t.Errorf("ended with %v", err)
	}
}

// TestRefusals is what the SDK's users see of requests that are wrong.
func TestRefusals(t *testing.T) {
	found := needMachine(t)
	m := newMachine(t, found.kernel, func(c *firecracker.Config) {
		c.MachineCfg.VcpuCount = firecracker.Int64(33)
		c.InitrdPath = initrd(t)
	})
	err := m.Start(context.Background())
	if err == nil || !strings.Contains(err.Error(), "vcpu_count is 33: want 1 to 32") {
		t.Errorf("got %v", err)
	}
}
