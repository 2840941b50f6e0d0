package block

import (
	"testing"

	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/config"
	vt "github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/virtio/virtiotest"
)

// Each request is counted as what it was, those that failed as failures only. Times are taken where they are wanted.
func TestMetrics(t *testing.T) { engines(t, testMetrics) }

func testMetrics(t *testing.T, engine string) {
	for _, timed := range []bool{false, true} {
		d, _ := drive(t, 1<<20, config.Drive{DriveID: "data", CacheType: "Writeback", IOEngine: engine})
		if timed {
			d.MeasureLatency()
		}
		g := start(t, d)
		buf := g.Arena.Alloc(4096)
		for range 3 {
			g.do(typeIn, 0, nil, []vt.Span{buf})
		}
		g.do(typeOut, 8, []vt.Span{buf}, nil)
		g.do(typeFlush, 0, nil, nil)
		g.do(typeGetID, 0, nil, []vt.Span{g.Arena.Alloc(idSize)})
		g.do(typeIn, 1<<40, nil, []vt.Span{buf})   // beyond the end
		g.do(99, 0, nil, nil)                      // no such type
		g.Do(g.Rings[0], []vt.Span{g.header}, nil) // no room for a status
		g.Do(g.Rings[0], []vt.Span{g.Arena.Alloc(8)}, []vt.Span{g.status})
		c := d.Metrics()
		for name, v := range map[string][2]uint64{
			"read_count": {c.Reads.Count(), 3}, "read_bytes": {c.ReadBytes.Count(), 3 * 4096},
			"write_count": {c.Writes.Count(), 1}, "write_bytes": {c.WriteBytes.Count(), 4096},
			"flush_count": {c.Flush.Count(), 1}, "execute_fails": {c.ExecuteFails.Count(), 1}, "invalid_reqs_count": {c.InvalidReqs.Count(), 3},
		} {
			if v[0] != v[1] {
				t.Errorf("%s is %d, want %d", name, v[0], v[1])
			}
		}
		if n := c.QueueEvents.Count(); n < 1 || n > 10 {
			t.Errorf("%d notifications, want 1 to 10", n)
		}
		// The writes of a page take longer than nothing; how long is nobody's promise.
		if took := c.ReadAgg.Max.Value() + c.WriteAgg.Max.Value(); !timed && took != 0 {
			t.Errorf("times were taken: up to %d us", took)
		}
	}
}

// A stopwatch runs for requests that move data, if somebody wants it.
func TestStopwatch(t *testing.T) {
	d, _ := drive(t, 1<<20, config.Drive{DriveID: "data"})
	for _, timed := range []bool{false, true} {
		d.timed = timed
		s := d.serve(0)
		for _, typ := range []byte{typeIn, typeOut, typeFlush} {
			s.header[0] = typ
			if runs := s.stopwatch() != (s.counts.ReadAgg.Start(false)); runs != (timed && typ != typeFlush) {
				t.Errorf("timed %v, type %d: runs %v", timed, typ, runs)
			}
		}
	}
}

// A request that waits for tokens is counted once, however often it wakes.
func TestThrottledMetrics(t *testing.T) {
	d, _ := drive(t, 1<<20, config.Drive{DriveID: "data", RateLimiter: &config.RateLimiter{Ops: &config.TokenBucket{Size: 1, RefillTime: 1e9}}})
	g := start(t, d)
	g.do(typeIn, 0, nil, []vt.Span{g.Arena.Alloc(512)})
	g.Rings[0].Add([]vt.Span{g.header}, []vt.Span{g.Arena.Alloc(512), g.status})
	g.Rings[0].Kick()
	g.WantBlocked(g.Rings[0])
	d.Limit(&config.RateLimiter{Bandwidth: &config.TokenBucket{}}) // wakes it, and changes nothing for it
	g.WantBlocked(g.Rings[0])
	d.Limit(&config.RateLimiter{Ops: &config.TokenBucket{}})
	g.WaitUsed(g.Rings[0])
	c := d.Metrics()
	if n := c.RateLimiterThrottled.Count(); n != 1 || c.RateLimiterEvents.Count() < n {
		t.Errorf("%d throttled, %d events", n, c.RateLimiterEvents.Count())
	}
}
