package vmm

import (
	"bytes"
	"context"
	"encoding/binary"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"golang.org/x/sys/unix"

	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/config"
	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/kvm"
	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/legacy"
	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/vmmtest"
)

func build(t *testing.T, kernel []byte, mib, cpus int) (*Machine, *vmmtest.Console) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "kernel")
	if err := os.WriteFile(path, kernel, 0o600); err != nil {
		t.Fatal(err)
	}
	var out vmmtest.Console
	m, err := New(context.Background(), config.VM{
		Machine:    config.Machine{VCPUCount: cpus, MemSizeMiB: mib},
		BootSource: &config.BootSource{KernelImagePath: path},
	}, Options{Console: &out})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { m.Close() })
	return m, &out
}

func wait(t *testing.T, m *Machine) Exit {
	t.Helper()
	select {
	case <-m.Done():
		return m.Wait()
	case <-time.After(20 * time.Second):
		m.Close()
		t.Fatal("the machine did not end within 20 s")
		return Exit{}
	}
}

// out is code for 16, 32 and 64 bits that writes v to a port.
func out(port uint16, v byte) []byte {
	return []byte{0x66, 0xba, byte(port), byte(port >> 8), 0xb0, v, 0xee} // mov dx, port; mov al, v; out dx, al
}

func print(s string) []byte {
	var code []byte
	for _, c := range []byte(s) {
		code = append(code, out(serialPort, c)...)
	}
	return code
}

func join(parts ...[]byte) []byte { return bytes.Join(parts, nil) }

var (
	powerOff  = out(sleepControl, 5<<2|1<<5)
	halt      = []byte{0xf4, 0xeb, 0xfd} // hlt; jmp -3
	undefined = []byte{0x0f, 0x0b}
)

func TestGuestEnds(t *testing.T) {
	vmmtest.NeedKVM(t)
	for _, c := range []struct {
		name   string
		kernel []byte
		want   Reason
		output string
	}{
		{"power off, PVH", vmmtest.ELF(join(print("hello from 32 bits"), powerOff, halt)), PoweredOff, "hello from 32 bits"},
		{"power off, bzImage", vmmtest.BzImage(join(print("hello from 64 bits"), powerOff, halt)), PoweredOff, "hello from 64 bits"},
		{"reset", vmmtest.ELF(join(print("r"), out(0x64, 0xfe), print("never seen"), halt)), Rebooted, "r"},
		{"panic", vmmtest.ELF(join(print("p"), out(panicPort, 1), print("never seen"), halt)), Panicked, "p"},
		{"triple fault", vmmtest.ELF(join(print("t"), undefined)), Fault, "t"},
	} {
		t.Run(c.name, func(t *testing.T) {
			m, output := build(t, c.kernel, 64, 1)
			if err := m.Start(context.Background()); err != nil {
				t.Fatal(err)
			}
			e := wait(t, m)
			if e.Reason != c.want || (e.Err != nil) != (c.want == Fault) {
				t.Errorf("ended with %v, %v; want %v", e.Reason, e.Err, c.want)
			}
			if got := output.String(); got != c.output {
				t.Errorf("output %q, want %q", got, c.output)
			}
			if err := m.Start(context.Background()); err == nil || m.State() != config.Ended {
				t.Errorf("started again: %v, state %s", err, m.State())
			}
		})
	}
}

func TestStringOutput(t *testing.T) {
	vmmtest.NeedKVM(t)
	code := join(
		[]byte{0xbe, 0x00, 0x00, 0x10, 0x00}, // mov esi, KernelAddr
		[]byte{0xb9, 0x05, 0x00, 0x00, 0x00}, // mov ecx, 5
		[]byte{0x66, 0xba, 0xf8, 0x03},       // mov dx, 0x3f8
		[]byte{0xf3, 0x6e},                   // rep outsb
		powerOff, halt)
	m, output := build(t, vmmtest.ELF(code), 64, 1)
	if err := m.Start(context.Background()); err != nil {
		t.Fatal(err)
	}
	if e := wait(t, m); e.Reason != PoweredOff || output.String() != string(code[:5]) {
		t.Errorf("ended with %v, output %q", e, output.String())
	}
}

