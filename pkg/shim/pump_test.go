package shim

import (
	"context"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/fcshim/containerd-shim-fc-v2/pkg/agent"
)

// A client that does not read holds an exit up for a bounded time; one that reads slowly gets everything.
func TestDrainIsBounded(t *testing.T) {
	l, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	b := agent.NewStreamBroker(l)
	go func() { _ = b.Serve() }()
	defer b.Close()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	e, err := b.Expect()
	if err != nil {
		t.Fatal(err)
	}
	p := newPump("stdout", e, w)
	done := make(chan struct{})
	go func() { p.run(context.Background(), newBuffers()); close(done) }()
	conn, err := net.Dial("unix", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	if err := agent.WriteHeader(conn, e.ID()); err != nil {
		t.Fatal(err)
	}
	if _, err := conn.Write(make([]byte, 100<<10)); err != nil { // more than the pipe holds
		t.Fatal(err)
	}
	conn.Close()
	begin := time.Now()
	if p.wait(200 * time.Millisecond) {
		t.Error("the output went nowhere and was called complete")
	}
	if d := time.Since(begin); d > 2*time.Second {
		t.Errorf("the wait took %v", d)
	}
	p.abort()
	w.Close() // as stdio.close does
	select {
	case <-done:
	case <-time.After(5 * time.Second):
		t.Error("the pump goes on after its end")
	}
}
