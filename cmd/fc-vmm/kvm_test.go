package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/api"
	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/config"
	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/vmmtest"
)

// port is code that writes v to an I/O port: mov dx, port; mov al, v; out dx, al.
func port(port uint16, v byte) []byte {
	return []byte{0x66, 0xba, byte(port), byte(port >> 8), 0xb0, v, 0xee}
}

// kernel makes a kernel that prints text on the serial console and goes on with code, and gives its path.
func kernel(t *testing.T, text string, code ...byte) string {
	t.Helper()
	var all []byte
	for _, c := range []byte(text) {
		all = append(all, port(0x3f8, c)...)
	}
	path := filepath.Join(t.TempDir(), "kernel")
	if err := os.WriteFile(path, vmmtest.ELF(append(all, code...)), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// consoleHas waits until a guest has printed text, its line ends without a carriage return, to the file that its console is.
func consoleHas(ctx context.Context, t *testing.T, console, text string) {
	t.Helper()
	for {
		b, err := os.ReadFile(console)
		if err == nil && strings.Contains(strings.ReplaceAll(string(b), "\r", ""), text) {
			return
		}
		select {
		case <-ctx.Done():
			t.Fatalf("the console has no %q: %s", text, b)
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// spin is jmp to itself: a guest that leaves KVM_RUN for nobody.
var spin = []byte{0xeb, 0xfe}

var ends = []struct {
	name   string
	code   []byte
	status int
}{
	{"reboot", port(0x64, 0xfe), 0},
	{"power off", port(0x600, 5<<2|1<<5), 80},
	{"panic", port(0x505, 1), 81},
	{"triple fault", []byte{0x0f, 0x0b}, 82},
}

func TestStatusOverAPI(t *testing.T) {
	vmmtest.NeedKVM(t)
	for _, tt := range ends {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			sock, console := filepath.Join(dir, "fc.sock"), filepath.Join(dir, "console")
			p := start(t, nil, "--api-sock", sock)
			c := answers(t, sock)
			ctx := context.Background()
			if err := c.PutBootSource(ctx, config.BootSource{KernelImagePath: kernel(t, "hello", append(tt.code, spin...)...)}); err != nil {
				t.Fatal(err)
			}
			if err := c.PutSerial(ctx, config.Serial{SerialOutPath: console}); err != nil {
				t.Fatal(err)
			}
			if err := c.Start(ctx); err != nil {
				t.Fatal(err)
			}
			ws, out := p.end(t)
			if !ws.Exited() || ws.ExitStatus() != tt.status {
				t.Errorf("ended with %v, want status %d:\n%s", ws, tt.status, out)
			}
			if text, err := os.ReadFile(console); err != nil || string(text) != "hello" {
				t.Errorf("console: %q, %v", text, err)
			}
			if _, err := os.Lstat(sock); err == nil {
				t.Error("the socket was left behind")
			}
		})
	}
}

func TestStatusFromFile(t *testing.T) {
	vmmtest.NeedKVM(t)
	for _, tt := range ends {
		t.Run(tt.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "vm.json")
			text := `{"boot-source": {"kernel_image_path": "` + kernel(t, "hello", append(tt.code, spin...)...) + `"},
				"machine-config": {"vcpu_count": 2, "mem_size_mib": 64}}`
			if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
			ws, out := start(t, nil, "--no-api", "--config-file", path, "--level", "error").end(t)
			if !ws.Exited() || ws.ExitStatus() != tt.status || !strings.HasPrefix(out, "hello") {
				t.Errorf("ended with %v, want status %d:\n%s", ws, tt.status, out)
			}
		})
	}
}

// bootTimer is code that writes v to the boot timer at an offset: mov byte [0xc0000000+offset], v.
func bootTimer(offset, v byte) []byte {
	return []byte{0xc6, 0x05, offset, 0, 0, 0xc0, v}
}

// The log says when a guest has booted, and how long each phase took, once, however often the guest says so.
func TestBootTimer(t *testing.T) {
	vmmtest.NeedKVM(t)
	off := port(0x600, 5<<2|1<<5)
	booted := slices.Concat(bootTimer(1, 123), bootTimer(0, 122), bootTimer(0, 123), bootTimer(0, 123), off)
	const bootLine, phases = "Guest-boot-time = ", " api=.* boot=.* configure=.* devices=.* exec=.* kernel=.* memory=.* total=.* vcpus=.*"
	tests := []struct {
		name           string
		args           []string
		code           []byte
		lines          int // that tell of a boot
		phases, absent string
	}{
		{"booted", []string{"--boot-timer", "--level", "debug", "--start-time-us", "1"}, booted, 1, phases, ""},
		{"no debug", []string{"--boot-timer"}, booted, 1, "", "microVM started"},
		{"never booted", []string{"--boot-timer", "--level", "debug"}, off, 0, " api=.* total=.* vcpus=.*", " boot="},
		{"no boot timer", []string{"--level", "debug"}, booted, 0, " api=.* total=.* vcpus=.*", " boot="},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "vm.json")
			text := `{"boot-source": {"kernel_image_path": "` + kernel(t, "hello", append(tt.code, spin...)...) + `"}}`
			if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
			ws, out := start(t, nil, append(tt.args, "--no-api", "--config-file", path)...).end(t)
			if !ws.Exited() || ws.ExitStatus() != config.StatusPoweredOff {
				t.Errorf("ended with %v:\n%s", ws, out)
			}
			if n := strings.Count(out, bootLine); n != tt.lines {
				t.Errorf("%d lines of a boot, want %d:\n%s", n, tt.lines, out)
			}
			if n := len(regexp.MustCompile("microVM started.*"+tt.phases).FindAllString(out, -1)); tt.phases != "" && n != 1 {
				t.Errorf("%d lines of the phases, want 1:\n%s", n, out)
			}
			if tt.absent != "" && strings.Contains(out, tt.absent) {
				t.Errorf("%q is there:\n%s", tt.absent, out)
			}
		})
	}
}

