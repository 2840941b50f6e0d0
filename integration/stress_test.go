package integration

import (
	"context"
	"fmt"
	"os"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/pkg/cio"
	"github.com/containerd/containerd/v2/pkg/oci"
	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/fcshim/containerd-shim-fc-v2/integration/harness"
)

// How much the tests that repeat do; `make stress` sets these.
const (
	envCycles = "FC_CYCLES"     // cycles of run, exec, stop and remove
	envExecs  = "FC_EXECS"      // execs in one container
	envCrowd  = "FC_CROWD"      // containers at a time
	envDeaths = "FC_DEATHS"     // deaths of each process
	envSeed   = "FC_SEED"       // of the moments of those deaths
	envStream = "FC_STREAM_MIB" // what goes through one output stream
)

// amount is the number that an environment variable gives, or else usual.
func amount(t *testing.T, env string, usual int) int {
	t.Helper()
	v := os.Getenv(env)
	if v == "" {
		return usual
	}
	n, err := strconv.Atoi(v)
	if err != nil || n < 1 {
		t.Fatalf("%s is %q, no number above 0", env, v)
	}
	return n
}

// execute runs a process in a task, by the client, to its end, and returns what it has printed.
func execute(ctx context.Context, t *testing.T, task client.Task, id string, args ...string) (string, error) {
	t.Helper()
	spec, err := task.Spec(ctx)
	if err != nil {
		return "", err
	}
	process := *spec.Process
	process.Args, process.Terminal = args, false
	out := &harness.Buffer{}
	p, err := task.Exec(ctx, id, &process, cio.NewCreator(cio.WithFIFODir(t.TempDir()), cio.WithStreams(nil, out, out)))
	if err != nil {
		return "", fmt.Errorf("exec: %w", err)
	}
	exit, err := p.Wait(ctx)
	if err == nil {
		err = p.Start(ctx)
	}
	if err != nil {
		_, _ = p.Delete(ctx)
		return "", fmt.Errorf("start the exec: %w", err)
	}
	select {
	case <-exit:
	case <-ctx.Done():
		return "", fmt.Errorf("wait for the exec's end: %w", ctx.Err())
	}
	// The client's Delete drops what it has not read yet.
	if err := settled(ctx, p.IO()); err != nil {
		return out.String(), err
	}
	s, err := p.Delete(ctx)
	if err != nil {
		return out.String(), fmt.Errorf("delete the exec: %w", err)
	}
	if s.ExitCode() != 0 {
		return out.String(), fmt.Errorf("the exec ended with status %d: %s", s.ExitCode(), out.String())
	}
	return out.String(), nil
}

// settled waits for the end of a process's output.
func settled(ctx context.Context, streams cio.IO) error {
	ended := make(chan struct{})
	go func() {
		streams.Wait()
		close(ended)
	}()
	select {
	case <-ended:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("wait for the end of the output: %w", ctx.Err())
	}
}

// TestCycles runs containers to their end, one after another, with an exec in each. Each must leave nothing behind, and containerd
// must come to keep nothing of them.
func TestCycles(t *testing.T) {
	c := containerd(t)
	const warmUp = 2
	n := amount(t, envCycles, 3)
	var before harness.Live
	var usage harness.Usage
	began := time.Now()
	for i := range warmUp + n {
		if i == warmUp {
			began = time.Now()
			before, usage = c.Live(t), harness.Measure(t, c.Pid())
		}
		if !t.Run(strconv.Itoa(i), func(t *testing.T) {
			c.NoLeaks(t)
			cycle(t, c)
		}) {
			return
		}
	}
	after, used := c.Live(t), harness.Measure(t, c.Pid())
	t.Logf("%d cycles in %v; containerd before: %v, %v; after: %v, %v", n, time.Since(began).Round(time.Second), before, usage, after, used)
	// What is kept of a cycle would be a connection, with goroutines and buffers: more than this by far, in the long form. One
	// buffer of 1 MiB comes and goes, and there may be two.
	if most := before.Heap + 3<<20 + int64(n)<<11; after.Heap > most {
		t.Errorf("containerd's live heap grew by %d KiB in %d cycles", (after.Heap-before.Heap)>>10, n)
	}
	if after.Goroutines > before.Goroutines+5 {
		t.Errorf("containerd had %d goroutines, and has %d after %d cycles", before.Goroutines, after.Goroutines, n)
	}
	if used.Files > usage.Files+3 {
		t.Errorf("containerd had %d files open, and has %d after %d cycles", usage.Files, used.Files, n)
	}
	// Between two collections of garbage a heap may be twice as large as what lives.
	if most := 2*usage.Private + int64(n)<<13; used.Private > most {
		t.Errorf("containerd's private memory grew from %d to %d KiB in %d cycles", usage.Private>>10, used.Private>>10, n)
	}
}

