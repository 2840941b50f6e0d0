package shim

import (
	"context"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/pkg/namespaces"
)

// A guest that reports without end makes few events, and none after its end.
func TestOOMFlood(t *testing.T) {
	ctx := namespaces.WithNamespace(context.Background(), "test")
	for name, tt := range map[string]struct {
		do     func(c *container, now time.Time)
		events int
		kills  uint64
	}{
		"one":         {func(c *container, now time.Time) { c.oomReported(now) }, 1, 1},
		"at the exit": {func(c *container, now time.Time) { c.oomAtExit(now) }, 1, 1},
		"told twice": {func(c *container, now time.Time) {
			c.oomAtExit(now)
			c.oomReported(now.Add(time.Minute))
		}, 1, 1},
		"told twice, in the other order": {func(c *container, now time.Time) {
			c.oomReported(now)
			c.oomAtExit(now.Add(time.Minute))
		}, 1, 1},
		"flood": {func(c *container, now time.Time) {
			for i := range 10000 { // 2.5 s of it
				c.oomReported(now.Add(time.Duration(i) * 250 * time.Microsecond))
			}
		}, 3, 10000},
		"after the end": {func(c *container, now time.Time) {
			c.init.end(0, now)
			c.oomReported(now)
			c.oomAtExit(now)
		}, 0, 0},
		"the guest's own count": {func(c *container, now time.Time) {
			c.mostOOMKills(7)
			c.mostOOMKills(2)
			c.oomAtExit(now)
			c.oomReported(now.Add(time.Minute))
		}, 1, 7},
	} {
		r := &recorder{}
		q := newEventQueue(ctx, r)
		c := &container{id: cid, init: newProcess("", stdioPaths{}), events: q}
		tt.do(c, time.Now())
		if err := q.close(ctx); err != nil {
			t.Fatal(err)
		}
		if len(r.list) != tt.events || c.mostOOMKills(0) != tt.kills {
			t.Errorf("%s: %d events, %d kills; want %d and %d", name, len(r.list), c.mostOOMKills(0), tt.events, tt.kills)
		}
	}
}
