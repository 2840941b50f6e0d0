package bench

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fcshim/containerd-shim-fc-v2/integration/bench/guest/task"
	"github.com/fcshim/containerd-shim-fc-v2/integration/harness"
	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/config"
)

// envGuest names the guest's program: CGO_ENABLED=0 go build -o FILE ./integration/bench/guest.
const envGuest = "FC_BENCH_GUEST"

const (
	// guestTimeout bounds the wait for each line of a guest's.
	guestTimeout = 30 * time.Second
	// tailBytes is how much is shown of what a guest and its VMM said before a failure.
	tailBytes = 4 << 10
)

// machine is a virtual machine, the same for every VMM. It boots the project's kernel from guestImage.
type machine struct {
	memMiB int
	vcpus  int // 0 is 1
	task   task.Task
	drive  string // a raw file, the guest's second drive; empty for none
	engine string // its io_engine, for the VMMs that have any
	share  string // a folder that the guest finds as task.Tag; empty for none
	tap    string // the host's end of its network interface; empty for none
	vsock  bool
	// balloon is fc-vmm's alone; nil for none.
	balloon *config.Balloon
	// serve makes the host's end of what the guest does over its network or sockets, before there is a guest; nil for none.
	serve func(v *vm)
}

// vmm is one way to run a machine.
type vmm struct {
	name string
	// start returns when the machine has been told to run. It fails b if it can't be.
	start func(b *testing.B, m machine) *vm
}

// kernelArgs is the kernel's command line but for what a VMM adds to name the root drive.
func (m machine) kernelArgs() string {
	args := config.LeanBootArgs + " quiet rootfstype=erofs init=/sbin/init " + m.task.CommandLine()
	if os.Getenv(harness.EnvConsole) == "1" { // to see what goes wrong; no figures come of it
		args = strings.Replace(args, "8250.nr_uarts=0", "8250.nr_uarts=1 console=ttyS0", 1)
		args = strings.Replace(args, " quiet", "", 1)
	}
	return args
}

// guestImage is the guests' root file system: the guest's program, and folders to mount things on.
var guestImage = sync.OnceValues(func() (string, error) {
	program := os.Getenv(envGuest)
	if program == "" {
		return "", fmt.Errorf("no guest: set %s to what `CGO_ENABLED=0 go build -o FILE ./integration/bench/guest` makes", envGuest)
	}
	data, err := os.ReadFile(program)
	if err != nil {
		return "", err
	}
	dir, err := os.MkdirTemp("", "guest")
	if err != nil {
		return "", err
	}
	root := filepath.Join(dir, "root")
	for _, d := range []string{"sbin", "dev", "proc", "mnt"} {
		if err := os.MkdirAll(filepath.Join(root, d), 0o755); err != nil {
			return "", err
		}
	}
	if err := os.WriteFile(filepath.Join(root, "sbin", "init"), data, 0o755); err != nil {
		return "", err
	}
	image := filepath.Join(dir, "guest.img")
	if out, err := exec.Command("mkfs.erofs", "--quiet", image, root).CombinedOutput(); err != nil {
		return "", fmt.Errorf("mkfs.erofs: %w: %s", err, out)
	}
	return image, os.RemoveAll(root)
})

// image returns guestImage.
func image(b *testing.B) string {
	b.Helper()
	path, err := guestImage()
	if err != nil {
		b.Fatal(err)
	}
	return path
}

// vm is a machine that runs. Only one goroutine may use it.
type vm struct {
	b         *testing.B
	processes []*exec.Cmd // the VMM and its helpers, in the order in which they are ended
	logs      []string    // where they write their messages
	dir       string
	com1      *os.File
	lines     *bufio.Reader
	said      bytes.Buffer // all of COM1's output that is no message

	// host ends the host's side of the guest's work and returns how it went; nil if there is none.
	host func() error

	began   time.Time // just before the VMM's exec
	started time.Time // just before the machine was told to run
	// answered is when the API had answered for the first time, if there is one.
	answered time.Time
	booted   time.Time // when the guest's user space had told that it runs
}

// newVM makes a folder for a machine's sockets and logs.
func newVM(b *testing.B) *vm {
	b.Helper()
	dir, err := os.MkdirTemp("", "vm") // short: it holds sockets
	if err != nil {
		b.Fatal(err)
	}
	return &vm{b: b, dir: dir}
}

// run starts a process of the machine's.
func (v *vm) run(cmd *exec.Cmd) {
	v.b.Helper()
	log, err := os.Create(filepath.Join(v.dir, fmt.Sprintf("%s-%d.log", filepath.Base(cmd.Path), len(v.logs))))
	if err != nil {
		v.fatal(err)
	}
	defer log.Close()
	cmd.Stderr = log
	if err := cmd.Start(); err != nil {
		v.fatal(err)
	}
	v.processes, v.logs = append([]*exec.Cmd{cmd}, v.processes...), append(v.logs, log.Name())
}

// runVMM starts the VMM itself, whose standard output is COM1.
func (v *vm) runVMM(cmd *exec.Cmd) {
	v.b.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		v.fatal(err)
	}
	defer w.Close()
	v.com1, v.lines, cmd.Stdout = r, bufio.NewReader(r), w
	v.began = time.Now()
	v.run(cmd)
}

// bootAttempts is how often a peer's guest is given the chance to come up: in a nested machine QEMU's now and then do not, and that
// is not what is measured. Ours has one.
const bootAttempts = 3