func cycle(t *testing.T, c *harness.Containerd) {
	task := startIdle(t, c, "")
	ctx, cancel := context.WithTimeout(c.Context(), long)
	defer cancel()
	if out, err := execute(ctx, t, task, "e", "echo", "executed"); err != nil || out != "executed\n" {
		t.Errorf("exec: %q, %v", out, err)
	}
	kill(t, c, task, syscall.SIGTERM)
	if code := task.Await(t, long); code != 7 {
		t.Errorf("ended with status %d, want 7", code)
	}
	c.Delete(t, task)
}

// TestManyExecs runs processes in one container, one after another. Nothing of them may stay with the shim, the VMM, the process
// that stands for the container, or the agent.
func TestManyExecs(t *testing.T) {
	c := containerd(t)
	n := amount(t, envExecs, 20)
	inHalves := n >= 100 // the second half shows what stays of an exec
	warmUp := 5 + n/5    // heaps and their books come to their size within some hundred execs
	var opts []oci.SpecOpts
	if c.FC() {
		// The guest's own processes are those of its "host", where the agent is the first.
		opts = []oci.SpecOpts{oci.WithPrivileged, oci.WithHostNamespace(specs.PIDNamespace)}
	}
	task := startIdle(t, c, "", opts...)
	run := func(i int, args ...string) string {
		ctx, cancel := context.WithTimeout(c.Context(), long)
		defer cancel()
		out, err := execute(ctx, t, task, fmt.Sprintf("e%d", i), args...)
		if err != nil {
			t.Fatalf("exec %d: %v", i, err)
		}
		return out
	}
	agent := func(i int) (u harness.Usage) {
		if !c.FC() {
			return u
		}
		out := run(i, "sh", "-c", "cat /proc/1/comm; ls /proc/1/fd | wc -l; ls /proc/1/task | wc -l; "+
			"awk '/^Private_/{n+=$2} END{print n*1024}' /proc/1/smaps")
		var name string
		if _, err := fmt.Sscan(out, &name, &u.Files, &u.Threads, &u.Private); err != nil {
			t.Fatalf("the agent: %v in %q", err, out)
		}
		return u
	}
	execs := func(from, n int) {
		for i := from; i < from+n; i++ {
			if out := run(i, "echo", strconv.Itoa(i)); out != strconv.Itoa(i)+"\n" {
				t.Fatalf("exec %d printed %q", i, out)
			}
			if (i+1)%50 == 0 {
				t.Logf("%d execs", i+1)
			}
		}
	}
	execs(0, warmUp)
	agentBefore, before := agent(warmUp), c.Usages(t, task.ID())
	began := time.Now()
	execs(warmUp+1, n/2)
	var half map[harness.Role]harness.Usage
	if inHalves {
		half = c.Usages(t, task.ID())
		half["agent"] = agent(warmUp + n + 2)
	}
	execs(warmUp+1+n/2, n-n/2)
	took := time.Since(began)
	agentAfter := agent(warmUp + n + 1)
	var after map[harness.Role]harness.Usage
	// What the last exec had open is closed soon, but not before its end is told.
	deadline := time.Now().Add(deathNotice)
	for {
		after = c.Usages(t, task.ID())
		if more := moreFiles(before, after); len(more) == 0 {
			break
		} else if time.Now().After(deadline) {
			t.Errorf("more files open after %d execs: %s", n, strings.Join(more, ", "))
			break
		}
		time.Sleep(100 * time.Millisecond)
	}
	before["agent"], after["agent"] = agentBefore, agentAfter
	for role, b := range before {
		a := after[role]
		t.Logf("%s before: %v; after: %v", role, b, a)
		// A goroutine with its stack and buffers, kept for each exec, would be more. The first execs tell little: Go takes heap for
		// what comes between two collections and, in the holder, stacks for threads, of which it gives back many at a time.
		if h := half[role]; inHalves {
			t.Logf("%s after the first half: %v", role, h)
			if a.Private > h.Private+512<<10+int64(n-n/2)<<10 {
				t.Errorf("the %s's private memory grew from %d to %d KiB in %d execs", role, h.Private>>10, a.Private>>10, n-n/2)
			}
		} else if role != harness.Holder && a.Private > b.Private+4<<20+int64(n)<<11 {
			t.Errorf("the %s's private memory grew from %d to %d KiB in %d execs", role, b.Private>>10, a.Private>>10, n)
		}
		if a.Threads > b.Threads+5 {
			t.Errorf("the %s had %d threads, and has %d after %d execs", role, b.Threads, a.Threads, n)
		}
	}
	// libcontainer leaves pidfds of processes that it does not wait for to the garbage collection.
	if agentAfter.Files > agentBefore.Files+50 {
		t.Errorf("the agent had %d files open, and has %d after %d execs", agentBefore.Files, agentAfter.Files, n)
	}
	t.Logf("%d execs took %v", n, took.Round(time.Millisecond))
}

// moreFiles lists the processes with more files open than before, by more than come and go: in runc's shim that was two at times. A file kept for
// each exec is more.
func moreFiles(before, after map[harness.Role]harness.Usage) (more []string) {
	for role, b := range before {
		if a := after[role]; a.Files > b.Files+5 {
			more = append(more, fmt.Sprintf("%s %d, was %d", role, a.Files, b.Files))
		}
	}
	return more
}
