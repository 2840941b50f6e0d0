package ratelimit

import (
	"fmt"
	"math"
	"math/big"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/config"
)

// model is a token bucket that is slow and obviously right: its level is a fraction of any size, below zero where there is a debt.
type model struct {
	size, perNS, level *big.Rat
	burst              uint64
	at                 time.Duration
}

func number(n uint64) *big.Rat { return new(big.Rat).SetInt(new(big.Int).SetUint64(n)) }

func newModel(c config.TokenBucket) *model {
	size := number(c.Size)
	return &model{size: size, level: number(c.Size), burst: c.OneTimeBurst, perNS: new(big.Rat).Quo(size, number(c.RefillTime*1e6))}
}

// levelAt is what there is at a time, if nothing is taken until then.
func (m *model) levelAt(now time.Duration) *big.Rat {
	gained := new(big.Rat).Mul(m.perNS, number(uint64(now-m.at)))
	level := gained.Add(gained, m.level)
	if level.Cmp(m.size) > 0 {
		return m.size
	}
	return level
}

// allows says whether n tokens can be taken at a time.
func (m *model) allows(now time.Duration, n uint64) bool {
	n -= min(n, m.burst)
	if n == 0 {
		return true
	}
	level, want := m.levelAt(now), number(n)
	if want.Cmp(m.size) > 0 {
		return level.Sign() >= 0
	}
	return level.Cmp(want) >= 0
}

func (m *model) take(now time.Duration, n uint64) {
	free := min(n, m.burst)
	m.burst -= free
	m.level = new(big.Rat).Sub(m.levelAt(now), number(n-free))
	m.at = now
}

// grant is a request that went through.
type grant struct {
	at time.Duration
	n  uint64
}

// TestAgainstModel has buckets of all sorts decide as the model does, to the nanosecond, over requests of all sorts with idle
// times of all lengths between; and what they gave is within size, burst and rate over each window of time.
func TestAgainstModel(t *testing.T) {
	for seed := range uint64(150) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			r := rand.New(rand.NewPCG(seed, 1))
			// any has numbers of every magnitude.
			any := func(limit uint64) uint64 { return min(r.Uint64()>>r.IntN(64), limit) }
			c := config.TokenBucket{Size: 1 + any(1<<62), RefillTime: 1 + any(config.MaxRefillTime-1)}
			if seed%2 == 0 { // the usual
				c = config.TokenBucket{Size: 1 + r.Uint64N(1<<20), RefillTime: 1 + r.Uint64N(2000)}
			}
			if seed%3 == 0 {
				c.OneTimeBurst = any(4 * c.Size)
			}
			var now time.Duration
			b, m := newBucket(c, now), newModel(c)
			var given []grant
			for range 60 {
				n := any(2 * c.Size)
				switch r.IntN(4) {
				case 0:
					n = 1
				case 1:
					n = 1 + r.Uint64N(c.Size)
				}
				b.refill(now)
				d := b.wait(n)
				if can := m.allows(now, n); can != (d == 0) {
					t.Fatalf("%+v at %v: %d tokens: model says %v, waits for %v", c, now, n, can, d)
				}
				if d > 0 {
					if d == math.MaxInt64 || now+d < now {
						break // beyond all time
					}
					if m.allows(now+d-1, n) || !m.allows(now+d, n) {
						t.Fatalf("%+v at %v: %d tokens: a wait of %v is not the shortest", c, now, n, d)
					}
					switch r.IntN(3) {
					case 0:
						now += time.Duration(any(uint64(d))) // looks again early, and may give up
						continue
					default:
						now += d
					}
					if b.refill(now); b.wait(n) != 0 {
						t.Fatalf("%+v at %v: %d tokens are not there after the wait", c, now, n)
					}
				}
				b.take(n)
				m.take(now, n)
				if n > 0 {
					given = append(given, grant{now, n})
				}
				if r.IntN(4) == 0 {
					if idle := time.Duration(any(1 << 62)); now+idle > now {
						now += idle
					}
				}
			}
			checkWindows(t, c, given)
		})
	}
}

// checkWindows allows each window its last request, if that alone is larger than the bucket.
func checkWindows(t *testing.T, c config.TokenBucket, given []grant) {
	t.Helper()
	perNS := new(big.Rat).Quo(number(c.Size), number(c.RefillTime*1e6))
	for i := range given {
		sum := new(big.Rat)
		for _, g := range given[i:] {
			sum.Add(sum, number(g.n))
			limit := new(big.Rat).Mul(perNS, number(uint64(g.at-given[i].at)))
			limit.Add(limit, number(c.Size)).Add(limit, number(c.OneTimeBurst))
			if g.n > c.Size {
				limit.Add(limit, number(g.n))
			}
			if sum.Cmp(limit) > 0 {
				t.Fatalf("%+v gave %s from %v to %v, more than %s", c, sum.FloatString(1), given[i].at, g.at, limit.FloatString(1))
			}
		}
	}
}
