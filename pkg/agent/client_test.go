package agent

import (
	"context"
	"errors"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/fcshim/containerd-shim-fc-v2/pkg/agent/agentpb"
)

// A guest that takes nothing off its connection holds no call for longer than a write may take, and then loses the connection.
func TestGuestThatDoesNotRead(t *testing.T) {
	host, guest := net.Pipe() // holds nothing
	defer guest.Close()
	c := newClient(host, 50*time.Millisecond)
	defer c.Close()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	errs := make([]error, 4)
	var calls sync.WaitGroup
	for i := range errs {
		calls.Go(func() { _, errs[i] = c.Info(ctx, &agentpb.InfoRequest{}) })
	}
	calls.Wait()
	told := false
	for _, err := range errs {
		if err == nil || errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("a call ended with %v", err)
			continue
		}
		told = told || strings.Contains(err.Error(), "has not read for 50ms")
	}
	if !told {
		t.Errorf("no call tells why: %v", errs)
	}
	select {
	case <-c.Done():
	case <-ctx.Done():
		t.Error("the connection is kept")
	}
}
