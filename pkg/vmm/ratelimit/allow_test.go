package ratelimit

import (
	"testing"
	"time"

	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/config"
	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/metrics"
)

// What is not there is refused, and taken from nobody.
func TestAllow(t *testing.T) {
	var l Limiter
	now := time.Duration(0)
	l.now = func() time.Duration { return now }
	if !l.Allow(1 << 40) {
		t.Error("refused without a limit")
	}
	l.Update(&config.RateLimiter{Bandwidth: &config.TokenBucket{Size: 10, OneTimeBurst: 2, RefillTime: 10}})
	for _, s := range []struct {
		after time.Duration
		n     uint64
		want  bool
	}{
		{0, 12, true}, {0, 1, false}, {time.Millisecond, 2, false}, {0, 1, true}, {0, 1, false}, {4 * time.Millisecond, 4, true}, {time.Hour, 10, true}, {0, 1, false},
	} {
		now += s.after
		if got := l.Allow(s.n); got != s.want {
			t.Errorf("%d tokens at %v: %v, want %v", s.n, now, got, s.want)
		}
	}
}

// napper passes the time.
type napper struct {
	now   *time.Duration
	naps  int
	piece time.Duration // of a wait, for one nap
}

func (s *napper) Sleep(d time.Duration) error {
	s.naps++
	*s.now += min(d, s.piece)
	return nil
}

func (s *napper) Wake() {}

// Waits are counted once for each request, and their wake-ups each.
func TestWaitsAreCounted(t *testing.T) {
	var l Limiter
	var throttled, events metrics.Counter
	now := time.Duration(0)
	l.now = func() time.Duration { return now }
	l.Throttled, l.Events = &throttled, &events
	l.Update(&config.RateLimiter{Ops: &config.TokenBucket{Size: 1, RefillTime: 100}})
	s := &napper{now: &now, piece: 30 * time.Millisecond}
	for range 3 {
		if err := l.Await(s, 0); err != nil {
			t.Fatal(err)
		}
	}
	if throttled.Count() != 2 || events.Count() != uint64(s.naps) || s.naps != 8 {
		t.Errorf("%d requests waited, %d events, %d naps; want 2, 8 and 8", throttled.Count(), events.Count(), s.naps)
	}
}
