package harness

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"time"
)

// debugSocket is where containerd serves Go's profiles.
func (c *Containerd) debugSocket() string { return c.path("debug.sock") }

// Live is what a Go program keeps: what is left after a collection of garbage.
type Live struct {
	Heap       int64 // bytes
	Goroutines int
}

func (l Live) String() string {
	return fmt.Sprintf("%d KiB of live heap, %d goroutines", l.Heap>>10, l.Goroutines)
}

// Live asks containerd itself.
func (c *Containerd) Live(t testing.TB) Live {
	t.Helper()
	heap, err := c.profile("heap?gc=1&debug=1", "# HeapAlloc = ")
	if err != nil {
		t.Fatal(err)
	}
	goroutines, err := c.profile("goroutine?debug=1", "goroutine profile: total ")
	if err != nil {
		t.Fatal(err)
	}
	return Live{Heap: heap, Goroutines: int(goroutines)}
}

// profile returns the number that follows label in one of containerd's profiles.
func (c *Containerd) profile(name, label string) (int64, error) {
	ctx, cancel := context.WithTimeout(context.Background(), Slow(30*time.Second))
	defer cancel()
	hc := http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", c.debugSocket())
		},
	}}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://containerd/debug/pprof/"+name, nil)
	if err != nil {
		return 0, err
	}
	resp, err := hc.Do(req)
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	lines := bufio.NewScanner(resp.Body)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		if number, ok := strings.CutPrefix(lines.Text(), label); ok {
			return strconv.ParseInt(number, 10, 64)
		}
	}
	return 0, fmt.Errorf("containerd's profile %s has no %q: %w", name, label, lines.Err())
}
