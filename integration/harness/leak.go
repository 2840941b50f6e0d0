package harness

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"
)

// settleTimeout is how long after a test's end its traces may still be going away.
var settleTimeout = Slow(5 * time.Second)

// Snapshot is a set of lines, each naming one thing that is on the machine: a process, a mount, a socket, a file, …
type Snapshot map[string]struct{}

// Snapshot takes stock of all that a container can leave behind.
func (c *Containerd) Snapshot() (Snapshot, error) {
	s := Snapshot{}
	for _, take := range []func() ([]string, error){
		c.processLines, c.mountLines, c.socketLines, c.cgroupLines, netnsLines, c.fileLines, loopLines, linkLines, c.metadataLines,
	} {
		lines, err := take()
		if err != nil {
			return nil, err
		}
		for _, l := range lines {
			s[l] = struct{}{}
		}
	}
	return s, nil
}

// Since returns, in order, what s has and before has not.
func (s Snapshot) Since(before Snapshot) []string {
	return slices.Sorted(func(yield func(string) bool) {
		for line := range maps.Keys(s) {
			if _, ok := before[line]; !ok && !yield(line) {
				return
			}
		}
	})
}

// NoLeaks takes stock now and again at the test's end, after all that the test has registered with t.Cleanup by then, and fails
// the test if anything is left. It needs a quiet machine: another user's container started meanwhile looks like a leak.
// If the test fails for any reason, containerd's log of the time of the test is shown.
func (c *Containerd) NoLeaks(t testing.TB) {
	t.Helper()
	logged := c.LogSize()
	before, err := c.Snapshot()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if left := c.settle(t, before); len(left) > 0 {
			t.Errorf("left behind %v after the end:\n  %s", settleTimeout, strings.Join(left, "\n  "))
		}
		if t.Failed() {
			t.Log(c.LogTail(logged))
			t.Log(c.consoles())
		}
	})
}

// settle waits until nothing is there that was not there before, and returns what remains.
func (c *Containerd) settle(t testing.TB, before Snapshot) []string {
	t.Helper()
	deadline := time.Now().Add(settleTimeout)
	for pause := 10 * time.Millisecond; ; pause = min(2*pause, time.Second) {
		now, err := c.Snapshot()
		if err != nil {
			return []string{fmt.Sprintf("(no snapshot: %v)", err)}
		}
		left := now.Since(before)
		if len(left) == 0 || time.Now().After(deadline) {
			return left
		}
		time.Sleep(pause)
	}
}

// metadataLines lists what containerd itself still knows.
func (c *Containerd) metadataLines() ([]string, error) {
	if c.client == nil {
		return nil, nil
	}
	ctx, cancel := context.WithTimeout(c.Context(), settleTimeout)
	defer cancel()
	containers, err := c.client.Containers(ctx)
	if err != nil {
		return nil, err
	}
	var lines []string
	for _, ctr := range containers {
		lines = append(lines, "container "+ctr.ID())
	}
	tasks, err := c.tasks(ctx)
	if err != nil {
		return nil, err
	}
	snapshots, err := c.activeSnapshots(ctx)
	if err != nil {
		return nil, err
	}
	return slices.Concat(lines, tasks, snapshots), nil
}
