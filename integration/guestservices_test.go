package integration

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/pkg/oci"
	"golang.org/x/sys/unix"

	"github.com/fcshim/containerd-shim-fc-v2/integration/harness"
	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/api"
)

const (
	// clockTolerance is how far a guest's clock may be off.
	clockTolerance = 10 * time.Millisecond
	// pauseTime is how long containers are paused.
	pauseTime = 60 * time.Second
	// pidsLimit is what a fork bomb may fill.
	pidsLimit = 60
)

// clockwork is a container that tells the time for each line of its input.
type clockwork struct {
	*harness.Task
	ask *io.PipeWriter
}

func newClockwork(t *testing.T, c *harness.Containerd) clockwork {
	t.Helper()
	r, w := io.Pipe()
	t.Cleanup(func() { w.Close() })
	task := c.StartTask(t, "", r, oci.WithAddedCapabilities([]string{"CAP_SYS_TIME"}),
		oci.WithProcessArgs("sh", "-c", `while read -r what; do $what; adjtimex | sed -n 's/^ *time.tv_u\?sec: *//p' | tr '\n' ' '; echo .; done`))
	return clockwork{task, w}
}

// off asks for the time, after running a command, and returns by how much it is certainly wrong: 0 if it lies between the host's times before
// and after. That is all that can be known from outside; the span says how far these are apart, some 50 ms on an emulated machine.
func (k clockwork) off(t *testing.T, command string) (off, span time.Duration) {
	t.Helper()
	began := len(k.Stdout.String())
	before := time.Now()
	if _, err := fmt.Fprintln(k.ask, command); err != nil {
		t.Fatal(err)
	}
	k.Stdout.Await(t, ".\n", long)
	after := time.Now()
	var sec, usec int64
	text := k.Stdout.String()[began:]
	if _, err := fmt.Sscan(text[max(0, strings.LastIndex(strings.TrimSuffix(text, ".\n"), "\n")):], &sec, &usec); err != nil {
		t.Fatalf("%q: %v", text, err)
	}
	now := time.Unix(sec, usec*1000)
	switch {
	case now.Before(before):
		off = before.Sub(now)
	case now.After(after):
		off = now.Sub(after)
	}
	return off, after.Sub(before)
}

// right demands that the guest's clock is the host's.
func (k clockwork) right(t *testing.T, when string) {
	t.Helper()
	off, span := k.off(t, ":")
	for range 20 { // the quickest answer says most
		if o, s := k.off(t, ":"); s < span {
			off, span = o, s
		}
	}
	t.Logf("%s, %s: the clock is at least %v off, by an answer that took %v", k.ID(), when, off, span)
	if off > clockTolerance {
		t.Errorf("%s: the clock is at least %v off, by an answer that took %v", when, off, span)
	}
}

// TestGuestServices looks at what a guest provides beside containers: time, entropy, and a kernel that takes what a program does
// to itself. While two VMs' time stands still in some way, others are looked at.
func TestGuestServices(t *testing.T) {
	c := containerd(t)
	fcOnly(t, c) // and runc, for comparison
	frozen, stopped := newClockwork(t, c), newClockwork(t, c)
	frozen.right(t, "at the start")
	stopped.right(t, "at the start")
	random := func(k clockwork) string {
		return c.Must(t, "task", "exec", "--exec-id", c.ID(t), k.ID(), "sh", "-c", "head -c 32 /dev/random | sha256sum")
	}
	if a, b := random(frozen), random(stopped); a == b || len(a) < 64 || len(b) < 64 {
		t.Errorf("/dev/random says %q and %q", a, b)
	}
	if off, _ := frozen.off(t, "date -s 2001-02-03"); off < time.Hour {
		t.Fatalf("a container with CAP_SYS_TIME could not set the guest's clock: it is %v off", off)
	}
	pauseFrom := time.Now()
	if err := frozen.Pause(c.Context()); err != nil {
		t.Fatal(err)
	}
	vmm := vmmClient(t, c, stopped.ID())
	if err := vmm.Pause(c.Context()); err != nil {
		t.Fatal(err)
	}

	eachRuntime(t, c, testInside)

	time.Sleep(time.Until(pauseFrom.Add(pauseTime)))
	if err := vmm.Resume(c.Context()); err != nil {
		t.Fatal(err)
	}
	stopped.right(t, "after a pause of the VM")
	if err := frozen.Resume(c.Context()); err != nil {
		t.Fatal(err)
	}
	frozen.right(t, "after a pause of a container whose clock was wrong")
	for _, k := range []clockwork{frozen, stopped} {
		kill(t, c, k.Task, unix.SIGKILL)
		k.Await(t, long)
		c.Delete(t, k.Task)
	}
}

// vmmClient calls the VMM of a container past its shim.
func vmmClient(t *testing.T, c *harness.Containerd, id string) *api.Client {
	t.Helper()
	// A socket's path may have 107 bytes, and a bundle's may be longer.
	bundle, err := os.Open(filepath.Join(filepath.Dir(c.Address()), "state", "io.containerd.runtime.v2.task", harness.Namespace, id))
	if err != nil {
		t.Fatal(err)
	}
	client := api.NewClient(fmt.Sprintf("/proc/self/fd/%d/fc.sock", bundle.Fd()))
	t.Cleanup(func() {
		client.Close()
		bundle.Close()
	})
	return client
}

