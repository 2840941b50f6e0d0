// Package metrics counts what a microVM does, under Firecracker's names and by its rules, and writes it as lines of JSON.
//
// Whoever has something to count keeps a group of this package, a struct whose fields are counters, and adds to it. To count is one
// atomic addition: it takes no lock, allocates nothing, and knows nothing of who reads. Times of single requests are taken only where
// somebody has asked for metrics (Latency). A line has every group that Firecracker's has, also those of what a machine has not: their values
// are zero, as with Firecracker.
//
// A group must never be copied, nor written to by two Recorders.
package metrics

import (
	"sync/atomic"
	"time"
)

// Counter counts up. A line has how much that was since the line before. The zero value is ready; nil counts for nobody.
type Counter struct {
	n atomic.Uint64
	// told is what the lines until now add up to. It belongs to the Recorder.
	told uint64
}

// Add counts n.
func (c *Counter) Add(n uint64) {
	if c != nil {
		c.n.Add(n)
	}
}

// Inc counts one.
func (c *Counter) Inc() { c.Add(1) }

// Count is the sum since the start, whatever lines have been written.
func (c *Counter) Count() uint64 { return c.n.Load() }

// Gauge has a value, which every line has as it is. The zero value is ready.
type Gauge struct{ v atomic.Uint64 }

// Set replaces the value.
func (g *Gauge) Set(v uint64) { g.v.Store(v) }

// Value is what was set last.
func (g *Gauge) Value() uint64 { return g.v.Load() }

// Latency sums up how long something took, in microseconds. The extremes are of the time since the start; 0 is none.
type Latency struct {
	Min Gauge   `json:"min_us"`
	Max Gauge   `json:"max_us"`
	Sum Counter `json:"sum_us"`
}

// Record counts a duration. It may be called from any goroutine.
func (l *Latency) Record(d time.Duration) {
	us := uint64(max(d, 0).Microseconds())
	l.Sum.Add(us)
	l.extend(us, us)
}

// extend takes other extremes in; 0 is none.
func (l *Latency) extend(least, most uint64) {
	for {
		old := l.Min.v.Load()
		if least == 0 || old != 0 && old <= least || l.Min.v.CompareAndSwap(old, least) {
			break
		}
	}
	for {
		old := l.Max.v.Load()
		if old >= most || l.Max.v.CompareAndSwap(old, most) {
			break
		}
	}
}

// Timer is a Latency's stopwatch for one thing at a time. A zero Timer measures nothing, and does not look at the clock.
type Timer struct {
	into  *Latency
	since time.Time
}

// Start starts a stopwatch, unless timed is false: nobody has asked.
func (l *Latency) Start(timed bool) Timer {
	if !timed {
		return Timer{}
	}
	return Timer{into: l, since: time.Now()}
}

// Stop counts the time since Start.
func (t Timer) Stop() {
	if t.into != nil {
		t.into.Record(time.Since(t.since))
	}
}
