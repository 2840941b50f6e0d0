package integration

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/fcshim/containerd-shim-fc-v2/integration/harness"
)

// envDebianKernel names a kernel of Debian's for TestVMM; without it, the one in /boot or the test machine's own is taken.
const envDebianKernel = "FC_DEBIAN_KERNEL"

// vmmInit is PID 1 of the guests below. The kernel's command line tells it what to do.
const vmmInit = `#!/bin/busybox sh
/bin/busybox mount -t proc proc /proc
/bin/busybox mount -t devtmpfs dev /dev
/bin/busybox echo "init runs on $(/bin/busybox uname -r)"
for word in $(/bin/busybox cat /proc/cmdline); do
	case $word in
	do=disk)
		/bin/busybox echo "disk has $(/bin/busybox head -c 12 /dev/vda)"
		/bin/busybox echo -n "from the guest" >/dev/vda
		/bin/busybox sync
		/bin/busybox poweroff -f ;;
	do=poweroff) /bin/busybox poweroff -f ;;
	do=reboot) /bin/busybox reboot -f ;;
	do=panic) /bin/busybox echo c >/proc/sysrq-trigger ;;
	do=wait) /bin/busybox sleep 1000 ;;
	esac
done
`

// vmmTools are what a test of fc-vmm alone needs.
type vmmTools struct{ vmm, ours, debian, initrd string }

func needVMM(t *testing.T) vmmTools {
	t.Helper()
	if err := harness.UsableKVM(); err != nil {
		if os.Getenv(harness.EnvRequireKVM) == "1" {
			t.Fatal(err)
		}
		t.Skip(err)
	}
	bin := os.Getenv(harness.EnvBinDir)
	if bin == "" {
		bin = "../bin"
	}
	tools := vmmTools{vmm: filepath.Join(bin, "fc-vmm"), ours: filepath.Join(bin, "vmlinux"), debian: os.Getenv(envDebianKernel)}
	for _, need := range []string{tools.vmm, "/bin/busybox"} {
		if _, err := os.Stat(need); err != nil {
			t.Skip(err)
		}
	}
	home, _ := os.UserHomeDir()
	for _, pattern := range []string{"/boot/vmlinuz-*", filepath.Join(home, ".cache/fcshim/machine/kernel/boot/vmlinuz-*")} {
		if found, _ := filepath.Glob(pattern); tools.debian == "" && len(found) > 0 {
			tools.debian = found[len(found)-1]
		}
	}
	tools.initrd = filepath.Join(t.TempDir(), "initrd")
	if err := os.WriteFile(tools.initrd, vmmInitrd(t), 0o600); err != nil {
		t.Fatal(err)
	}
	return tools
}

// vmmInitrd is an archive of the form newc (Linux, Documentation/driver-api/early-userspace/buffer-format.rst).
func vmmInitrd(t *testing.T) []byte {
	t.Helper()
	busybox, err := os.ReadFile("/bin/busybox")
	if err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	add := func(name string, mode, major, minor int, data []byte) {
		fmt.Fprintf(&b, "070701%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%s\x00",
			0, mode, 0, 0, 1, 0, len(data), 0, 0, major, minor, len(name)+1, 0, name)
		b.Write(make([]byte, -b.Len()&3))
		b.Write(data)
		b.Write(make([]byte, -b.Len()&3))
	}
	for _, dir := range []string{"bin", "dev", "proc"} {
		add(dir, syscall.S_IFDIR|0o755, 0, 0, nil)
	}
	add("dev/console", syscall.S_IFCHR|0o600, 5, 1, nil)
	add("bin/busybox", syscall.S_IFREG|0o755, 0, 0, busybox)
	add("init", syscall.S_IFREG|0o755, 0, 0, []byte(vmmInit))
	add("TRAILER!!!", 0, 0, 0, nil)
	return b.Bytes()
}

// vmmProcess is an fc-vmm whose standard output is the guest's console.
type vmmProcess struct {
	cmd     *exec.Cmd
	sock    string
	console bytes.Buffer
	log     bytes.Buffer
}

func startVMM(t *testing.T, tools vmmTools, args ...string) *vmmProcess {
	t.Helper()
	p := &vmmProcess{cmd: exec.Command(tools.vmm, args...)}
	p.cmd.Stdout, p.cmd.Stderr = &p.console, &p.log
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.cmd.Process.Kill() })
	return p
}

// serveVMM starts fc-vmm with an API and waits until it listens.
func serveVMM(t *testing.T, tools vmmTools) *vmmProcess {
	t.Helper()
	sock := filepath.Join(t.TempDir(), "fc.sock")
	p := startVMM(t, tools, "--api-sock", sock)
	p.sock = sock
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		if c, err := net.Dial("unix", sock); err == nil {
			c.Close()
			return p
		}
		if time.Now().After(deadline) {
			t.Fatalf("no API after 10 s:\n%s", &p.log)
		}
	}
}

// curl sends a request as a user would, and wants 200 or 204.
func (p *vmmProcess) curl(t *testing.T, method, path, body string) {
	t.Helper()
	out, err := exec.Command("curl", "-sS", "--max-time", "60", "--unix-socket", p.sock, "-X", method, "-d", body,
		"-w", "%{http_code}", "http://localhost"+path).CombinedOutput()
	if err != nil || !strings.HasSuffix(string(out), "204") {
		t.Fatalf("%s %s %s: %s, %v", method, path, body, out, err)
	}
}