// A guest that never leaves the CPU can be paused, told to stop, and killed by its parent's death.
func TestSpinningGuest(t *testing.T) {
	vmmtest.NeedKVM(t)
	boot := func(t *testing.T, files []*os.File, args ...string) (*process, *api.Client) {
		sock := filepath.Join(t.TempDir(), "fc.sock")
		p := start(t, files, append(args, "--api-sock", sock)...)
		c := answers(t, sock)
		ctx := context.Background()
		if err := c.PutBootSource(ctx, config.BootSource{KernelImagePath: kernel(t, "", spin...)}); err != nil {
			t.Fatal(err)
		}
		if err := c.Start(ctx); err != nil {
			t.Fatal(err)
		}
		return p, c
	}
	t.Run("pause, resume, SIGTERM", func(t *testing.T) {
		p, c := boot(t, nil)
		for _, step := range []struct {
			do   func(context.Context) error
			want config.State
		}{{c.Pause, config.Paused}, {c.Pause, config.Paused}, {c.Resume, config.Running}} {
			if err := step.do(context.Background()); err != nil {
				t.Fatal(err)
			}
			if s, err := c.State(context.Background()); err != nil || s != step.want {
				t.Fatalf("state %q, %v, want %q", s, err, step.want)
			}
		}
		if err := c.PutEntropy(context.Background(), config.Entropy{}); err == nil || !strings.Contains(err.Error(), "after starting") {
			t.Errorf("a device after the start: %v", err)
		}
		p.Process.Signal(syscall.SIGTERM)
		if ws, out := p.end(t); !ws.Exited() || ws.ExitStatus() != 0 {
			t.Errorf("ended with %v:\n%s", ws, out)
		}
	})
	t.Run("parent's death", func(t *testing.T) {
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		p, _ := boot(t, []*os.File{r}, "--parent-fd", "3")
		r.Close()
		began := time.Now()
		w.Close()
		if ws, out := p.end(t); !ws.Signaled() || ws.Signal() != syscall.SIGKILL {
			t.Errorf("ended with %v:\n%s", ws, out)
		}
		t.Logf("killed after %v", time.Since(began))
	})
}

// A start that fails says why, leaves nothing running, and can be tried again.
func TestStartFails(t *testing.T) {
	vmmtest.NeedKVM(t)
	dir := t.TempDir()
	sock, text := filepath.Join(dir, "fc.sock"), filepath.Join(dir, "text")
	if err := os.WriteFile(text, bytes.Repeat([]byte("no kernel\n"), 1000), 0o600); err != nil {
		t.Fatal(err)
	}
	p := start(t, nil, "--api-sock", sock)
	c := answers(t, sock)
	ctx := context.Background()
	if err := c.PutBootSource(ctx, config.BootSource{KernelImagePath: text}); err != nil {
		t.Fatal(err)
	}
	err := c.Start(ctx)
	if err == nil || !strings.Contains(err.Error(), "kernel_image_path") || strings.Contains(err.Error(), "\n") {
		t.Errorf("start of no kernel: %v", err)
	}
	t.Log(err)
	if s, err := c.State(ctx); err != nil || s != config.NotStarted {
		t.Errorf("state %q, %v", s, err)
	}
	if err := c.PutBootSource(ctx, config.BootSource{KernelImagePath: kernel(t, "", port(0x600, 5<<2|1<<5)...)}); err != nil {
		t.Fatal(err)
	}
	if err := c.Start(ctx); err != nil {
		t.Fatal(err)
	}
	if ws, out := p.end(t); ws.ExitStatus() != 80 {
		t.Errorf("ended with %v:\n%s", ws, out)
	}
}

// hasOpen tells whether a process has a file open.
func hasOpen(pid int, path string) bool {
	dir := fmt.Sprintf("/proc/%d/fd/", pid)
	fds, _ := os.ReadDir(dir)
	return slices.ContainsFunc(fds, func(fd os.DirEntry) bool {
		to, _ := os.Readlink(dir + fd.Name())
		return to == path
	})
}

