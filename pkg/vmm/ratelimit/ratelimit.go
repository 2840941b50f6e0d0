// Package ratelimit bounds what a device does for its guest, by Firecracker's rules: one bucket of tokens for bytes and one for
// requests. A bucket starts full and fills at a steady rate; its one-time burst is spent first and does not come back; a
// request that is larger than the bucket goes through, and the next one waits until it has been paid for.
//
// It must never let a request through early, allocate for one, or look at the clock where there is no limit.
package ratelimit

import (
	"sync"
	"sync/atomic"
	"time"

	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/config"
	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/metrics"
)

// Sleeper is whoever waits for tokens: a virtqueue, or what stands before one.
type Sleeper interface {
	// Sleep returns after d, or earlier, for any reason or none. Its error is that of a device being reset.
	Sleep(d time.Duration) error
	// Wake ends a Sleep, at once or, if none is under way, the next. It may be called from any goroutine, and does not block.
	Wake()
}

// Limiter bounds one queue of a device. The zero value is no limit. It belongs to the device, not to its driver: a reset does
// not fill it. Await and Settle must not be called at the same time, nor twice; Update and Charge may be called at any time.
type Limiter struct {
	// Throttled counts the requests that had to wait, and Events the ends of their waits; nil for nobody. Set them before the first use.
	Throttled, Events *metrics.Counter

	limited atomic.Bool

	mu         sync.Mutex
	bytes, ops bucket
	asleep     Sleeper // while Await or Settle waits
	epoch      time.Time
	// now is the time since epoch; nil for that of the monotonic clock.
	now func() time.Duration
}

// Update replaces the buckets that c has by new ones, which are full. nil changes nothing.
func (l *Limiter) Update(c *config.RateLimiter) {
	if c == nil {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.epoch.IsZero() {
		l.epoch = time.Now()
	}
	now := l.time()
	if c.Bandwidth != nil {
		l.bytes = newBucket(*c.Bandwidth, now)
	}
	if c.Ops != nil {
		l.ops = newBucket(*c.Ops, now)
	}
	l.limited.Store(l.bytes.size != 0 || l.ops.size != 0)
	if l.asleep != nil {
		l.asleep.Wake()
	}
}

// Await returns when a request for so many bytes may be carried out, and takes its tokens. Until then it has s sleep; an error
// of s ends it, and nothing is taken.
func (l *Limiter) Await(s Sleeper, bytes uint64) error {
	if !l.limited.Load() {
		return nil
	}
	return l.await(s, func() time.Duration { return l.take(bytes) })
}

// Allow takes the tokens of a request for so many bytes if they are there, and says whether they were. It does not wait.
func (l *Limiter) Allow(bytes uint64) bool {
	if !l.limited.Load() {
		return true
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.take(bytes) == 0
}

// Charge takes the tokens of a request that has been carried out already, as much as that puts the buckets into debt.
func (l *Limiter) Charge(bytes uint64) {
	if !l.limited.Load() {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.refill()
	l.bytes.take(bytes)
	l.ops.take(1)
}

// Settle returns when there is no debt, having s sleep until then; an error of s ends it, and the debt remains.
func (l *Limiter) Settle(s Sleeper) error {
	if !l.limited.Load() {
		return nil
	}
	return l.await(s, l.owed)
}

// await has s sleep for as long as try says, until it says nothing.
func (l *Limiter) await(s Sleeper, try func() time.Duration) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	for waited := false; ; waited = true {
		d := try()
		if d == 0 {
			return nil
		}
		if !waited {
			l.Throttled.Inc()
		}
		l.asleep = s
		l.mu.Unlock()
		err := s.Sleep(d)
		l.Events.Inc()
		l.mu.Lock()
		l.asleep = nil
		if err != nil {
			return err
		}
	}
}

// take takes a request's tokens, all of them or none: then it gives the time after which they could be there.
func (l *Limiter) take(bytes uint64) time.Duration {
	l.refill()
	if d := max(l.bytes.wait(bytes), l.ops.wait(1)); d > 0 {
		return d
	}
	l.bytes.take(bytes)
	l.ops.take(1)
	return 0
}

func (l *Limiter) owed() time.Duration {
	l.refill()
	return max(l.bytes.owed(), l.ops.owed())
}

func (l *Limiter) refill() {
	now := l.time()
	l.bytes.refill(now)
	l.ops.refill(now)
}

func (l *Limiter) time() time.Duration {
	if l.now != nil {
		return l.now()
	}
	return time.Since(l.epoch)
}