// end waits for the guest's end.
func (p *vmmProcess) end(t *testing.T) int {
	t.Helper()
	kill := time.AfterFunc(3*time.Minute, func() { p.cmd.Process.Kill() })
	defer kill.Stop()
	p.cmd.Wait()
	return p.cmd.ProcessState.ExitCode()
}

func quote(s string) string {
	b, _ := json.Marshal(s) // a string always marshals
	return string(b)
}

// TestVMM boots real kernels by hand: with curl over the API, and from a configuration file without one.
func TestVMM(t *testing.T) {
	tools := needVMM(t)
	if _, err := exec.LookPath("curl"); err != nil {
		t.Skip(err)
	}
	for _, tt := range []struct {
		name, kernel, do string
		status           int
	}{
		{"our kernel, power off", tools.ours, "poweroff", 80},
		{"our kernel, reboot", tools.ours, "reboot", 0},
		{"our kernel, panic", tools.ours, "panic", 81},
		{"Debian's kernel, power off", tools.debian, "poweroff", 80},
		{"Debian's kernel, reboot", tools.debian, "reboot", 0},
		{"Debian's kernel, panic before pvpanic is loaded", tools.debian, "panic", 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if _, err := os.Stat(tt.kernel); err != nil {
				t.Skip(err)
			}
			boot := fmt.Sprintf(`{"kernel_image_path": %s, "initrd_path": %s, "boot_args": "console=ttyS0 reboot=k panic=1 do=%s"}`,
				quote(tt.kernel), quote(tools.initrd), tt.do)
			p := serveVMM(t, tools)
			p.curl(t, "PUT", "/machine-config", `{"vcpu_count": 1, "mem_size_mib": 256}`)
			p.curl(t, "PUT", "/boot-source", boot)
			began := time.Now()
			p.curl(t, "PUT", "/actions", `{"action_type": "InstanceStart"}`)
			status := p.end(t)
			t.Logf("the guest ran for %v", time.Since(began).Round(time.Millisecond))
			if status != tt.status || !strings.Contains(p.console.String(), "init runs on") {
				t.Errorf("status %d, want %d; console:\n%s\nlog:\n%s", status, tt.status, &p.console, &p.log)
			}
			if _, err := os.Lstat(p.sock); err == nil {
				t.Error("the socket was left behind")
			}
		})
	}
	t.Run("disk, pause and resume", func(t *testing.T) {
		if _, err := os.Stat(tools.ours); err != nil {
			t.Skip(err)
		}
		disk := filepath.Join(t.TempDir(), "disk")
		write(t, disk, "from outside"+strings.Repeat("\x00", 1<<20-12))
		p := serveVMM(t, tools)
		p.curl(t, "PUT", "/boot-source", fmt.Sprintf(`{"kernel_image_path": %s, "initrd_path": %s, "boot_args": "console=ttyS0 reboot=k panic=1 do=disk"}`,
			quote(tools.ours), quote(tools.initrd)))
		p.curl(t, "PUT", "/drives/d", fmt.Sprintf(`{"drive_id": "d", "path_on_host": %s, "is_root_device": false, "cache_type": "Writeback"}`, quote(disk)))
		p.curl(t, "PUT", "/entropy", `{}`)
		p.curl(t, "PUT", "/vsock", fmt.Sprintf(`{"guest_cid": 3, "uds_path": %s}`, quote(filepath.Join(t.TempDir(), "v.sock"))))
		p.curl(t, "PUT", "/actions", `{"action_type": "InstanceStart"}`)
		p.curl(t, "PATCH", "/vm", `{"state": "Paused"}`)
		p.curl(t, "PATCH", "/vm", `{"state": "Resumed"}`)
		if status := p.end(t); status != 80 || !strings.Contains(p.console.String(), "disk has from outside") {
			t.Errorf("status %d; console:\n%s\nlog:\n%s", status, &p.console, &p.log)
		}
		if b, err := os.ReadFile(disk); err != nil || !bytes.HasPrefix(b, []byte("from the guest")) {
			t.Errorf("the disk begins with %q, %v", b[:min(len(b), 20)], err)
		}
	})
	t.Run("configuration file", func(t *testing.T) {
		kernel := tools.ours
		if _, err := os.Stat(kernel); err != nil {
			kernel = tools.debian
		}
		if kernel == "" {
			t.Skip("no kernel")
		}
		file := filepath.Join(t.TempDir(), "vm.json")
		write(t, file, fmt.Sprintf(`{
  "boot-source": {"kernel_image_path": %s, "initrd_path": %s, "boot_args": "console=ttyS0 reboot=k panic=1 do=wait"},
  "machine-config": {"vcpu_count": 2, "mem_size_mib": 256}, "drives": [], "network-interfaces": [], "balloon": null
}`, quote(kernel), quote(tools.initrd)))
		p := startVMM(t, tools, "--no-api", "--config-file", file)
		time.AfterFunc(2*time.Second, func() { p.cmd.Process.Signal(syscall.SIGTERM) })
		if status := p.end(t); status != 0 {
			t.Errorf("told to stop, it ended with status %d; console:\n%s\nlog:\n%s", status, &p.console, &p.log)
		}
	})
}
