package integration

import (
	"fmt"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/fcshim/containerd-shim-fc-v2/integration/fscheck"
	"github.com/fcshim/containerd-shim-fc-v2/integration/harness"
)

// shared is the containerd that the tests have in common: its start takes longer than most of them.
var shared struct {
	once sync.Once
	c    *harness.Containerd
	err  error
}

func TestMain(m *testing.M) {
	if os.Getenv(peerEnv) != "" {
		fmt.Fprintln(os.Stderr, peer())
		os.Exit(1)
	}
	fscheck.Child() // the tests' program is one inside of containers, too
	status := m.Run()
	if shared.c != nil {
		if err := shared.c.Stop(); err != nil {
			fmt.Fprintln(os.Stderr, "stop containerd:", err)
			status = 1
		}
	}
	os.Exit(status)
}

// containerd returns the tests' common containerd, for a test that must leave nothing behind; it skips t where there is none.
func containerd(t *testing.T) *harness.Containerd {
	t.Helper()
	env := harness.Need(t)
	shared.once.Do(func() {
		began := time.Now()
		shared.c, shared.err = harness.Start(env, harness.Options{})
		t.Logf("containerd was ready, with its image, after %v", time.Since(began).Round(time.Millisecond))
	})
	if shared.err != nil {
		t.Fatal(shared.err)
	}
	shared.c.NoLeaks(t)
	return shared.c
}

// eachRuntime runs a test with runc, for comparison, and with the runtime under test: each must behave like the other.
func eachRuntime(t *testing.T, c *harness.Containerd, test func(t *testing.T, c *harness.Containerd)) {
	t.Helper()
	runtimes := []string{harness.RuncRuntime}
	if c.FC() {
		runtimes = append(runtimes, c.Runtime)
	}
	for _, rt := range runtimes {
		t.Run(rt, func(t *testing.T) { test(t, c.As(rt)) })
	}
}

// fcOnly skips a test of what runc does not have.
func fcOnly(t *testing.T, c *harness.Containerd) {
	t.Helper()
	if !c.FC() {
		t.Skipf("%s has no machine of its own", c.Runtime)
	}
}