func TestMemoryAboveTheGap(t *testing.T) {
	vmmtest.NeedKVM(t)
	code := join(
		[]byte{0xc7, 0x04, 0x25, 0x20, 0xa0, 0, 0, 0x03, 0xc0, 0, 0},       // mov dword [0xa020], 0xc003: the PDPT's entry for 4 GiB
		[]byte{0xc7, 0x04, 0x25, 0x00, 0xc0, 0, 0, 0x83, 0, 0, 0},          // mov dword [0xc000], 0x83: a page of 2 MiB
		[]byte{0xc7, 0x04, 0x25, 0x04, 0xc0, 0, 0, 0x01, 0, 0, 0},          // mov dword [0xc004], 1: at 4 GiB
		[]byte{0x48, 0xb8, 0, 0x10, 0, 0, 1, 0, 0, 0},                      // mov rax, 0x100001000
		[]byte{0xc7, 0x00, 0xef, 0xbe, 0xad, 0xde},                         // mov dword [rax], 0xdeadbeef
		[]byte{0x81, 0x38, 0xef, 0xbe, 0xad, 0xde, 0x74, 0x02, 0x0f, 0x0b}, // cmp dword [rax], 0xdeadbeef; je +2; ud2
		print("ok"), halt)
	m, output := build(t, vmmtest.BzImage(code), 5<<10, 1)
	if err := m.Start(context.Background()); err != nil {
		t.Fatal(err)
	}
	waitFor(t, func() bool { return output.String() == "ok" })
	p, err := m.mem.Slice(4<<30+0x1000, 4)
	if err != nil || binary.LittleEndian.Uint32(p) != 0xdeadbeef {
		t.Errorf("guest RAM at 4 GiB: %x, %v", p, err)
	}
	if err := m.Close(); err != nil {
		t.Error(err)
	}
}

func waitFor(t *testing.T, f func() bool) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); !f(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("what the test waits for did not happen within 10 s")
		}
	}
}

const counterAddr = 0x200000

// spin counts in guest RAM for ever.
var spin = []byte{0xff, 0x05, 0x00, 0x00, 0x20, 0x00, 0xeb, 0xf8} // inc dword [0x200000]; jmp -8

func TestPauseResume(t *testing.T) {
	vmmtest.NeedKVM(t)
	m, _ := build(t, vmmtest.ELF(spin), 64, 2)
	ctx := context.Background()
	p, err := m.mem.Slice(counterAddr, 4)
	if err != nil {
		t.Fatal(err)
	}
	counter := func() uint32 { return binary.LittleEndian.Uint32(p) }
	if err := m.Pause(ctx); err == nil {
		t.Error("a machine that was not started was paused")
	}
	if err := m.Resume(ctx); err == nil {
		t.Error("a machine that was not started was resumed")
	}
	if err := m.SendCtrlAltDel(ctx); err == nil {
		t.Error("a machine that was not started has keys")
	}
	if err := m.Start(ctx); err != nil {
		t.Fatal(err)
	}
	var slowest time.Duration
	for range 20 {
		before := counter()
		waitFor(t, func() bool { return counter() != before })
		begin := time.Now()
		if err := m.Pause(ctx); err != nil {
			t.Fatal(err)
		}
		slowest = max(slowest, time.Since(begin))
		before = counter()
		time.Sleep(5 * time.Millisecond)
		if counter() != before || m.State() != config.Paused {
			t.Fatalf("the guest runs on through a pause; state %s", m.State())
		}
		if err := m.Pause(ctx); err != nil {
			t.Error(err)
		}
		if err := m.SendCtrlAltDel(ctx); err != nil && !errdefs.IsUnavailable(err) { // nobody reads the keyboard
			t.Errorf("Ctrl+Alt+Del while paused: %v", err)
		}
		for range 2 {
			if err := m.Resume(ctx); err != nil {
				t.Fatal(err)
			}
		}
	}
	t.Logf("slowest pause of 20: %s", slowest)
	if slowest > time.Second {
		t.Errorf("a pause took %s", slowest)
	}
	if err := m.Pause(ctx); err != nil {
		t.Fatal(err)
	}
	if err := m.Close(); err != nil {
		t.Error(err)
	}
}