// boot starts a machine and waits until its user space runs.
func (p vmm) boot(b *testing.B, m machine) *vm {
	b.Helper()
	for attempt := 1; ; attempt++ {
		v := p.start(b, m)
		if m.serve != nil {
			m.serve(v)
		}
		err := v.awaitBooted()
		if err == nil {
			return v
		}
		if strings.HasPrefix(p.name, "fc") || attempt == bootAttempts {
			v.fatal(err)
		}
		b.Logf("%s's guest did not come up, which is tried once more: %v", p.name, err)
		v.stop()
	}
}

// awaitBooted waits until the guest's user space runs.
//
// The signal is a byte sent to COM1 by port I/O. Every VMM here emulates that port alike, in its own process: one exit, one write
// to a pipe. Firecracker's boot timer is ours and Firecracker's alone; QEMU's debug ports are QEMU's alone.
func (v *vm) awaitBooted() error {
	v.bound()
	for {
		c, err := v.lines.ReadByte()
		if err != nil {
			return fmt.Errorf("waiting for the guest's user space: %w", err)
		}
		if c == task.Booted {
			v.booted = time.Now()
			return nil
		}
		v.said.WriteByte(c)
	}
}

// bound bounds the next wait for the guest.
func (v *vm) bound() {
	if err := v.com1.SetReadDeadline(time.Now().Add(harness.Slow(guestTimeout))); err != nil {
		v.fatal(err)
	}
}

// message returns the guest's next line.
func (v *vm) message() string {
	v.b.Helper()
	v.bound()
	for {
		l, err := v.lines.ReadString('\n')
		if err != nil {
			v.said.WriteString(l)
			v.fatal(fmt.Errorf("waiting for the guest's next message: %w", err))
		}
		if i := strings.Index(l, task.Prefix); i >= 0 { // the kernel may have been in the middle of a line
			return strings.TrimRight(l[i+len(task.Prefix):], "\r\n")
		}
		v.said.WriteString(l)
	}
}

// times returns how long each round of the guest's task took.
func (v *vm) times(rounds int) []time.Duration {
	v.b.Helper()
	var took []time.Duration
	for {
		m := v.message()
		if m == task.Done {
			break
		}
		ns, err := strconv.ParseInt(m, 10, 64)
		if err != nil || ns <= 0 {
			v.fatal(fmt.Errorf("the guest says %q", m))
		}
		took = append(took, time.Duration(ns))
	}
	if err := v.endHost(); err != nil {
		v.fatal(err)
	}
	if len(took) != rounds {
		v.fatal(fmt.Errorf("the guest did %d rounds, want %d", len(took), rounds))
	}
	return took
}

// stop ends the machine and whatever belongs to it, at once. It may be called again.
func (v *vm) stop() {
	for _, p := range v.processes {
		_ = p.Process.Kill() // it may have ended by itself
		_ = p.Wait()
	}
	v.processes = nil
	v.endHost()
	if v.com1 != nil {
		v.com1.Close()
		v.com1 = nil
	}
	if err := os.RemoveAll(v.dir); err != nil {
		v.b.Error(err)
	}
}

// endHost ends the host's side of the guest's work.
func (v *vm) endHost() (err error) {
	if v.host != nil {
		err = v.host()
		v.host = nil
	}
	return err
}

// fatal ends the benchmark with all that is known of the machine.
func (v *vm) fatal(err error) {
	v.b.Helper()
	for _, p := range v.processes {
		_ = p.Process.Kill()
	}
	if v.com1 != nil {
		_ = v.com1.SetReadDeadline(time.Now().Add(time.Second)) // its writers are being killed: it ends, most likely at once
		_, _ = v.said.ReadFrom(v.lines)
	}
	if hostErr := v.endHost(); hostErr != nil {
		err = fmt.Errorf("%w; the host's side: %w", err, hostErr)
	}
	text := fmt.Sprintf("%v\n--- COM1\n%s", err, tail(v.said.Bytes()))
	for _, log := range v.logs {
		said, _ := os.ReadFile(log)
		text += fmt.Sprintf("\n--- %s\n%s", filepath.Base(log), tail(said))
	}
	v.stop()
	v.b.Fatal(text)
}

func tail(b []byte) []byte { return b[max(0, len(b)-tailBytes):] }

// mayRunVMs skips or fails b where there is no KVM.
func mayRunVMs(b *testing.B) {
	b.Helper()
	if err := harness.UsableKVM(); err != nil {
		if os.Getenv(harness.EnvRequireKVM) == "1" {
			b.Fatal(err)
		}
		b.Skip(err)
	}
}

// product returns the path of a file that `make build` makes.
func product(name string) string {
	dir := os.Getenv(harness.EnvBinDir)
	if dir == "" {
		dir = filepath.Join("..", "..", "bin")
	}
	return filepath.Join(dir, name)
}

// waitFor waits until a program has made a file.
func (v *vm) waitFor(path string) {
	v.b.Helper()
	for deadline := time.Now().Add(harness.Slow(30 * time.Second)); ; time.Sleep(time.Millisecond) {
		var st unix.Stat_t
		err := unix.Stat(path, &st)
		switch {
		case err == nil:
			return
		case !errors.Is(err, unix.ENOENT) || time.Now().After(deadline):
			v.fatal(fmt.Errorf("waiting for %s: %w", filepath.Base(path), err))
		}
	}
}
