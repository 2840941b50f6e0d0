package apitest

import (
	"bytes"
	"cmp"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/vmmtest"
)

// bound is how long an answer may take, or an end. It is beyond every bound of the server's own.
const bound = 90 * time.Second

// output is what a process prints.
type output struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.text.Len() > 1<<20 {
		o.text.Next(1 << 19)
	}
	return o.text.Write(p)
}

func (o *output) tail(n int) string {
	o.mu.Lock()
	defer o.mu.Unlock()
	b := o.text.Bytes()
	return string(b[max(len(b)-n, 0):])
}

// vmm is a live fc-vmm in a folder of its own.
type vmm struct {
	cmd    *exec.Cmd
	dir    string
	sock   string
	out    output
	exited chan struct{}
}

// files fills the folder with what requests may name: right, wrong, and tricky.
func files(t *testing.T, dir, kernel, initrd string) []string {
	t.Helper()
	check := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	at := func(name string) string { return filepath.Join(dir, name) }
	check(os.WriteFile(at("disk"), make([]byte, 1<<20), 0o600))
	check(os.WriteFile(at("disk2"), make([]byte, 2<<20), 0o600))
	check(os.WriteFile(at("read-only"), make([]byte, 4096), 0o400))
	check(os.WriteFile(at("empty"), nil, 0o600))
	check(os.WriteFile(at("idle"), vmmtest.ELF([]byte{0xf4, 0xeb, 0xfd}), 0o600)) // hlt, again and again
	check(os.WriteFile(at("garbage"), bytes.Repeat([]byte("\x7fELF\xff"), 1000), 0o600))
	// Copies: a request may have a log or a console appended to them.
	for name, from := range map[string]string{"kernel": kernel, "initrd": initrd} {
		if from == "" {
			continue
		}
		data, err := os.ReadFile(from)
		check(err)
		check(os.WriteFile(at(name), data, 0o600))
	}
	check(os.Mkdir(at("folder"), 0o700))
	check(syscall.Mkfifo(at("fifo"), 0o600))
	check(os.Symlink(at("loop"), at("loop")))
	l, err := net.Listen("unix", at("listening"))
	check(err)
	t.Cleanup(func() { l.Close() })
	return []string{
		at("disk"), at("disk"), at("disk2"), at("idle"), at("folder"), at("new1"), at("new2"), at("kernel"), at("initrd"), // more likely than the others
		at("disk"), at("disk2"), at("idle"), at("folder"), at("new1"), at("kernel"), at("initrd"),
		at("read-only"), at("empty"), at("garbage"), at("fifo"), at("loop"), at("listening"), at("none/none"), at("folder/../disk"),
		"disk", "new3", ".", "", "@abstract", "/dev/null", "/dev/zero", "/proc/self/mem", dir + "/" + strings.Repeat("x", 4000), at("a\x00b"), at("é 世"),
	}
}

// binary is fc-vmm's.
func binary(t *testing.T) string {
	t.Helper()
	path, err := filepath.Abs(filepath.Join(cmp.Or(os.Getenv("FC_BIN_DIR"), "../../bin"), "fc-vmm"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(path); err != nil {
		t.Skip(err)
	}
	return path
}

func startVMM(t *testing.T, program, dir string) *vmm {
	t.Helper()
	v := &vmm{dir: dir, sock: filepath.Join(dir, "api.sock"), exited: make(chan struct{})}
	v.cmd = exec.Command(program, "--api-sock", v.sock, "--level", "Error")
	v.cmd.Dir, v.cmd.Stdout, v.cmd.Stderr = dir, &v.out, &v.out
	if err := v.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		v.cmd.Wait()
		close(v.exited)
	}()
	t.Cleanup(func() { v.cmd.Process.Kill(); <-v.exited })
	for end := time.Now().Add(bound); ; time.Sleep(5 * time.Millisecond) {
		if c, err := net.Dial("unix", v.sock); err == nil { // it is there before anybody listens
			c.Close()
			return v
		}
		if time.Now().After(end) {
			t.Fatalf("no API within %v:\n%s", bound, v.out.tail(4000))
		}
	}
}

func (v *vmm) ended() bool {
	select {
	case <-v.exited:
		return true
	default:
		return false
	}
}

// end tells the process to stop, unless its guest has ended it, and checks how it ended.
func (v *vmm) end(t *testing.T) {
	t.Helper()
	v.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-v.exited:
	case <-time.After(bound):
		v.cmd.Process.Signal(syscall.SIGQUIT) // its stacks
		time.Sleep(time.Second)
		t.Fatalf("it did not end within %v:\n%s", bound, v.out.tail(20000))
	}
	// 0: stopped, or the guest rebooted; 80: powered off; 81: its kernel panicked, as it may with such a command line.
	if code := v.cmd.ProcessState.ExitCode(); code != 0 && code != 80 && code != 81 {
		t.Fatalf("it ended with %v:\n%s", v.cmd.ProcessState, v.out.tail(20000))
	}
}

// descriptors is how many the process has open.
func (v *vmm) descriptors() int {
	l, _ := os.ReadDir("/proc/" + itoa(v.cmd.Process.Pid) + "/fd")
	return len(l)
}
