package ratelimit

import (
	"errors"
	"math"
	"testing"
	"time"

	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/config"
)

// bench is a limiter on a clock that only sleeping moves.
type bench struct {
	Limiter
	clock  time.Duration
	sleeps int
	woken  int
	during func() // what happens while one sleeps, instead of its end
	err    error
}

func newBench(c config.RateLimiter) *bench {
	b := new(bench)
	b.now = func() time.Duration { return b.clock }
	b.Update(&c)
	return b
}

func (b *bench) Sleep(d time.Duration) error {
	b.sleeps++
	if f := b.during; f != nil {
		b.during = nil
		f()
	} else {
		b.clock += d
	}
	return b.err
}

func (b *bench) Wake() { b.woken++ }

// at has a request go through, and gives the time when it did.
func (b *bench) at(t *testing.T, bytes uint64) time.Duration {
	t.Helper()
	if err := b.Await(b, bytes); err != nil {
		t.Fatal(err)
	}
	return b.clock
}

const ms = time.Millisecond

func bandwidth(size, burst, refill uint64) config.RateLimiter {
	return config.RateLimiter{Bandwidth: &config.TokenBucket{Size: size, OneTimeBurst: burst, RefillTime: refill}}
}

func ops(size, burst, refill uint64) config.RateLimiter {
	return config.RateLimiter{Ops: &config.TokenBucket{Size: size, OneTimeBurst: burst, RefillTime: refill}}
}

func TestLimits(t *testing.T) {
	both := bandwidth(1000, 0, 1000)
	both.Ops = &config.TokenBucket{Size: 2, RefillTime: 1000}
	tests := []struct {
		name     string
		c        config.RateLimiter
		requests []uint64
		want     []time.Duration
	}{
		{"starts full, then waits for what is missing", bandwidth(1000, 0, 1000), []uint64{600, 400, 100, 1000}, []time.Duration{0, 0, 100 * ms, 1100 * ms}},
		{"the burst comes first", bandwidth(1000, 500, 1000), []uint64{500, 1000, 1}, []time.Duration{0, 0, ms}},
		{"a request of burst and bucket", bandwidth(1000, 500, 1000), []uint64{1500, 1}, []time.Duration{0, ms}},
		{"the burst does not come back", bandwidth(10, 5, 10), []uint64{15, 10, 10}, []time.Duration{0, 10 * ms, 20 * ms}},
		// 2500 of a full bucket of 1000 leave a debt of 1500: 1.5 times the refill time, and 10 ms for the next one's own.
		{"larger than the bucket", bandwidth(1000, 0, 1000), []uint64{2500, 10}, []time.Duration{0, 1510 * ms}},
		{"larger than the bucket again and again", bandwidth(1000, 0, 1000), []uint64{2000, 2000, 2000}, []time.Duration{0, 1000 * ms, 3000 * ms}},
		{"no bytes while in debt", bandwidth(1000, 0, 1000), []uint64{2500, 0}, []time.Duration{0, 0}},
		{"operations", ops(2, 1, 1000), []uint64{1 << 40, 0, 1, 1, 1}, []time.Duration{0, 0, 0, 500 * ms, 1000 * ms}},
		{"both", both, []uint64{100, 100, 100, 1000}, []time.Duration{0, 0, 500 * ms, 1000 * ms}},
		{"no size", bandwidth(0, 0, 1000), []uint64{1 << 63, 1 << 63}, []time.Duration{0, 0}},
		{"no time", ops(1, 0, 0), []uint64{1, 1, 1}, []time.Duration{0, 0, 0}},
		{"nothing", config.RateLimiter{}, []uint64{1 << 63, 1 << 63}, []time.Duration{0, 0}},
		{"thirds", bandwidth(3, 0, 1), []uint64{3, 1, 1, 1}, []time.Duration{0, 333_334, 666_667, ms}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			b := newBench(tt.c)
			for i, n := range tt.requests {
				if got := b.at(t, n); got != tt.want[i] {
					t.Errorf("request %d of %d bytes went through at %v, want %v", i, n, got, tt.want[i])
				}
			}
		})
	}
}

