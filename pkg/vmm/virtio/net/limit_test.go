package net

import (
	"bytes"
	"errors"
	"os"
	"testing"
	"time"

	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/config"
	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/virtio/queue"
	vt "github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/virtio/virtiotest"
)

// still does not wait: its Await fails where there are too few tokens.
type still struct{}

func (still) Sleep(time.Duration) error { return queue.ErrStopped }
func (still) Wake()                     {}

// scarce is a bucket that practically never refills.
func scarce(size uint64) *config.TokenBucket {
	return &config.TokenBucket{Size: size, RefillTime: 1e12}
}

// silent fails the test if something is on the wire.
func (g *guest) silent() {
	g.TB.Helper()
	if err := g.wire.SetReadDeadline(time.Now().Add(20 * time.Millisecond)); err != nil {
		g.TB.Fatal(err)
	}
	if n, err := g.wire.Read(make([]byte, 1<<17)); !errors.Is(err, os.ErrDeadlineExceeded) {
		g.TB.Fatalf("%d bytes on the wire, %v", n, err)
	}
}

// Frames from the guest wait, in order and with those before them given back; a reset gives them up.
func TestTxLimit(t *testing.T) {
	g := newGuest(t, config.NetworkInterface{IfaceID: "eth0", TxRateLimiter: &config.RateLimiter{Bandwidth: scarce(300), Ops: scarce(10)}})
	send := func(p []byte) {
		t.Helper()
		if _, ok := g.tx.Add(g.put(p), nil); !ok {
			t.Fatal("no descriptors")
		}
		g.tx.Kick()
	}
	for range 2 {
		// 100 bytes of each frame count, not the header.
		for range 3 {
			g.dev.Limit(nil, &config.RateLimiter{Bandwidth: scarce(300)})
			send(frame(100))
			send(frame(100))
			send(frame(100))
			send(frame(101))
			for range 3 {
				g.WaitUsed(g.tx)
				if p := g.hear(); !bytes.Equal(p, frame(100)) {
					t.Fatalf("%d bytes", len(p))
				}
			}
			g.WantBlocked(g.tx)
			g.silent()
			g.restart(allFeatures)
			send(frame(102))
			g.WantBlocked(g.tx)
			g.silent()
			g.restart(allFeatures)
		}
		// What was spent by operations: 3 times 3.
		g.dev.Limit(nil, &config.RateLimiter{Bandwidth: scarce(0)})
		send(frame(5)) // none, and costs all the same
		g.WaitUsed(g.tx)
		send(frame(103))
		g.WantBlocked(g.tx)
		g.dev.Limit(&config.RateLimiter{Ops: scarce(1)}, nil)
		g.WantBlocked(g.tx)
		g.dev.Limit(nil, &config.RateLimiter{Ops: scarce(10)})
		g.WaitUsed(g.tx)
		if p := g.hear(); !bytes.Equal(p, frame(103)) {
			t.Fatalf("%d bytes", len(p))
		}
		g.dev.Limit(nil, &config.RateLimiter{Ops: scarce(10)})
	}
	send(frame(1514))
	g.WaitUsed(g.tx)
}

// Frames to the guest wait on their way: one in its buffers, charged for, the others on the wire. The other direction goes on.
func TestRxLimit(t *testing.T) {
	g := newGuest(t, config.NetworkInterface{IfaceID: "eth0", RxRateLimiter: &config.RateLimiter{Bandwidth: scarce(300), Ops: scarce(3)}})
	posted := g.post(times(16, 1536)...)
	say := func(sizes ...int) {
		for _, n := range sizes {
			g.say(frame(n))
		}
	}
	take := func(sizes ...int) {
		t.Helper()
		for _, n := range sizes {
			if p, _ := g.take(&posted); !bytes.Equal(p, frame(n)) {
				t.Fatalf("%d bytes, want %d", len(p), n)
			}
		}
	}
	say(150, 150, 100, 101)
	take(150, 150)
	g.WantBlocked(g.rx)
	g.tx.Add(g.put(frame(60)), nil)
	g.tx.Kick()
	g.WaitUsed(g.tx)
	if p := g.hear(); !bytes.Equal(p, frame(60)) {
		t.Fatalf("%d bytes", len(p))
	}
	g.dev.Limit(&config.RateLimiter{Bandwidth: scarce(0)}, nil)
	take(100)
	g.WantBlocked(g.rx) // the operations are spent
	g.dev.Limit(&config.RateLimiter{Ops: scarce(1)}, nil)
	take(101) // paid for by the old bucket
	say(99)
	take(99)

	// A reset while one waits: the guest has seen it, and owes for it; before that is paid it sees none.
	say(102)
	for begin := time.Now(); !bytes.Contains(g.Bytes(posted[0]), frame(102)); time.Sleep(time.Millisecond) {
		if time.Since(begin) > vt.Timeout {
			t.Fatal("no frame was read")
		}
	}
	for range 3 {
		g.WantBlocked(g.rx)
		g.restart(allFeatures)
		if err := g.dev.rxLimiter.Settle(still{}); !errors.Is(err, queue.ErrStopped) {
			t.Fatalf("no debt after a reset: %v", err)
		}
		posted = g.post(times(16, 1536)...)
		clear(g.Bytes(posted[0]))
		say(102)
	}
	g.WantBlocked(g.rx)
	if p := g.Bytes(posted[0]); !bytes.Equal(p, make([]byte, len(p))) {
		t.Error("a frame was read before the last one was paid for")
	}
	g.restart(allFeatures)
	posted = g.post(times(16, 1536)...)
	say(103)
	g.WantBlocked(g.rx)
	g.dev.Limit(&config.RateLimiter{Ops: scarce(0)}, nil)
	take(103)
	if err := g.dev.rxLimiter.Await(still{}, 1<<40); err != nil {
		t.Error(err)
	}

	g.dev.Limit(&config.RateLimiter{Ops: scarce(1)}, nil)
	say(104, 105)
	take(104)
	g.WantBlocked(g.rx)
	begin := time.Now()
	if err := g.dev.Close(); err != nil || time.Since(begin) > vt.Timeout {
		t.Errorf("%v after %v", err, time.Since(begin))
	}
}
