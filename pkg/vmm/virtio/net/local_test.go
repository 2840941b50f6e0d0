package net

import (
	"bytes"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/config"
	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/metrics"
)

// echo is a responder for frames of its own Ethernet type: it sends them back.
type echo struct {
	mu     sync.Mutex
	frames [][]byte
	resets int
	// endless has it send frames without end.
	endless bool
	// later is a frame for a time to come.
	later []byte
	at    time.Time
	// idle is called once Next has nothing.
	idle func()
}

const echoType = "\x88\xb6"

func (e *echo) Wants(head []byte) bool { return len(head) >= 14 && string(head[12:14]) == echoType }

func (e *echo) Receive(frame []byte) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.frames = append(e.frames, bytes.Clone(frame))
	return true
}

func (e *echo) Next(p []byte) (n int, wait time.Duration) {
	e.mu.Lock()
	defer e.mu.Unlock()
	switch {
	case len(e.frames) > 0:
		n := copy(p, e.frames[0])
		e.frames = e.frames[1:]
		return n, 0
	case e.endless:
		return copy(p, local1(100)[headerSize:]), 0
	case e.idle != nil:
		f := e.idle
		e.idle = nil
		f()
		return 0, 0
	case e.later == nil:
		return 0, 0
	}
	if wait := time.Until(e.at); wait > 0 {
		return 0, wait
	}
	n = copy(p, e.later)
	e.later = nil
	return n, 0
}

func (e *echo) Reset() {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.resets++
	e.frames, e.later = nil, nil
}

// local1 is a frame for the responder, behind a header.
func local1(n int) []byte {
	p := frame(n)
	copy(p[headerSize+12:], echoType)
	return p
}

func newLocalGuest(tb testing.TB, cfg config.NetworkInterface) (*guest, *echo) {
	e := &echo{}
	cfg.IfaceID = "eth0"
	return newGuest(tb, cfg, func(d *Device) { d.Answer(e, new(metrics.MMDS)) }), e
}

func TestLocal(t *testing.T) {
	g, e := newLocalGuest(t, config.NetworkInterface{TxRateLimiter: &config.RateLimiter{Ops: scarce(3)}})
	for _, tt := range []struct {
		name string
		p    []byte
		cut  []int
	}{
		{"one piece", local1(60), nil},
		{"least", local1(14), nil},
		{"cut", local1(1514), []int{3, 20, 1, 1}},
		{"largest", local1(maxLocal), []int{12}},
	} {
		// No frame for the responder is charged for.
		g.Do(g.tx, g.put(tt.p, tt.cut...), nil)
		posted := g.post(16 << 10)
		if p, n := g.take(&posted); n != 1 || !bytes.Equal(p, tt.p) {
			t.Errorf("%s: %d buffers, %d bytes % .30x", tt.name, n, len(p), p)
		}
	}
	g.silent()
	// In several buffers.
	g.Do(g.tx, g.put(local1(1000)), nil)
	posted := g.post(300, 300, 300, 300)
	if p, n := g.take(&posted); n != 4 || !bytes.Equal(p[headerSize:], local1(1000)[headerSize:]) {
		t.Errorf("%d buffers, %d bytes", n, len(p))
	}
	// Too large for it, or no frame: lost.
	for _, p := range [][]byte{local1(maxLocal + 1), local1(60000), local1(13)[:20], frame(0)[:5]} {
		g.Do(g.tx, g.put(p), nil)
	}
	g.silent()
	if len(e.frames) != 0 {
		t.Errorf("%d frames", len(e.frames))
	}
	c := g.dev.local.counts
	for name, v := range map[string][2]uint64{
		"rx_accepted": {c.RxAccepted.Count(), 7}, "rx_accepted_err": {c.RxAcceptedErr.Count(), 2},
		"tx_frames": {c.TxFrames.Count(), 5}, "tx_bytes": {c.TxBytes.Count(), 60 + 14 + 1514 + maxLocal + 1000},
	} {
		if v[0] != v[1] {
			t.Errorf("%s is %d, want %d", name, v[0], v[1])
		}
	}
	// Others go to the TAP and come from there.
	g.Do(g.tx, g.put(frame(70)), nil)
	if p := g.hear(); !bytes.Equal(p, frame(70)) {
		t.Errorf("%d bytes", len(p))
	}
	g.say(frame(80))
	posted = g.post(2000)
	if p, _ := g.take(&posted); !bytes.Equal(p, frame(80)) {
		t.Errorf("%d bytes", len(p))
	}
}