// A machine leaves nothing behind, wherever in its life it is closed.
func TestCloseLeavesNothing(t *testing.T) {
	vmmtest.NeedKVM(t)
	ctx := context.Background()
	files := func() int {
		l, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Fatal(err)
		}
		return len(l)
	}
	maps := func() int {
		b, err := os.ReadFile("/proc/self/maps")
		if err != nil {
			t.Fatal(err)
		}
		return strings.Count(string(b), "guest-ram") + strings.Count(string(b), "kvm-vcpu")
	}
	for _, c := range []struct {
		name string
		code []byte
		act  func(m *Machine)
	}{
		{"never started", spin, func(*Machine) {}},
		{"just started", spin, func(m *Machine) { m.Start(ctx) }},
		{"spinning", spin, func(m *Machine) { m.Start(ctx); time.Sleep(20 * time.Millisecond) }},
		{"halted", halt, func(m *Machine) { m.Start(ctx); time.Sleep(20 * time.Millisecond) }},
		{"paused", spin, func(m *Machine) { m.Start(ctx); m.Pause(ctx) }},
		{"ended", powerOff, func(m *Machine) { m.Start(ctx); m.Wait() }},
		{"paused while ending", powerOff, func(m *Machine) { m.Start(ctx); m.Pause(ctx) }},
	} {
		t.Run(c.name, func(t *testing.T) {
			warm, _ := build(t, vmmtest.ELF(spin), 64, 1)
			warm.Close()
			fds, gs := files(), runtime.NumGoroutine()
			m, _ := build(t, vmmtest.ELF(c.code), 64, 4)
			c.act(m)
			begin := time.Now()
			closed := make(chan error)
			go func() { closed <- m.Close() }()
			err := m.Close()
			if err2 := <-closed; err != nil || err2 != nil {
				t.Errorf("Close: %v, %v", err, err2)
			}
			if d := time.Since(begin); d > 2*time.Second {
				t.Errorf("Close took %s", d)
			}
			if n := files(); n != fds {
				t.Errorf("%d open files, before %d", n, fds)
			}
			if n := maps(); n != 0 {
				t.Errorf("%d mappings of guests are left", n)
			}
			waitFor(t, func() bool { return runtime.NumGoroutine() <= gs })
		})
	}
}

// GET / must be answered while a pause that takes long is under way.
func TestStateDoesNotWait(t *testing.T) {
	m := &Machine{}
	m.state.Store(config.Running)
	m.mu.Lock() // as Pause does
	defer m.mu.Unlock()
	answered := make(chan config.State, 1)
	go func() { answered <- m.State() }()
	select {
	case s := <-answered:
		if s != config.Running {
			t.Errorf("state %q", s)
		}
	case <-time.After(5 * time.Second):
		t.Error("no answer after 5 s")
	}
}

// A guest may write to the boot timer for ever; the log has one line of it, and none in a machine without one.
func TestBootTimerLogsOnce(t *testing.T) {
	var lines vmmtest.Console
	logger := log.L.Logger
	defer logger.SetOutput(logger.Out)
	logger.SetOutput(&lines)
	m := &Machine{log: log.L}
	write := func(addr uint64, v byte) { m.handleMMIO(kvm.MMIO{Addr: addr, Data: []byte{v}, Write: true}) }
	write(bootTimerAddr, legacy.BootTimerDone)
	m.bootTimer = &legacy.BootTimer{Booted: m.measureBoot(time.Now().Add(-time.Hour))}
	write(bootTimerAddr, legacy.BootTimerDone+1)
	write(bootTimerAddr+1, legacy.BootTimerDone)
	write(bootTimerAddr-1, legacy.BootTimerDone)
	write(virtioAddr, legacy.BootTimerDone)
	m.report.pending.Wait()
	if s := lines.String(); s != "" {
		t.Fatalf("logged for no boot: %s", s)
	}
	for range 100 {
		write(bootTimerAddr, legacy.BootTimerDone)
	}
	m.report.pending.Wait()
	if n := strings.Count(lines.String(), "\n"); n != 1 {
		t.Errorf("%d lines, want 1:\n%s", n, lines.String())
	}
	// Clients look for it by expressions such as this.
	found := regexp.MustCompile(`Guest-boot-time =\s+(\d+) us\s+(\d+) ms,\s+(\d+) CPU us\s+(\d+) CPU ms`).FindStringSubmatch(lines.String())
	if found == nil {
		t.Fatalf("not Firecracker's line: %s", lines.String())
	}
	if us, err := strconv.Atoi(found[1]); err != nil || us < 3600e6 || us > 2*3600e6 {
		t.Errorf("%q us, want an hour: %v", found[1], err)
	}
}

// A named pipe is as good as a file, whether somebody reads it yet or not.
func TestOpenConsolePipe(t *testing.T) {
	path := filepath.Join(t.TempDir(), "pipe")
	if err := unix.Mkfifo(path, 0o600); err != nil {
		t.Fatal(err)
	}
	opened := make(chan io.Writer, 1)
	m := &Machine{}
	defer m.release(true)
	go func() {
		f, err := m.openConsole(&config.VM{Serial: &config.Serial{SerialOutPath: path, MaxBytes: 1}}, Options{})
		if err != nil {
			t.Error(err)
		}
		opened <- f
	}()
	select {
	case f := <-opened:
		if _, err := f.Write([]byte("hello")); err != nil {
			t.Error(err)
		}
	case <-time.After(5 * time.Second):
		t.Fatal("blocked for 5 s by a pipe that nobody reads")
	}
	r, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	var p [5]byte
	if n, err := r.Read(p[:]); string(p[:n]) != "hello" {
		t.Errorf("read %q, %v", p[:n], err)
	}
}

