package integration

import (
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
// and after. That is all that can be known from outside; on an emulated machine these are some 50 ms apart.
func (k clockwork) off(t *testing.T, command string) time.Duration {
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
	t.Logf("%s: the guest's time is %v after the question and %v before the answer", k.ID(), now.Sub(before.Round(0)), after.Round(0).Sub(now))
	switch {
	case now.Before(before):
		return before.Sub(now)
	case now.After(after):
		return now.Sub(after)
	}
	return 0
}

// right demands that the guest's clock is the host's.
func (k clockwork) right(t *testing.T, when string) {
	t.Helper()
	if off := k.off(t, ":"); off > clockTolerance {
		t.Errorf("%s: the clock is at least %v off", when, off)
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
	if off := frozen.off(t, "date -s 2001-02-03"); off < time.Hour {
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

	for _, rt := range networked(c) {
		t.Run(rt, func(t *testing.T) { testInside(t, c, rt) })
	}

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

func testInside(t *testing.T, c *harness.Containerd, rt string) {
	n := c.Nerdctl(t, rt)
	if rt == harness.RuncRuntime {
		// The host's own pattern decides where its core dumps go.
		pattern, err := os.ReadFile("/proc/sys/kernel/core_pattern")
		if err != nil || strings.HasPrefix(string(pattern), "|") {
			t.Skipf("core dumps go to %q", pattern)
		}
	}
	before := countProcesses(t)
	name, _ := n.Run(t, []string{"-d", "--network", "none", "--pids-limit", "60", "--memory", "128m", "--hostname", "named", "--add-host", "other:10.9.8.7",
		"--dns", "9.9.9.9", "--dns-search", "example.org"}, "sh", "-c", insideScript)
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
	if rt == harness.FCRuntime {
		if now := countProcesses(t); now > before+20 { // shim, VMM and their like
			t.Errorf("%d processes on the host, %d before the bomb", now, before)
		}
	}
	t.Logf("exec beside a bomb: %v", n.Ctl(t, "exec", name, "cat", "/sys/fs/cgroup/pids.current")) // may find no room
	n.Must(t, "kill", "--signal", "KILL", name)
	n.Must(t, "rm", "-f", name)
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