// A signal that comes in the middle of a start leaves nothing of the machine behind either.
func TestStopDuringStart(t *testing.T) {
	vmmtest.NeedKVM(t)
	dir := t.TempDir()
	initrd, vsock := filepath.Join(dir, "initrd"), filepath.Join(dir, "v.sock")
	if err := os.WriteFile(initrd, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(initrd, 64<<20); err != nil { // takes long to load, and no room here
		t.Fatal(err)
	}
	boot := config.VM{
		Machine:    config.Machine{VCPUCount: 1, MemSizeMiB: 128},
		BootSource: &config.BootSource{KernelImagePath: kernel(t, "", spin...), InitrdPath: initrd},
		Vsock:      &config.Vsock{GuestCID: 3, UDSPath: vsock},
	}
	// stop reports whether it was in time: a busy machine may not look at the right moment.
	stop := func(t *testing.T, p *process) (loading bool) {
		for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(time.Millisecond) {
			if loading = hasOpen(p.Process.Pid, initrd); loading || hasOpen(p.Process.Pid, "anon_inode:kvm-vcpu:0") {
				break
			}
			if time.Now().After(deadline) {
				t.Fatal("the initrd was not being loaded after 30 s")
			}
		}
		p.Process.Signal(syscall.SIGTERM)
		if ws, out := p.end(t); !ws.Exited() || ws.ExitStatus() != 0 || !strings.Contains(out, "told to stop") {
			t.Errorf("ended with %v:\n%s", ws, out)
		}
		if _, err := os.Lstat(vsock); err == nil {
			t.Error("the vsock device's socket was left behind")
			os.Remove(vsock)
		}
		return loading
	}
	inTime := func(t *testing.T, once func(t *testing.T) bool) {
		for range 20 {
			if once(t) || t.Failed() {
				return
			}
		}
		t.Error("20 starts were over before they could be stopped")
	}
	overAPI := func(t *testing.T) bool {
		sock := filepath.Join(dir, "fc.sock")
		p := start(t, nil, "--api-sock", sock)
		c := answers(t, sock)
		ctx := context.Background()
		if err := errors.Join(c.PutMachineConfig(ctx, boot.Machine), c.PutBootSource(ctx, *boot.BootSource), c.PutVsock(ctx, *boot.Vsock)); err != nil {
			t.Fatal(err)
		}
		go c.Start(ctx)
		return stop(t, p)
	}
	t.Run("over the API", func(t *testing.T) { inTime(t, overAPI) })
	t.Run("from a file", func(t *testing.T) {
		file := filepath.Join(dir, "vm.json")
		text, err := json.Marshal(boot)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, text, 0o600); err != nil {
			t.Fatal(err)
		}
		inTime(t, func(t *testing.T) bool { return stop(t, start(t, nil, "--no-api", "--config-file", file)) })
	})
}

// The file that cpu-config names changes what a guest's CPUID says; a template for other CPUs is refused by name, and boots nothing.
func TestCPUTemplate(t *testing.T) {
	vmmtest.NeedKVM(t)
	dir := t.TempDir()
	// mov eax, 7; xor ecx, ecx; cpuid; shr ebx, 22; and bl, 1; add bl, '0'; mov dx, 0x3f8; mov al, bl; out dx, al: a bit that no CPU sets.
	ask := []byte{0xb8, 7, 0, 0, 0, 0x31, 0xc9, 0x0f, 0xa2, 0xc1, 0xeb, 22, 0x80, 0xe3, 1, 0x80, 0xc3, '0', 0x66, 0xba, 0xf8, 0x03, 0x88, 0xd8, 0xee}
	image := kernel(t, "bit ", append(ask, port(0x600, 5<<2|1<<5)...)...)
	write := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	template := write("template", `{"cpuid_modifiers": [{"leaf": "0x7", "subleaf": "0x0", "flags": 1, "modifiers": [{"register": "ebx", "bitmap": "0b1_xxxxxx_xxxxxxxx_xxxxxxxx"}]}]}`)
	for _, tt := range []struct {
		name, sections string
		status         int
		want           string
	}{
		{"none", ``, 80, "bit 0"},
		{"a file", `, "cpu-config": "` + template + `"`, 80, "bit 1"},
		{"no such file", `, "cpu-config": "` + template + `s"`, 1, "cpu-config is "},
		{"named, and not for this vendor or that", `, "machine-config": {"vcpu_count": 1, "mem_size_mib": 64, "cpu_template": "` + otherVendor(t) + `"}`, 1, ": want a host of "},
	} {
		t.Run(tt.name, func(t *testing.T) {
			path := write("vm.json", `{"boot-source": {"kernel_image_path": "`+image+`"}`+tt.sections+`}`)
			ws, out := start(t, nil, "--no-api", "--config-file", path, "--level", "error").end(t)
			if !ws.Exited() || ws.ExitStatus() != tt.status || !strings.Contains(out, tt.want) {
				t.Errorf("ended with %v, want status %d and %q:\n%s", ws, tt.status, tt.want, out)
			}
		})
	}
}

// otherVendor is a template for CPUs of another vendor than the host's.
func otherVendor(t *testing.T) string {
	info, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		t.Fatal(err)
	}
	if bytes.Contains(info, []byte("GenuineIntel")) {
		return "T2A"
	}
	return "T2"
}