// A description may be shared: what New makes of it is its own.
func TestNewLeavesTheDescription(t *testing.T) {
	cfg := config.VM{
		BootSource: &config.BootSource{KernelImagePath: "/nonexistent"},
		Drives:     []config.Drive{{DriveID: "d", PathOnHost: "/nonexistent"}},
		Serial:     &config.Serial{},
	}
	if _, err := New(context.Background(), cfg, Options{KVMPath: "/nonexistent"}); err == nil {
		t.Fatal("no error without KVM")
	}
	if cfg.BootSource.BootArgs != nil || cfg.Drives[0].CacheType != "" || cfg.Serial.MaxBytes != 0 {
		t.Errorf("New has changed it to %+v, %+v, %+v", *cfg.BootSource, cfg.Drives, *cfg.Serial)
	}
}

func TestBadInput(t *testing.T) {
	vmmtest.NeedKVM(t)
	dir := t.TempDir()
	write := func(name string, p []byte) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, p, 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	good := write("good", vmmtest.ELF(halt))
	disk := write("disk", make([]byte, 4096))
	long := strings.Repeat("x", config.MaxBootArgs)
	sparse := write("sparse", nil)
	if err := os.Truncate(sparse, 4<<30); err != nil {
		t.Fatal(err)
	}
	corrupt := vmmtest.ELF(halt)
	corrupt[64+24+7] = 0x80 // the top of the first segment's physical address
	for _, c := range []struct {
		name string
		cfg  config.VM
		want string
	}{
		{"no boot source", config.VM{}, "boot-source"},
		{"no kernel", config.VM{BootSource: &config.BootSource{KernelImagePath: dir + "/none"}}, "kernel_image_path"},
		{"a folder", config.VM{BootSource: &config.BootSource{KernelImagePath: dir}}, "not a regular file"},
		{"no kernel inside", config.VM{BootSource: &config.BootSource{KernelImagePath: write("text", bytes.Repeat([]byte("text"), 1000))}}, "not a bootable kernel"},
		{"no initrd", config.VM{BootSource: &config.BootSource{KernelImagePath: good, InitrdPath: dir + "/none"}}, "initrd_path"},
		{"initrd too large", config.VM{Machine: config.Machine{MemSizeMiB: 64}, BootSource: &config.BootSource{KernelImagePath: good, InitrdPath: write("big", make([]byte, 64<<20))}}, "mem_size_mib 64"},
		{"command line", config.VM{Drives: []config.Drive{{DriveID: "r", PathOnHost: disk, IsRootDevice: true}}, BootSource: &config.BootSource{KernelImagePath: good, BootArgs: &long}}, "boot_args"},
		{"initrd for no guest", config.VM{BootSource: &config.BootSource{KernelImagePath: good, InitrdPath: sparse}}, "initrd_path " + sparse},
		{"segment beyond any RAM", config.VM{BootSource: &config.BootSource{KernelImagePath: write("corrupt", corrupt)}}, "kernel_image_path"},
		{"serial", config.VM{Serial: &config.Serial{SerialOutPath: dir + "/none/x"}, BootSource: &config.BootSource{KernelImagePath: good}}, "serial_out_path"},
	} {
		t.Run(c.name, func(t *testing.T) {
			m, err := New(context.Background(), c.cfg, Options{})
			if err == nil {
				m.Close()
				t.Fatal("no error")
			}
			if !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), "\n") {
				t.Errorf("%v: want it to name %q, in one line", err, c.want)
			}
		})
	}
	t.Run("no memory", func(t *testing.T) {
		signal.Ignore(unix.SIGXFSZ)
		defer signal.Reset(unix.SIGXFSZ)
		var was unix.Rlimit
		if err := unix.Getrlimit(unix.RLIMIT_FSIZE, &was); err != nil {
			t.Fatal(err)
		}
		// It bounds a memfd too.
		if err := unix.Setrlimit(unix.RLIMIT_FSIZE, &unix.Rlimit{Cur: 32 << 20, Max: was.Max}); err != nil {
			t.Fatal(err)
		}
		defer unix.Setrlimit(unix.RLIMIT_FSIZE, &was)
		_, err := New(context.Background(), config.VM{BootSource: &config.BootSource{KernelImagePath: good}}, Options{})
		if err == nil || !strings.Contains(err.Error(), "mem_size_mib 128: ") {
			t.Errorf("%v: want it to name mem_size_mib", err)
		}
	})
	if _, err := New(context.Background(), config.VM{BootSource: &config.BootSource{KernelImagePath: good}}, Options{KVMPath: dir + "/kvm"}); err == nil {
		t.Error("no error without KVM")
	}
}
