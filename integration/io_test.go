package integration

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"math/rand/v2"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/pkg/oci"

	"github.com/fcshim/containerd-shim-fc-v2/integration/harness"
)

func TestOutputAndStatus(t *testing.T) {
	c := containerd(t)
	for _, tt := range []struct {
		name, script string
		want         int
	}{
		{"success", "exit 0", 0},
		{"failure", "false", 1},
		{"seven", "exit 7", 7},
		{"child killed", "sh -c 'kill -9 $$'; exit $?", 137},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := c.Run(t, harness.Run{Args: []string{"sh", "-c", "echo out; echo err >&2; " + tt.script}})
			if r.Status != tt.want || r.Stdout != "out\n" || strings.TrimSuffix(r.Stderr, "Killed\n") != "err\n" {
				t.Errorf("want status %d, out and err; got %v", tt.want, r)
			}
			t.Logf("took %v", r.Took.Round(time.Millisecond))
		})
	}
}

func TestNoSuchCommand(t *testing.T) {
	c := containerd(t)
	r := c.Run(t, harness.Run{Args: []string{"/no/such/command"}})
	if r.Status == 0 || !strings.Contains(r.Stderr, "/no/such/command") || !strings.Contains(r.Stderr, "no such file or directory") {
		t.Errorf("want an error that names the command and the reason; got %v", r)
	}
}

// streamSize is how much goes through one stream: far more than all buffers on its way hold together.
const streamSize = 20 << 20

// noise is streamSize bytes without order, always the same.
func noise() []byte {
	b := make([]byte, streamSize)
	_, _ = rand.NewChaCha8([32]byte{'f', 'c'}).Read(b)
	return b
}

func sum(b []byte) string {
	s := sha256.Sum256(b)
	return hex.EncodeToString(s[:])
}

func TestStdinThrough(t *testing.T) {
	c := containerd(t)
	data := noise()
	// cat ends at once after it has written the last byte.
	r := c.Run(t, harness.Run{Args: []string{"cat"}, Stdin: bytes.NewReader(data)})
	if r.Status != 0 || len(r.Stdout) != len(data) || sum([]byte(r.Stdout)) != sum(data) {
		t.Errorf("of %d bytes %d came back, same sum: %t, status %d, stderr: %s",
			len(data), len(r.Stdout), sum([]byte(r.Stdout)) == sum(data), r.Status, r.Stderr)
	}
	t.Logf("took %v", r.Took.Round(time.Millisecond))
}

func TestStdinIn(t *testing.T) {
	c := containerd(t)
	data := noise()
	r := c.Run(t, harness.Run{Args: []string{"sha256sum"}, Stdin: bytes.NewReader(data)})
	if got, _, _ := strings.Cut(r.Stdout, " "); r.Status != 0 || got != sum(data) {
		t.Errorf("the container got other bytes than the %d sent: want %s, got %v", len(data), sum(data), r)
	}
	t.Logf("took %v", r.Took.Round(time.Millisecond))
}

// TestStdoutOut has a process that ends the moment it has written its last byte, on either output stream.
func TestStdoutOut(t *testing.T) {
	c := containerd(t)
	want := string(noise())
	dir := t.TempDir()
	write(t, filepath.Join(dir, "noise"), want)
	for _, tt := range []struct{ name, script string }{
		{"stdout", "exec cat /data/noise"},
		{"stderr", "exec cat /data/noise >&2"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := c.Run(t, harness.Run{
				Flags: []string{"--mount", "type=bind,src=" + dir + ",dst=/data,options=bind:ro"}, Args: []string{"sh", "-c", tt.script}})
			got := r.Stdout + r.Stderr
			if r.Status != 0 || got != want {
				t.Errorf("status %d, %d of %d bytes, equal up to byte %d", r.Status, len(got), len(want), equalUpTo(got, want))
			}
			t.Logf("took %v", r.Took.Round(time.Millisecond))
		})
	}
}

func equalUpTo(a, b string) int {
	for i := range min(len(a), len(b)) {
		if a[i] != b[i] {
			return i
		}
	}
	return min(len(a), len(b))
}

// TestStdinShort has an input that ends while the container is still being made. With runc it depends on luck: ctr passes the end
// on only if its task has been created when it sees it.
func TestStdinShort(t *testing.T) {
	c := containerd(t)
	fcOnly(t, c)
	if r := c.Run(t, harness.Run{Args: []string{"cat"}, Stdin: strings.NewReader("short\n")}); r.Status != 0 || r.Stdout != "short\n" {
		t.Errorf("want the input back; got %v", r)
	}
}

// TestStdinUnread has a process that ends while its input is still coming, and one whose input never ends.
func TestStdinUnread(t *testing.T) {
	c := containerd(t)
	never, _ := io.Pipe()
	for _, tt := range []struct {
		name  string
		stdin io.Reader
		args  []string
		want  string
	}{
		{"much", bytes.NewReader(noise()), []string{"sh", "-c", "head -c 3 >/dev/null; echo enough"}, "enough\n"},
		{"never ending", never, []string{"echo", "done"}, "done\n"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if r := c.Run(t, harness.Run{Args: tt.args, Stdin: tt.stdin}); r.Status != 0 || r.Stdout != tt.want {
				t.Errorf("want %q; got %v", tt.want, r)
			}
		})
	}
}

func TestTerminal(t *testing.T) {
	c := containerd(t)
	id := c.ID(t)
	term := c.Terminal(t, 80, 24, c.RunArgs(t, harness.Run{ID: id, Flags: []string{"--tty"}, Args: []string{"sh"}})...)
	term.Type(t, "echo is''-$(tty)-\n")
	term.Expect(t, "is-/dev/pts/0-")
	awaitSize(t, term, "24 80")
	term.Resize(t, 132, 50)
	stop := term.KeepTelling()
	awaitSize(t, term, "50 132")
	stop()
	t.Log("interrupt by Ctrl-C")
	term.Type(t, "echo go''ing; sleep 1000\n")
	term.Expect(t, "going")
	term.Type(t, "\x03")
	term.Type(t, "echo st''atus $?\n")
	term.Expect(t, "status 130")
	term.Type(t, "exit 3\n")
	if status := term.Wait(t); status != 3 {
		t.Errorf("exit status %d, want 3", status)
	}
}

// awaitSize asks in the container for the size of the terminal until it is want: ctr tells it after its start and after a change.
func awaitSize(t *testing.T, term *harness.Terminal, want string) {
	t.Helper()
	term.Type(t, `until [ "$(stty size)" = "`+want+`" ]; do sleep 0.1; done; echo si''ze `+want+"\n")
	term.Expect(t, "size "+want)
}

func TestResizeByClient(t *testing.T) {
	c := containerd(t)
	task := c.NewTask(t, "", nil, oci.WithTTY, oci.WithProcessArgs("sh", "-c",
		`trap 'echo changed' WINCH; echo ready; while :; do s=$(stty size); [ "$s" = "$o" ] || echo "size $s"; o=$s; sleep 0.1; done`))
	start(t, c, task)
	task.Stdout.Await(t, "ready", long)
	for _, size := range []struct{ w, h uint32 }{{100, 30}, {20, 5}, {500, 200}} {
		if err := task.Resize(c.Context(), size.w, size.h); err != nil {
			t.Fatalf("resize to %d x %d: %v", size.w, size.h, err)
		}
		task.Stdout.Await(t, fmt.Sprintf("size %d %d", size.h, size.w), long)
	}
	if !strings.Contains(task.Stdout.String(), "changed") {
		t.Errorf("no SIGWINCH seen in %q", task.Stdout.String())
	}
}
