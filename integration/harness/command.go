package harness

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// commandTimeout bounds one ctr command. It is generous: on an emulated CPU all takes thirty times as long.
var commandTimeout = Slow(90 * time.Second)

// Result is how a command ended.
type Result struct {
	Stdout, Stderr string
	// Status is the exit status, or 128+N for an end by signal N.
	Status int
	Took   time.Duration
}

func (r Result) String() string {
	return fmt.Sprintf("status %d after %v\nstdout: %s\nstderr: %s", r.Status, r.Took.Round(time.Millisecond), clip(r.Stdout), clip(r.Stderr))
}

func clip(s string) string {
	const most = 4 << 10
	if len(s) > most {
		return fmt.Sprintf("%s… (%d bytes)", s[:most], len(s))
	}
	return s
}

// Run is a `ctr run`.
type Run struct {
	// ID is the container's id; empty for a new one.
	ID string
	// Config is the path of the runtime's configuration; empty for the harness's own.
	Config string
	// Flags are further flags of ctr run.
	Flags []string
	// Args is the command to run in the container.
	Args  []string
	Stdin io.Reader
	// Keep leaves out --rm.
	Keep bool
}

// RunArgs is the command line of ctr for r.
func (c *Containerd) RunArgs(t testing.TB, r Run) []string {
	argv := append([]string{"run"}, c.RuntimeFlags(r.Config)...)
	if !r.Keep {
		argv = append(argv, "--rm")
	}
	if r.ID == "" {
		r.ID = c.ID(t)
	}
	// After a failure the container may still be there, and would look like a leak of the tests that follow.
	t.Cleanup(func() {
		if t.Failed() {
			c.Ctr(t, "task", "rm", "--force", r.ID)
			c.Ctr(t, "container", "rm", r.ID)
		}
	})
	argv = append(append(argv, r.Flags...), Image, r.ID)
	return append(argv, r.Args...)
}

// RuntimeFlags are the flags that choose the runtime under test and its configuration.
func (c *Containerd) RuntimeFlags(config string) []string {
	flags := []string{"--runtime", c.Runtime}
	if c.FC() {
		if config == "" {
			config = c.defaults()
		}
		flags = append(flags, "--runtime-config-path", config)
	}
	return flags
}

// Run runs a container to its end.
func (c *Containerd) Run(t testing.TB, r Run) Result {
	t.Helper()
	return c.CtrIn(t, r.Stdin, c.RunArgs(t, r)...)
}

// Sh runs a shell script in a container and returns what it printed; any other status than 0 fails the test.
func (c *Containerd) Sh(t testing.TB, flags []string, script string) string {
	t.Helper()
	r := c.Run(t, Run{Flags: flags, Args: []string{"sh", "-c", script}})
	if r.Status != 0 {
		t.Fatalf("sh -c %q in a container: %v", script, r)
	}
	return r.Stdout
}

// Ctr runs ctr with args. Whatever its status is, it is the caller's to judge; only a ctr that does not end fails the test.
func (c *Containerd) Ctr(t testing.TB, args ...string) Result {
	t.Helper()
	return c.CtrIn(t, nil, args...)
}

// Must is Ctr for a command that has to succeed; it returns its standard output.
func (c *Containerd) Must(t testing.TB, args ...string) string {
	t.Helper()
	r := c.Ctr(t, args...)
	if r.Status != 0 {
		t.Fatalf("ctr %s: %v", strings.Join(args, " "), r)
	}
	return r.Stdout
}

// CtrIn is Ctr with a standard input.
func (c *Containerd) CtrIn(t testing.TB, stdin io.Reader, args ...string) Result {
	t.Helper()
	b := c.Background(t, stdin, args...)
	return b.Wait(t, commandTimeout)
}

// Background is a command that runs beside the test.
type Background struct {
	cmd            *exec.Cmd
	stdout, stderr bytes.Buffer
	began          time.Time
	done           chan Result
}

// Background starts ctr with args.
func (c *Containerd) Background(t testing.TB, stdin io.Reader, args ...string) *Background {
	t.Helper()
	return background(t, stdin, c.ctr(args))
}

// background starts cmd as a process group of its own.
func background(t testing.TB, stdin io.Reader, cmd *exec.Cmd) *Background {
	t.Helper()
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	b := &Background{cmd: cmd, began: time.Now(), done: make(chan Result, 1)}
	b.cmd.Stdout, b.cmd.Stderr = &b.stdout, &b.stderr
	var stdinEnd io.WriteCloser
	if stdin != nil {
		// Not cmd.Stdin: cmd.Wait would wait for a reader that need not end.
		var err error
		if stdinEnd, err = b.cmd.StdinPipe(); err != nil {
			t.Fatal(err)
		}
	}
	if err := b.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if stdinEnd != nil {
		go func() {
			_, _ = io.Copy(stdinEnd, stdin)
			_ = stdinEnd.Close()
		}()
	}
	go func() {
		_ = b.cmd.Wait()
		b.done <- Result{
			Stdout: b.stdout.String(), Stderr: b.stderr.String(), Status: status(b.cmd.ProcessState), Took: time.Since(b.began),
		}
	}()
	return b
}

// Wait waits for the end of the command, at most for limit; one that is not done then is killed and fails the test.
func (b *Background) Wait(t testing.TB, limit time.Duration) Result {
	t.Helper()
	select {
	case r := <-b.done:
		return r
	case <-time.After(limit):
	}
	_ = syscall.Kill(-b.cmd.Process.Pid, syscall.SIGKILL)
	r := <-b.done
	t.Fatalf("%s had not ended after %v and was killed: %v", strings.Join(b.cmd.Args, " "), limit, r)
	return r
}

// Signal sends a signal to the command itself.
func (b *Background) Signal(s os.Signal) error {
	err := b.cmd.Process.Signal(s)
	if errors.Is(err, os.ErrProcessDone) {
		return nil
	}
	return err
}

func (c *Containerd) ctr(args []string) *exec.Cmd {
	return exec.Command(filepath.Join(c.Tools, "ctr"), append([]string{"--address", c.address, "--namespace", Namespace}, args...)...)
}

func status(s *os.ProcessState) int {
	if ws, ok := s.Sys().(syscall.WaitStatus); ok && ws.Signaled() {
		return 128 + int(ws.Signal())
	}
	return s.ExitCode()
}