// What a thousand million nanoseconds bring is the same in one look as in a million, and a long idle time fills the bucket only.
func TestNoDrift(t *testing.T) {
	c := config.TokenBucket{Size: 7_777_777, RefillTime: 3001}
	once, often := newBucket(c, 0), newBucket(c, 0)
	once.take(c.Size)
	often.take(c.Size)
	for now := time.Duration(0); now < time.Second; now += 977 {
		often.refill(now)
	}
	once.refill(time.Second)
	often.refill(time.Second)
	if once != often || once.tokens != 7_777_777*1000/3001 {
		t.Errorf("%+v and %+v", once, often)
	}
	once.refill(math.MaxInt64)
	if once.tokens != c.Size || once.part != 0 {
		t.Errorf("after 292 years: %+v", once)
	}
	if once.refill(0); once.tokens != c.Size || once.at != math.MaxInt64 {
		t.Errorf("a clock that goes back: %+v", once)
	}
}

func TestExtremes(t *testing.T) {
	largest := newBucket(config.TokenBucket{Size: math.MaxUint64, OneTimeBurst: math.MaxUint64, RefillTime: math.MaxUint64}, 0)
	largest.take(math.MaxUint64)
	largest.take(math.MaxUint64)
	if d := largest.wait(math.MaxUint64); d < time.Duration(config.MaxRefillTime)*ms {
		t.Errorf("waits for %v", d)
	}
	if largest.refill(math.MaxInt64); largest.tokens == 0 {
		t.Error("nothing came")
	}
	slow := newBucket(config.TokenBucket{Size: 1, RefillTime: config.MaxRefillTime}, 0)
	slow.take(math.MaxUint64)
	if d := slow.wait(1); d != math.MaxInt64 {
		t.Errorf("waits for %v", d)
	}
	if slow.refill(math.MaxInt64); slow.debt != math.MaxUint64-2 {
		t.Errorf("%+v", slow)
	}
	quick := newBucket(config.TokenBucket{Size: math.MaxUint64, RefillTime: 1}, 0)
	quick.take(math.MaxUint64)
	if quick.refill(math.MaxInt64); quick.tokens != math.MaxUint64 {
		t.Errorf("%+v", quick)
	}
}

func TestUpdate(t *testing.T) {
	b := newBench(bandwidth(1000, 0, 1000))
	b.at(t, 1000)
	b.Update(nil)
	b.Update(&config.RateLimiter{})
	if got := b.at(t, 100); got != 100*ms {
		t.Fatalf("an update of nothing let a request through at %v", got)
	}
	// The other bucket.
	c := ops(1, 0, 1000)
	b.Update(&c)
	b.at(t, 0)
	if got := b.at(t, 0); got != 1100*ms {
		t.Fatalf("a limit of operations, set while running: %v", got)
	}
	// While somebody waits: for a day, then for a second.
	b = newBench(bandwidth(1, 0, 86_400_000))
	b.at(t, 1)
	b.during = func() {
		c := bandwidth(1000, 0, 1000)
		b.Update(&c)
	}
	if got := b.at(t, 1); got != 0 || b.woken != 1 || b.sleeps != 1 {
		t.Errorf("went through at %v, woken %d times of %d", got, b.woken, b.sleeps)
	}
	// No limit at all any more.
	b.at(t, 999)
	b.during = func() {
		c := bandwidth(0, 0, 0)
		b.Update(&c)
	}
	if got := b.at(t, 1); got != 0 || b.limited.Load() {
		t.Errorf("went through at %v", got)
	}
	b.at(t, math.MaxUint64)
	b.at(t, math.MaxUint64)
}

