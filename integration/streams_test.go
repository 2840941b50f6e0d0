package integration

import (
	"context"
	"crypto/sha256"
	"fmt"
	"hash"
	"io"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/pkg/cio"
	"github.com/containerd/containerd/v2/pkg/oci"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/fcshim/containerd-shim-fc-v2/integration/harness"
)

// gate is a client that reads only while it is open. It keeps no output but its size and sum.
type gate struct {
	mu   sync.Mutex
	sum  hash.Hash
	size int64
}

func newGate() *gate { return &gate{sum: sha256.New()} }

func (g *gate) Write(b []byte) (int, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.size += int64(len(b))
	return g.sum.Write(b)
}

// taskTo makes a task whose output goes to a writer of the test's own.
func taskTo(t *testing.T, c *harness.Containerd, out io.Writer, opts ...oci.SpecOpts) (client.Task, <-chan client.ExitStatus) {
	t.Helper()
	container, err := c.NewContainer(c.Context(), t, "", opts...)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(c.Context(), long)
	defer cancel()
	task, err := container.NewTask(ctx, cio.NewCreator(cio.WithFIFODir(t.TempDir()), cio.WithStreams(nil, out, &harness.Buffer{})))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(c.Context(), long)
		defer cancel()
		if _, err := task.Delete(ctx, client.WithProcessKill); err != nil {
			t.Errorf("delete the task: %v", err)
		}
	})
	exit, err := task.Wait(c.Context())
	if err != nil {
		t.Fatal(err)
	}
	return task, exit
}

// data binds a folder with a file of noise into a container, as /data, whose command is the script.
func data(t *testing.T, script string) (dir string, opts []oci.SpecOpts) {
	t.Helper()
	dir = t.TempDir()
	write(t, filepath.Join(dir, "noise"), string(noise()))
	return dir, []oci.SpecOpts{
		oci.WithMounts([]specs.Mount{{Type: "bind", Source: dir, Destination: "/data", Options: []string{"rbind", "rw"}}}),
		oci.WithProcessArgs("sh", "-c", script),
	}
}

// repeated is the sum of noise's bytes, n times.
func repeated(n int) string {
	h, b := sha256.New(), noise()
	for range n {
		h.Write(b)
	}
	return fmt.Sprintf("%x", h.Sum(nil))
}

// TestMuchOutput sends far more through an output stream than anything on its way could hold.
func TestMuchOutput(t *testing.T) {
	eachRuntime(t, containerd(t), func(t *testing.T, c *harness.Containerd) {
		n := (amount(t, envStream, 60)<<20 + streamSize - 1) / streamSize
		_, opts := data(t, fmt.Sprintf("i=0; while [ $i -lt %d ]; do cat /data/noise || exit; i=$((i+1)); done", n))
		g := newGate()
		task, exit := taskTo(t, c, g, opts...)
		began := time.Now()
		if err := task.Start(c.Context()); err != nil {
			t.Fatal(err)
		}
		limit := long * time.Duration(1+n/3)
		select {
		case s := <-exit:
			if s.ExitCode() != 0 {
				t.Errorf("ended with status %d", s.ExitCode())
			}
		case <-time.After(limit):
			t.Fatalf("no end within %v", limit)
		}
		ctx, cancel := context.WithTimeout(c.Context(), long)
		defer cancel()
		if err := settled(ctx, task.IO()); err != nil {
			t.Fatal(err)
		}
		g.mu.Lock()
		defer g.mu.Unlock()
		if want := int64(n) * streamSize; g.size != want {
			t.Errorf("%d bytes came, not %d", g.size, want)
		}
		if got := fmt.Sprintf("%x", g.sum.Sum(nil)); got != repeated(n) {
			t.Errorf("other bytes came: sum %s, want %s", got, repeated(n))
		}
		t.Logf("%d MiB took %v", n*streamSize>>20, time.Since(began).Round(time.Millisecond))
	})
}

