package ratelimit

import (
	"math"
	"math/bits"
	"time"

	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/config"
)

// bucket counts tokens, exactly: what is there beyond whole tokens is kept as a fraction of one, and the refill of any time,
// however long, is computed with 128 bits. The zero value is no limit.
type bucket struct {
	size   uint64
	period uint64 // to fill the empty bucket, in ns; at most 2^63
	burst  uint64 // is left of it

	// The level is tokens - debt + part/period; one of tokens and debt is zero, and part is less than period. A full bucket
	// has no part.
	tokens, debt, part uint64
	at                 time.Duration // when that was so
}

// newBucket makes a full one.
func newBucket(c config.TokenBucket, now time.Duration) bucket {
	if c.Size == 0 || c.RefillTime == 0 {
		return bucket{}
	}
	period := min(c.RefillTime, config.MaxRefillTime) * uint64(time.Millisecond)
	return bucket{size: c.Size, period: period, burst: c.OneTimeBurst, tokens: c.Size, at: now}
}

// refill adds what has come until now.
func (b *bucket) refill(now time.Duration) {
	if b.size == 0 || now <= b.at {
		return
	}
	elapsed := uint64(now - b.at)
	b.at = now
	if b.tokens == b.size {
		return
	}
	gained := saturatingMul(elapsed/b.period, b.size)
	// rest < period, so the product of rest and size is less than period * 2^64, also with part < period: it can be divided.
	hi, lo := bits.Mul64(elapsed%b.period, b.size)
	lo, carry := bits.Add64(lo, b.part, 0)
	whole, part := bits.Div64(hi+carry, lo, b.period)
	gained, b.part = saturatingAdd(gained, whole), part
	if gained < b.debt {
		b.debt -= gained
		return
	}
	gained, b.debt = gained-b.debt, 0
	if gained >= b.size-b.tokens {
		b.tokens, b.part = b.size, 0
		return
	}
	b.tokens += gained
}

// wait is how long it takes from the last refill until n tokens can be taken: nothing, or at least a nanosecond.
func (b *bucket) wait(n uint64) time.Duration {
	if b.size == 0 {
		return 0
	}
	n -= min(n, b.burst)
	missing := b.debt
	if n <= b.size {
		// More than the bucket holds would never be there: such a request goes through, and is paid for afterwards.
		missing = saturatingAdd(missing, n)
	}
	if n == 0 || missing <= b.tokens {
		return 0
	}
	return b.until(missing - b.tokens)
}

// owed is how long it takes from the last refill until there is no debt.
func (b *bucket) owed() time.Duration {
	if b.debt == 0 {
		return 0
	}
	return b.until(b.debt)
}

// until is how long it takes from the last refill until missing more tokens have come: at least a nanosecond, if that is not zero.
func (b *bucket) until(missing uint64) time.Duration {
	hi, lo := bits.Mul64(missing, b.period)
	lo, borrow := bits.Sub64(lo, b.part, 0)
	if hi -= borrow; hi >= b.size {
		return math.MaxInt64
	}
	ns, rest := bits.Div64(hi, lo, b.size)
	if rest > 0 {
		ns++
	}
	return time.Duration(min(ns, math.MaxInt64))
}

// take takes n tokens, also those that are not there.
func (b *bucket) take(n uint64) {
	if b.size == 0 {
		return
	}
	free := min(n, b.burst)
	b.burst -= free
	n -= free
	if n <= b.tokens {
		b.tokens -= n
		return
	}
	b.debt = saturatingAdd(b.debt, n-b.tokens)
	b.tokens = 0
}

func saturatingMul(x, y uint64) uint64 {
	hi, lo := bits.Mul64(x, y)
	if hi != 0 {
		return math.MaxUint64
	}
	return lo
}

func saturatingAdd(x, y uint64) uint64 {
	sum, carry := bits.Add64(x, y, 0)
	if carry != 0 {
		return math.MaxUint64
	}
	return sum
}