// Each answer comes, whatever the receiving goroutine is about to do; so do frames of the TAP.
func TestLocalWakes(t *testing.T) {
	g, _ := newLocalGuest(t, config.NetworkInterface{})
	for i := range 3000 {
		posted := g.post(2000, 2000)
		g.Do(g.tx, g.put(local1(60)), nil)
		want := [][]byte{local1(60)}
		if i%3 == 0 {
			g.say(frame(77))
			want = append(want, frame(77))
		} else {
			g.Do(g.tx, g.put(local1(61)), nil)
			want = append(want, local1(61))
		}
		var got [][]byte
		for range 2 {
			p, _ := g.take(&posted)
			got = append(got, p)
		}
		slices.SortFunc(got, func(a, b []byte) int { return len(a) - len(b) })
		for j := range want {
			if !bytes.Equal(got[j], want[j]) {
				t.Fatalf("%d: % .30x, want % .30x", i, got[j], want[j])
			}
		}
	}
}

// A frame that comes when the receiving goroutine has just seen that there is none is not slept over.
func TestLocalLateNews(t *testing.T) {
	g, e := newLocalGuest(t, config.NetworkInterface{})
	for n := range 100 {
		e.mu.Lock()
		e.idle = func() {
			e.frames = append(e.frames, local1(100 + n)[headerSize:])
			g.dev.wake()
		}
		e.mu.Unlock()
		posted := g.post(2000, 2000)
		g.Do(g.tx, g.put(local1(60)), nil)
		a, _ := g.take(&posted)
		b, _ := g.take(&posted)
		if len(a) > len(b) {
			a, b = b, a // it may have looked, and found nothing, before the first one
		}
		if !bytes.Equal(a, local1(60)) || !bytes.Equal(b, local1(100+n)) {
			t.Fatalf("%d and %d bytes, want 60 and %d", len(a), len(b), 100+n)
		}
	}
}

// What is to be sent later comes though nothing else happens.
func TestLocalTimer(t *testing.T) {
	g, e := newLocalGuest(t, config.NetworkInterface{})
	posted := g.post(times(4, 2000)...)
	g.idle()
	e.mu.Lock()
	e.later, e.at = local1(99)[headerSize:], time.Now().Add(30*time.Millisecond)
	e.mu.Unlock()
	g.Do(g.tx, g.put(local1(60)), nil)
	for _, n := range []int{60, 99} {
		if p, _ := g.take(&posted); !bytes.Equal(p, local1(n)) {
			t.Errorf("%d bytes, want %d", len(p), n)
		}
	}
	if time.Now().Before(e.at) {
		t.Error("too early")
	}
	g.say(frame(70))
	if p, _ := g.take(&posted); !bytes.Equal(p, frame(70)) {
		t.Errorf("%d bytes", len(p))
	}
}

// Neither the TAP nor the responder has the other wait for ever.
func TestLocalTurns(t *testing.T) {
	g, e := newLocalGuest(t, config.NetworkInterface{})
	e.mu.Lock()
	e.endless = true
	e.mu.Unlock()
	const n = 20
	for range n {
		g.say(frame(80))
	}
	posted := g.post(times(3*n, 2000)...)
	g.Do(g.tx, g.put(local1(60)), nil) // wakes it
	fromTAP := 0
	for range 3 * n {
		if p, _ := g.take(&posted); bytes.Equal(p, frame(80)) {
			fromTAP++
		}
	}
	if fromTAP != n {
		t.Errorf("%d frames of the TAP, want %d", fromTAP, n)
	}
	// A reset ends it all the same.
	g.restart(allFeatures)
}

// Frames to the guest are charged for, wherever they come from, and a reset gives up what waits.
func TestLocalRxLimit(t *testing.T) {
	g, e := newLocalGuest(t, config.NetworkInterface{RxRateLimiter: &config.RateLimiter{Bandwidth: scarce(250)}})
	posted := g.post(times(8, 2000)...)
	for range 3 {
		g.Do(g.tx, g.put(local1(100)), nil)
	}
	for range 2 {
		if p, _ := g.take(&posted); !bytes.Equal(p, local1(100)) {
			t.Errorf("%d bytes", len(p))
		}
	}
	g.idle()
	g.restart(allFeatures)
	if e.mu.Lock(); e.resets != 2 {
		t.Errorf("%d resets, want one for each driver", e.resets)
	}
	e.mu.Unlock()
	g.dev.Limit(&config.RateLimiter{Bandwidth: &config.TokenBucket{}}, nil)
	posted = g.post(2000)
	g.Do(g.tx, g.put(local1(101)), nil)
	if p, _ := g.take(&posted); !bytes.Equal(p, local1(101)) {
		t.Errorf("%d bytes", len(p))
	}
}
