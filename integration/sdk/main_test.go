package sdk

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	firecracker "github.com/firecracker-microvm/firecracker-go-sdk"
	"github.com/firecracker-microvm/firecracker-go-sdk/client/models"
	"github.com/sirupsen/logrus"
)

// bound is how long any one step of a test may take. The machine may be emulated, and busy.
const bound = 3 * time.Minute

// TestMain is also PID 1 of the guests, whose root holds the test's own program.
func TestMain(m *testing.M) {
	if os.Getpid() == 1 {
		guest()
	}
	os.Exit(m.Run())
}

// tools is what the tests run with.
type tools struct {
	kernel string // ours
	debian string // Debian's, which has a driver for the keyboard; empty if there is none
}

// needMachine skips the test where there is no KVM, or fails it if that is required, and has the SDK find fc-vmm when it looks for
// firecracker, in the PATH, as it does by default.
func needMachine(t *testing.T) tools {
	t.Helper()
	skip := t.Skip
	if os.Getenv("FC_REQUIRE_KVM") == "1" {
		skip = t.Fatal
	}
	if info, err := os.ReadFile("/proc/cpuinfo"); err != nil || !strings.Contains(string(info), " svm") && !strings.Contains(string(info), " vmx") {
		skip("needs KVM, and the CPU shows neither svm nor vmx: ", err)
	}
	bin := os.Getenv("FC_BIN_DIR")
	if bin == "" {
		bin = "../../bin"
	}
	bin, err := filepath.Abs(bin)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"fc-vmm", "vmlinux"} {
		if _, err := os.Stat(filepath.Join(bin, name)); err != nil {
			skip(err)
		}
	}
	path := t.TempDir()
	if err := os.Symlink(filepath.Join(bin, "fc-vmm"), filepath.Join(path, "firecracker")); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", path+":"+os.Getenv("PATH"))
	t.Setenv("FIRECRACKER_GO_SDK_REQUEST_TIMEOUT_MILLISECONDS", "60000")
	t.Setenv("FIRECRACKER_GO_SDK_INIT_TIMEOUT_SECONDS", "60")
	found := tools{kernel: filepath.Join(bin, "vmlinux")}
	cache, _ := os.UserCacheDir()
	for _, pattern := range []string{"/boot/vmlinuz-*-cloud-amd64", cache + "/fcshim/machine/kernel/boot/vmlinuz-*-cloud-amd64"} {
		if l, _ := filepath.Glob(pattern); len(l) > 0 {
			found.debian = l[0]
		}
	}
	return found
}

// rootFS makes an ext4 image whose /sbin/init is this program.
func rootFS(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	root, image := filepath.Join(dir, "root"), filepath.Join(dir, "rootfs.ext4")
	for _, d := range []string{"sbin", "proc", "sys", "dev"} {
		if err := os.MkdirAll(filepath.Join(root, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	copyProgram(t, filepath.Join(root, "sbin/init"))
	out, err := exec.Command("mke2fs", "-q", "-t", "ext4", "-d", root, image, "128M").CombinedOutput()
	if err != nil {
		t.Fatalf("mke2fs: %v: %s", err, out)
	}
	return image
}

func copyProgram(t *testing.T, to string) {
	t.Helper()
	self, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(to, self, 0o755); err != nil {
		t.Fatal(err)
	}
}

// output collects what a machine prints.
type output struct {
	mu   sync.Mutex
	text strings.Builder
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.text.Write(p)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.text.String()
}

// await waits until the output has the text.
func (o *output) await(t *testing.T, text string) {
	t.Helper()
	for end := time.Now().Add(bound); !strings.Contains(o.String(), text); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("no %q on the console within %v", text, bound)
		}
	}
}

// machine is the SDK's, with its guest's console.
type machine struct {
	*firecracker.Machine
	console *output
}

// newMachine makes a machine by the SDK as a user of it would; configure adds to what every guest needs.
func newMachine(t *testing.T, kernel string, configure func(*firecracker.Config)) *machine {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	out := &output{}
	cfg := firecracker.Config{
		SocketPath:      filepath.Join(t.TempDir(), "firecracker.sock"),
		KernelImagePath: kernel,
		KernelArgs:      "console=ttyS0 quiet reboot=k panic=1",
		MachineCfg:      models.MachineConfiguration{VcpuCount: firecracker.Int64(1), MemSizeMib: firecracker.Int64(256)},
		ForwardSignals:  []os.Signal{},
	}
	configure(&cfg)
	logger := logrus.New()
	logger.SetOutput(out)
	// The command is the one that the SDK itself would build, with the console where the test can see it.
	args := firecracker.VMCommandBuilder{}.WithSocketPath(cfg.SocketPath).AddArgs("--id", "sdk-test", "--no-seccomp").
		WithStdout(out).WithStderr(out)
	m, err := firecracker.NewMachine(ctx, cfg, firecracker.WithLogger(logrus.NewEntry(logger)), firecracker.WithProcessRunner(args.Build(ctx)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		m.StopVMM()
		wait, stop := context.WithTimeout(context.Background(), bound)
		defer stop()
		m.Wait(wait)
		cancel()
		if t.Failed() {
			t.Logf("output:\n%s", out)
		}
	})
	return &machine{m, out}
}

// end waits for the end of the process.
func (m *machine) end(t *testing.T) error {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), bound)
	defer cancel()
	err := m.Wait(ctx)
	if ctx.Err() != nil {
		t.Fatalf("fc-vmm did not end within %v", bound)
	}
	return err
}
