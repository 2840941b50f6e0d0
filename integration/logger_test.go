package integration

import (
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/fcshim/containerd-shim-fc-v2/integration/harness"
)

// The loggers put their streams into the folder that is their second argument.
const (
	goodLogger = `#!/bin/sh
echo "$1 $CONTAINER_ID $CONTAINER_NAMESPACE" >"$2/told"
cat <&3 >"$2/stdout" 5>&- &
cat <&4 >"$2/stderr" 5>&- &
exec 3<&- 4<&-
printf r >&5
exec 5>&-
wait
echo >"$2/ended"
`
	// quitter goes after the first line.
	quitter = `#!/bin/sh
printf r >&5
exec 5>&-
read -r line <&3
echo "$line" >"$2/stdout"
`
	// stillborn is never ready.
	stillborn = `#!/bin/sh
echo no room to log >&2
exit 3
`
)

// logger writes a script and returns its URI and the folder that it writes to.
func logger(t *testing.T, script string) (uri, dir string) {
	t.Helper()
	dir = t.TempDir()
	program := filepath.Join(dir, "logger")
	if err := os.WriteFile(program, []byte(script), 0o700); err != nil {
		t.Fatal(err)
	}
	return (&url.URL{Scheme: "binary", Path: program, RawQuery: url.Values{"to": {dir}}.Encode()}).String(), dir
}

// awaitFile waits for a logger to have written what it was given: it may end after its container.
func awaitFile(t *testing.T, name, want string) {
	t.Helper()
	await(t, fmt.Sprintf("%s to be %q", name, clip(want)), func() bool {
		b, _ := os.ReadFile(name)
		return string(b) == want
	})
}

func TestBinaryLogger(t *testing.T) {
	c := containerd(t)
	noiseDir := t.TempDir()
	write(t, filepath.Join(noiseDir, "noise"), string(noise()))
	for _, tt := range []struct {
		name, script   string
		stdout, stderr string
		status         int
	}{
		{"both streams", "echo out; echo err >&2; exit 3", "out\n", "err\n", 3},
		{"much", "exec cat /data/noise", string(noise()), "", 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			uri, dir := logger(t, goodLogger)
			id := c.ID(t)
			r := c.Run(t, harness.Run{ID: id, Args: []string{"sh", "-c", tt.script},
				Flags: []string{"--log-uri", uri, "--mount", "type=bind,src=" + noiseDir + ",dst=/data,options=bind:ro"}})
			if r.Status != tt.status || r.Stdout != "" || r.Stderr != "" {
				t.Errorf("want status %d and no output; got %v", tt.status, r)
			}
			awaitFile(t, filepath.Join(dir, "stdout"), tt.stdout)
			awaitFile(t, filepath.Join(dir, "stderr"), tt.stderr)
			awaitFile(t, filepath.Join(dir, "told"), "to "+id+" "+harness.Namespace+"\n")
		})
	}
}

// TestLoggerOfExec has a container with a logger and an exec with another, which knows the exec by the exec's id.
func TestLoggerOfExec(t *testing.T) {
	c := containerd(t)
	task := startIdle(t, c, "")
	uri, dir := logger(t, goodLogger)
	id := c.ID(t)
	if r := c.Ctr(t, "task", "exec", "--exec-id", id, "--log-uri", uri, task.ID(), "echo", "execed"); r.Status != 0 {
		t.Error(r)
	}
	awaitFile(t, filepath.Join(dir, "stdout"), "execed\n")
	awaitFile(t, filepath.Join(dir, "told"), "to "+id+" "+harness.Namespace+"\n")
}

func TestFileLog(t *testing.T) {
	c := containerd(t)
	name := filepath.Join(t.TempDir(), "new", "log")
	for i := range 2 {
		r := c.Run(t, harness.Run{Flags: []string{"--log-uri", "file://" + name}, Args: []string{"sh", "-c", "echo out; echo err >&2"}})
		if r.Status != 0 {
			t.Fatal(r)
		}
		var b []byte
		var err error
		whole := func() bool {
			b, err = os.ReadFile(name)
			return err == nil && strings.Count(string(b), "out\n") == i+1 && strings.Count(string(b), "err\n") == i+1
		}
		if !c.FC() { // runc's shim may be behind the exit
			await(t, "the log", whole)
		}
		if !whole() {
			t.Errorf("run %d: the file has %q (%v)", i+1, b, err)
		}
	}
}

// TestLoggerDeath has loggers that die. With runc the container's writes fail, and a stillborn logger is taken for ready.
func TestLoggerDeath(t *testing.T) {
	c := containerd(t)
	fcOnly(t, c)
	t.Run("early", func(t *testing.T) {
		uri, _ := logger(t, stillborn)
		r := c.Run(t, harness.Run{Flags: []string{"--log-uri", uri}, Args: []string{"true"}})
		if r.Status == 0 || !strings.Contains(r.Stderr, "(exit status 3: no room to log) before it was ready") {
			t.Errorf("want an error that says what the logger said; got %v", r)
		}
	})
	t.Run("later", func(t *testing.T) {
		uri, dir := logger(t, quitter)
		r := c.Run(t, harness.Run{Flags: []string{"--log-uri", uri}, Args: []string{"sh", "-c", "echo first; head -c 2000000 /dev/zero && exit 7"}})
		if r.Status != 7 {
			t.Errorf("want status 7, though nobody reads the output; got %v", r)
		}
		awaitFile(t, filepath.Join(dir, "stdout"), "first\n")
	})
	t.Run("its shim's", func(t *testing.T) {
		uri, dir := logger(t, goodLogger)
		id := c.ID(t)
		b := c.Background(t, nil, c.RunArgs(t, harness.Run{ID: id, Keep: true, Flags: []string{"--log-uri", uri}, Args: []string{"sh", "-c", "echo ready; sleep 1000"}})...)
		awaitFile(t, filepath.Join(dir, "stdout"), "ready\n")
		c.KillProcess(t, id, harness.Shim)
		b.Wait(t, long)
		awaitFile(t, filepath.Join(dir, "ended"), "\n") // nothing else holds its streams open
		c.Ctr(t, "task", "rm", "--force", id)
		c.Must(t, "container", "rm", id)
	})
}