// insideScript leaves what it finds in lines of the form "name: value".
const insideScript = `
echo "hosts: $(grep -v '^#' /etc/hosts | grep -v "$(hostname)$" | sort | tr -s '\t\n ' ' ')"
echo "hostname: $(hostname) $(cat /etc/hostname) $(uname -n)"
echo "resolv.conf: $(tr '\n' ' ' </etc/resolv.conf)"
echo "urandom: $(head -c 32 /dev/urandom | wc -c), uuid $(cat /proc/sys/kernel/random/uuid | wc -c)"
cd /tmp; ulimit -c unlimited; sh -c 'kill -ABRT $$' 2>/dev/null; echo "abort: $?"
echo "core: $([ -s /tmp/core* ] && echo a file)"
echo "date: $(date +%Y)"
echo bomb
bomb() { bomb | bomb & }; bomb 2>/dev/null
exec sleep 1000
`

func testInside(t *testing.T, c *harness.Containerd) {
	n := c.Nerdctl(t, c.Runtime)
	if !c.FC() {
		// The host's own pattern decides where its core dumps go.
		pattern, err := os.ReadFile("/proc/sys/kernel/core_pattern")
		if err != nil || strings.HasPrefix(string(pattern), "|") {
			t.Skipf("core dumps go to %q", pattern)
		}
	}
	other := startIdle(t, c, "")
	before := countProcesses(t)
	args := []string{"-d", "--network", "none", "--pids-limit", strconv.Itoa(pidsLimit), "--memory", "128m", "--hostname", "named", "--add-host", "other:10.9.8.7",
		"--dns", "9.9.9.9", "--dns-search", "example.org"}
	if !c.FC() {
		// With the host's kernel the bomb takes the host's CPUs, from this test and from containerd: it gets what they leave.
		args = append(args, "--cpu-shares", "2")
	}
	name, _ := n.Run(t, args, "sh", "-c", insideScript)
	var logs string
	await(t, "the bomb", func() bool {
		logs = n.Must(t, "logs", name)
		return strings.Contains(logs, "bomb\n")
	})
	for key, want := range map[string]string{
		"hosts":       "127.0.0.1 localhost localhost.localdomain",
		"hostname":    "named named named",
		"resolv.conf": "search example.org nameserver 9.9.9.9",
		"urandom":     "32, uuid 37",
		"abort":       "134",
		"core":        "a file",
		"date":        strconv.Itoa(time.Now().Year()),
	} {
		if got := line(logs, key); !strings.Contains(got, want) {
			t.Errorf("%s: %q, want %q; all of it:\n%s", key, got, want, logs)
		}
	}
	if !strings.Contains(line(logs, "hosts"), "10.9.8.7 other") {
		t.Errorf("hosts: %q", line(logs, "hosts"))
	}
	// The bomb fills the container, and only that.
	bombed := reload(t, c, strings.TrimSpace(n.Must(t, "inspect", "--format", "{{.ID}}", name)))
	await(t, "the bomb to fill its container", func() bool {
		if metrics(t, c, bombed).Pids.Current >= pidsLimit {
			return true
		}
		var refused int
		events := ""
		if c.FC() {
			events = n.Ctl(t, "exec", name, "cat", "/sys/fs/cgroup/pids.events").Stdout // may find no room
		} else {
			events = pidsEvents(bombed.Pid()) // which costs no process beside the bomb's
		}
		_, err := fmt.Sscanf(events, "max %d", &refused)
		return err == nil && refused > 0
	})
	ctx, cancel := context.WithTimeout(c.Context(), long)
	defer cancel()
	if out, err := execute(ctx, t, other, "beside", "echo", "alive"); err != nil || out != "alive\n" {
		t.Errorf("exec in another container beside the bomb: %q, %v", out, err)
	}
	if c.FC() {
		if now := countProcesses(t); now > before+20 { // shim, VMM and their like
			t.Errorf("%d processes on the host, %d before the bomb", now, before)
		}
	}
	n.Must(t, "kill", "--signal", "KILL", name)
	n.Must(t, "rm", "-f", name)
}

// pidsEvents is what the cgroup of one of the host's processes says of refused forks; "" if it cannot be asked.
func pidsEvents(pid uint32) string {
	groups, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
	for l := range strings.Lines(string(groups)) {
		folder := "/sys/fs/cgroup"
		_, path, ok := strings.Cut(strings.TrimSpace(l), "0::")
		if !ok {
			if _, path, ok = strings.Cut(strings.TrimSpace(l), ":pids:"); !ok {
				continue
			}
			folder += "/pids"
		}
		if text, err := os.ReadFile(filepath.Join(folder, path, "pids.events")); err == nil {
			return string(text)
		}
	}
	return ""
}

func line(text, key string) string {
	for l := range strings.Lines(text) {
		if v, ok := strings.CutPrefix(l, key+": "); ok {
			return strings.TrimSpace(v)
		}
	}
	return ""
}

func countProcesses(t *testing.T) int {
	t.Helper()
	dirs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		t.Fatal(err)
	}
	return len(dirs)
}