// A sleep that ends early is gone on with; one that fails costs nothing.
func TestSleeps(t *testing.T) {
	b := newBench(bandwidth(1000, 0, 1000))
	b.at(t, 1000)
	b.during = func() { b.clock += 10 * ms }
	if got := b.at(t, 500); got != 500*ms || b.sleeps != 2 {
		t.Errorf("went through at %v after %d sleeps", got, b.sleeps)
	}
	b.err = errors.New("reset")
	before := b.bytes
	if err := b.Await(b, 500); err != b.err {
		t.Errorf("got %v", err)
	}
	if b.err = nil; b.bytes.tokens != before.tokens {
		t.Errorf("a request that was given up has taken tokens: %+v", b.bytes)
	}
	if got := b.clock; got != 1000*ms {
		t.Errorf("slept until %v", got)
	}
}

// What is charged afterwards puts the buckets into debt, which outlives a sleep that fails; then it is paid for.
func TestDebt(t *testing.T) {
	c := bandwidth(1000, 500, 1000)
	c.Ops = &config.TokenBucket{Size: 2, RefillTime: 1000}
	b := newBench(c)
	settled := func(want time.Duration) {
		t.Helper()
		if err := b.Settle(b); err != nil || b.clock != want {
			t.Fatalf("settled at %v, %v; want %v", b.clock, err, want)
		}
	}
	settled(0)
	b.Charge(1500)
	settled(0)
	b.Charge(300)
	settled(300 * ms)
	b.err = errors.New("reset")
	b.during = func() {}
	b.Charge(100)
	if err := b.Settle(b); err != b.err || b.ops.debt != 1 || b.bytes.debt != 100 {
		t.Fatalf("%v, debts %d and %d", err, b.bytes.debt, b.ops.debt)
	}
	b.err = nil
	b.Charge(50) // the fourth: two were there, and 0.6 have come
	settled(1000 * ms)
	b.Charge(math.MaxUint64)
	b.Charge(math.MaxUint64)
	if b.bytes.debt != math.MaxUint64 {
		t.Errorf("a debt of %d", b.bytes.debt)
	}
	b.during = func() {
		c := bandwidth(1, 0, 1)
		b.Update(&c)
	}
	settled(2000 * ms) // two more operations
	var none Limiter
	none.Charge(1)
	if err := none.Settle(b); err != nil || none.bytes.debt != 0 {
		t.Error(err)
	}
}

func TestNoAllocation(t *testing.T) {
	var none Limiter
	b := newBench(ops(1000, 0, 1))
	if n := testing.AllocsPerRun(1000, func() {
		none.Await(b, 1)
		b.Await(b, 1)
		b.Charge(1)
		b.Settle(b)
		b.clock++
	}); n != 0 {
		t.Errorf("%v allocations a request", n)
	}
}

// A real clock: nothing here fails for being slow.
func TestRealClock(t *testing.T) {
	var l Limiter
	c := ops(1, 0, 20)
	l.Update(&c)
	begin := time.Now()
	for range 3 {
		if err := l.Await(sleeper{}, 1); err != nil {
			t.Fatal(err)
		}
	}
	if d := time.Since(begin); d < 40*ms {
		t.Errorf("3 requests took %v, want at least 40 ms", d)
	}
}

type sleeper struct{}

func (sleeper) Sleep(d time.Duration) error {
	time.Sleep(d)
	return nil
}
func (sleeper) Wake() {}

func BenchmarkAwait(b *testing.B) {
	c := bandwidth(1<<40, 0, 1)
	c.Ops = &config.TokenBucket{Size: 1 << 40, RefillTime: 1}
	for _, bc := range []struct {
		name string
		c    *config.RateLimiter
	}{{"unlimited", nil}, {"limited", &c}} {
		b.Run(bc.name, func(b *testing.B) {
			var l Limiter
			l.Update(bc.c)
			b.ReportAllocs()
			for b.Loop() {
				l.Await(sleeper{}, 4096)
			}
		})
	}
}