// TestSlowReader has a client that does not read for a while: the process must wait, no memory be taken, and nothing get lost.
func TestSlowReader(t *testing.T) {
	eachRuntime(t, containerd(t), func(t *testing.T, c *harness.Containerd) {
		dir, opts := data(t, "echo; until [ -e /data/go ]; do sleep 0.1; done; cat /data/noise; touch /data/done; sleep 1000")
		g := newGate()
		task, _ := taskTo(t, c, g, opts...)
		if err := task.Start(c.Context()); err != nil {
			t.Fatal(err)
		}
		got := func() int64 {
			g.mu.Lock()
			defer g.mu.Unlock()
			return g.size
		}
		await(t, "the first byte", func() bool { return got() == 1 })
		before := c.Usages(t, task.ID())
		g.mu.Lock()
		write(t, filepath.Join(dir, "go"), "")
		// As long as the process would need to write it all, several times over.
		time.Sleep(harness.Slow(5 * time.Second))
		_, err := os.Stat(filepath.Join(dir, "done"))
		after := c.Usages(t, task.ID())
		g.mu.Unlock()
		if err == nil {
			t.Errorf("the process has written %d bytes though nobody reads", streamSize)
		}
		for role, b := range before {
			t.Logf("%s before: %v; while nobody reads: %v", role, b, after[role])
			if grown := after[role].Private - b.Private; grown > 3<<20 {
				t.Errorf("the %s took %d KiB while nobody reads", role, grown>>10)
			}
		}
		await(t, "all output", func() bool { return got() == 1+streamSize })
		await(t, "the process to have written it", func() bool {
			_, err := os.Stat(filepath.Join(dir, "done"))
			return err == nil
		})
		h := sha256.New()
		h.Write([]byte("\n"))
		h.Write(noise())
		if g.mu.Lock(); string(g.sum.Sum(nil)) != string(h.Sum(nil)) {
			t.Error("other bytes came than were written")
		}
		g.mu.Unlock()
	})
}

// TestDetachAndAttach has clients that go away without a word, somebody who writes meanwhile, and others that take over. Only
// CloseIO ends the input, and only when the last client's end is closed.
func TestDetachAndAttach(t *testing.T) {
	eachRuntime(t, containerd(t), func(t *testing.T, c *harness.Containerd) {
		ctx, cancel := context.WithTimeout(c.Context(), 5*long)
		defer cancel()
		container, err := c.NewContainer(ctx, t, "", oci.WithProcessArgs("sh", "-c",
			`i=0; while read -r l; do i=$((i+1)); echo "$i $l"; done; echo end; sleep 1000`))
		if err != nil {
			t.Fatal(err)
		}
		in, feed := io.Pipe()
		out := &harness.Buffer{}
		task, err := container.NewTask(ctx, cio.NewCreator(cio.WithFIFODir(t.TempDir()), cio.WithStreams(in, out, io.Discard)))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			ctx, cancel := context.WithTimeout(c.Context(), long)
			defer cancel()
			if _, err := task.Delete(ctx, client.WithProcessKill); err != nil {
				t.Errorf("delete the task: %v", err)
			}
		})
		if err := task.Start(ctx); err != nil {
			t.Fatal(err)
		}
		fmt.Fprintln(feed, "first")
		out.Await(t, "1 first\n", long)
		task.IO().Cancel()
		feed.Close()

		writer, err := os.OpenFile(task.IO().Config().Stdin, os.O_WRONLY|unix.O_NONBLOCK, 0)
		if err != nil {
			t.Fatalf("nobody reads the input when no client is there: %v", err)
		}
		fmt.Fprintln(writer, "alone")
		writer.Close()

		attach := func(line string) (client.Task, io.Closer, *harness.Buffer) {
			in, feed := io.Pipe()
			out := &harness.Buffer{}
			again, err := container.Task(ctx, cio.NewAttach(cio.WithStreams(in, out, io.Discard)))
			if err != nil {
				t.Fatal(err)
			}
			fmt.Fprintln(feed, line)
			out.Await(t, line+"\n", long)
			return again, feed, out
		}
		second, end, out := attach("attached")
		if got := out.String(); got != "2 alone\n3 attached\n" {
			t.Errorf("the second client read %q", got)
		}
		end.Close()
		second.IO().Cancel()
		third, end, out := attach("again")
		if got := out.String(); got != "4 again\n" {
			t.Errorf("the third client read %q", got)
		}
		if err := third.CloseIO(ctx, client.WithStdinCloser); err != nil {
			t.Fatal(err)
		}
		end.Close()
		out.Await(t, "end\n", long)
		third.IO().Cancel()
	})
}
