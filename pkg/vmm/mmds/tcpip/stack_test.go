package tcpip

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"
)

func TestRequests(t *testing.T) {
	w := newWorld(t)
	f := w.dial(1000)
	for _, n := range []int{1, 5, 1459, 1460, 1461, 70000, 1 << 20, 3} {
		f.want(n)
	}
	// In pieces, and several at once.
	f.send(ack, "1")
	if h := w.must(); h.data != "" || h.ack != f.seq || h.window != MaxRequest-1 {
		t.Errorf("%+v", h)
	}
	w.silent()
	f.send(ack, "0\n20\n3")
	if got, want := f.read(30), pattern(10)+pattern(20); got != want {
		t.Errorf("%q, want %q", got, want)
	}
	f.send(ack, "0\n")
	f.read(30)
	// The guest ends it.
	f.send(fin|ack, "")
	if h := w.must(); h.flags != fin|ack || h.ack != f.seq || h.seq != f.ack {
		t.Errorf("%+v", h)
	}
	f.ack++
	f.send(ack, "")
	if w.silent(); len(w.s.conns) != 0 {
		t.Error("the connection stays")
	}
}

// A request with its end of the stream is answered, and then the end comes.
func TestHalfClose(t *testing.T) {
	w := newWorld(t)
	f := w.dial(1000)
	f.send(fin|ack, "4000\n")
	f.read(4000)
	h := w.must()
	if h.flags&fin == 0 && h.data == "" {
		h = w.must()
	}
	if h.flags&fin == 0 || h.ack != f.seq {
		t.Errorf("%+v", h)
	}
	f.ack++
	f.send(ack, "")
	w.silent()
	if len(w.s.conns) != 0 {
		t.Error("the connection stays")
	}
	// Half a request, then the end.
	f = w.dial(1001)
	f.send(fin|ack, "40")
	if h := w.must(); h.flags != fin|ack || h.ack != f.seq {
		t.Errorf("%+v", h)
	}
}

// The server ends it: what else comes is acknowledged and thrown away.
func TestClose(t *testing.T) {
	w := newWorld(t)
	f := w.dial(1000)
	f.send(ack, "close 10\n11\n")
	h := w.must()
	if h.data != pattern(10) || h.flags&fin == 0 {
		t.Fatalf("%+v", h)
	}
	f.ack += 11
	f.send(ack, strings.Repeat("x\n", 1000))
	if h = w.must(); h.data != "" || h.flags != ack || h.ack != f.seq || h.window != MaxRequest {
		t.Errorf("%+v", h)
	}
	if c := w.s.conns[0]; len(c.buf) != 0 {
		t.Errorf("%d bytes kept", len(c.buf))
	}
	f.send(fin|ack, "")
	if h = w.must(); h.flags != ack || h.ack != f.seq {
		t.Errorf("%+v", h)
	}
	if w.silent(); len(w.s.conns) != 0 {
		t.Error("the connection stays")
	}
}

// Whatever is lost comes again, and both ends know.
func TestLoss(t *testing.T) {
	for seed := range uint64(20) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			r := rand.New(rand.NewPCG(seed, 1))
			w := newWorld(t)
			f := w.dial(1000)
			const n = 100000
			request := "close 100000\n"
			first := f.seq
			var got strings.Builder
			ended := false
			f.send(ack, request[:5])
			for steps := 0; !ended; steps++ {
				if steps > 20000 {
					t.Fatalf("%d bytes after %d segments", got.Len(), steps)
				}
				size, wait := w.s.Next(w.p[:])
				if size == 0 {
					w.clock += max(wait, time.Millisecond)
					f.seq = first // the client's own timer
					f.send(ack, request)
					continue
				}
				h := checkFrame(t, w.p[:size])
				if h.flags&rst != 0 {
					t.Fatalf("%+v", h)
				}
				if r.IntN(5) == 0 {
					continue // lost
				}
				if h.seq == f.ack {
					got.WriteString(h.data)
					f.ack += uint32(len(h.data))
					if ended = h.flags&fin != 0; ended {
						f.ack++
					}
				}
				if r.IntN(5) > 0 {
					f.seq = first + uint32(len(request))
					f.send(ack, "")
				}
			}
			if got.String() != pattern(n) {
				t.Errorf("%d bytes of %d, or others", got.Len(), n)
			}
			f.seq = first + uint32(len(request))
			f.send(fin|ack, "")
			for range 5 {
				w.next()
			}
			if len(w.s.conns) != 0 {
				t.Error("the connection stays")
			}
		})
	}
}

// Three acknowledgements that bring nothing have the rest sent again, without a timer.
func TestDuplicates(t *testing.T) {
	w := newWorld(t)
	f := w.dial(1000)
	f.send(ack, "10000\n")
	w.must() // lost
	for range 3 {
		w.must()
		f.send(ack, "")
	}
	if got := f.read(10000); got != pattern(10000) {
		t.Errorf("%d bytes", len(got))
	}
	if w.clock != time.Hour {
		t.Error("time went by")
	}
}

// No more is sent than the guest has room for, and a window that has opened unnoticed is found.
func TestWindow(t *testing.T) {
	w := newWorld(t)
	f := w.dial(1000)
	f.window = 1000
	f.send(ack, "5000\n")
	h := w.must()
	if len(h.data) != 1000 {
		t.Fatalf("%d bytes", len(h.data))
	}
	if wait := w.silent(); wait != firstRTO {
		t.Errorf("again after %v", wait)
	}
	f.ack += 1000
	f.window = 0
	f.send(ack, "")
	for tries, rto := 0, firstRTO; tries < 5; tries++ {
		wait := w.silent()
		if wait != rto {
			t.Fatalf("a look into the closed window after %v, want %v", wait, rto)
		}
		w.clock += wait
		if h = w.must(); len(h.data) != 1 || h.seq != f.ack {
			t.Fatalf("%+v", h)
		}
		f.send(ack, "")
		rto *= 2
	}
	f.window = 2000
	f.send(ack, "")
	if got := pattern(5000)[:1000] + f.read(4000); got != pattern(5000) {
		t.Errorf("%d bytes", len(got))
	}
}

// Requests that come before the answers to others have gone wait, as many as there is room for, and the window says how much that is.
func TestPipeline(t *testing.T) {
	w := newWorld(t)
	f := w.dial(1000)
	f.window = 0
	f.send(ack, "1000\n")
	w.must()
	lines := strings.Repeat("1\n", 1500)
	for _, window := range []int{MaxRequest - 3000, 0, 0} {
		f.send(ack, lines)
		h := w.must()
		if h.data != "" || int(h.window) != window || len(w.s.conns[0].buf) != MaxRequest-window {
			t.Fatalf("%d bytes are there: %+v, want a window of %d", len(w.s.conns[0].buf), h, window)
		}
		f.seq = h.ack
	}
	f.window = 65535
	f.send(ack, "")
	if got, want := f.read(1000+MaxRequest/2), pattern(1000)+strings.Repeat("0", MaxRequest/2); got != want {
		t.Errorf("%d bytes, or others", len(got))
	}
	f.want(77)
}

// A guest that says nothing any more is given up, in bounded time.
func TestGiveUp(t *testing.T) {
	for _, tt := range []struct {
		name string
		do   func(w *world)
	}{
		{"handshake", func(w *world) {
			w.s.Receive(frame(peer{there, 1}, 80, 7, 0, syn, 1000, nil, nil))
		}},
		{"answer", func(w *world) { w.dial(1).send(ack, "5000\n") }},
		{"end", func(w *world) {
			f := w.dial(1)
			f.send(ack, "close 10\n")
			w.must()
			f.ack += 10
			f.send(ack, "")
		}},
		{"closed window", func(w *world) {
			f := w.dial(1)
			f.window = 0
			f.send(ack, "10\n")
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := newWorld(t)
			tt.do(w)
			for sent := 0; ; {
				h, ok := w.next()
				if ok && h.flags&rst != 0 {
					break
				} else if ok {
					sent++
					continue
				}
				wait := w.silent()
				if wait <= 0 || w.clock > time.Hour+3*time.Minute || sent > 200 {
					t.Fatalf("after %v, %d segments: waits for %v", w.clock-time.Hour, sent, wait)
				}
				w.clock += wait
			}
			if w.silent() != 0 || len(w.s.conns) != 0 {
				t.Error("the connection stays")
			}
		})
	}
}

func TestResets(t *testing.T) {
	me := peer{there, 1000}
	tests := []struct {
		name string
		do   func(w *world, f *flow)
		want *heard // nil: nothing
		left int    // connections
	}{
		{"ACK of nobody", func(w *world, f *flow) {
			w.s.Receive(frame(peer{there, 7}, 80, 5, 6, ack, 1, nil, []byte("x")))
		}, &heard{to: peer{there, 7}, port: 80, seq: 6, flags: rst}, 1},
		{"data of nobody without ACK", func(w *world, f *flow) {
			w.s.Receive(frame(peer{there, 7}, 80, 5, 6, fin, 1, nil, []byte("xy")))
		}, &heard{to: peer{there, 7}, port: 80, ack: 8, flags: rst | ack}, 1},
		{"SYN to another port", func(w *world, f *flow) {
			w.s.Receive(frame(peer{there, 7}, 443, 5, 0, syn, 1, nil, nil))
		}, &heard{to: peer{there, 7}, port: 443, ack: 6, flags: rst | ack}, 1},
		{"RST of nobody", func(w *world, f *flow) {
			w.s.Receive(frame(peer{there, 7}, 80, 5, 0, rst, 1, nil, nil))
		}, nil, 1},
		{"RST", func(w *world, f *flow) { f.send(rst, "") }, nil, 0},
		{"RST outside of the window", func(w *world, f *flow) { f.seq--; f.send(rst, "") }, nil, 1},
		{"SYN|ACK", func(w *world, f *flow) { f.send(syn|ack, "") }, &heard{to: me, port: 80, flags: rst | ack}, 0},
		{"ACK of what was never sent", func(w *world, f *flow) { f.ack += 5; f.send(ack, ""); f.ack -= 5 },
			&heard{to: me, port: 80, flags: ack, window: MaxRequest}, 1},
		{"data out of order", func(w *world, f *flow) { f.seq += 5; f.send(ack, "5\n"); f.seq -= 7 },
			&heard{to: me, port: 80, flags: ack, window: MaxRequest}, 1},
		{"old data", func(w *world, f *flow) { f.seq -= 2; f.send(ack, "5\n") },
			&heard{to: me, port: 80, flags: ack, window: MaxRequest}, 1},
		{"keepalive", func(w *world, f *flow) { f.seq--; f.send(ack, ""); f.seq++ },
			&heard{to: me, port: 80, flags: ack, window: MaxRequest}, 1},
		{"no ACK", func(w *world, f *flow) { f.send(0, "5\n"); f.seq -= 2 }, nil, 1},
		{"endless request", func(w *world, f *flow) { f.send(ack, strings.Repeat("x", MaxRequest)) },
			&heard{to: me, port: 80, flags: rst | ack}, 0},
		{"handshake with a wrong number", func(w *world, f *flow) {
			w.s.Receive(frame(peer{there, 7}, 80, 5, 0, syn, 1, nil, nil))
			h := w.must()
			w.s.Receive(frame(peer{there, 7}, 80, 6, h.seq, ack, 1, nil, nil))
			f.ack, f.seq = h.seq+1, 6
		}, &heard{to: peer{there, 7}, port: 80, flags: rst | ack}, 1},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			w := newWorld(t)
			f := w.dial(1000)
			tt.do(w, f)
			if tt.want == nil {
				w.silent()
			} else {
				want := *tt.want
				if want.seq == 0 && want.ack == 0 {
					want.seq, want.ack = f.ack, f.seq
				}
				if h := w.must(); h != want {
					t.Errorf("%+v, want %+v", h, want)
				}
			}
			if len(w.s.conns) != tt.left {
				t.Errorf("%d connections", len(w.s.conns))
			}
			if tt.left == 1 {
				f = &flow{world: w, me: me, seq: w.s.conns[0].rcv, ack: w.s.conns[0].max, window: 65535}
				f.want(5000) // as if nothing had been
			}
		})
	}
}

// A SYN that comes again is answered again; one with another number is a new connection.
func TestSYNAgain(t *testing.T) {
	w := newWorld(t)
	one := frame(peer{there, 1}, 80, 7, 0, syn, 1000, nil, nil)
	w.s.Receive(one)
	a := w.must()
	w.s.Receive(one)
	if b := w.must(); a != b {
		t.Errorf("%+v, then %+v", a, b)
	}
	f := w.dial(2)
	f.want(5)
	f = w.dial(2)
	f.want(5)
	if len(w.s.conns) != 2 {
		t.Errorf("%d connections", len(w.s.conns))
	}
}

func TestManyConnections(t *testing.T) {
	w := newWorld(t)
	var fs []*flow
	for i := range MaxConns {
		fs = append(fs, w.dial(uint16(1000+i)))
	}
	// All are served in turns.
	for _, f := range fs {
		f.send(ack, "3000\n")
	}
	got := map[peer]string{}
	for range 3 {
		seen := map[peer]bool{}
		for range fs {
			h := w.must()
			if seen[h.to] {
				t.Fatalf("%v is before its turn", h.to)
			}
			seen[h.to] = true
			got[h.to] += h.data
		}
	}
	for _, f := range fs {
		if got[f.me] != pattern(3000) {
			t.Errorf("%v: %d bytes", f.me, len(got[f.me]))
		}
		f.ack += 3000
		f.send(ack, "")
	}
	// One more has to wait until another has been silent for long.
	late := frame(peer{there, 9}, 80, 7, 0, syn, 1000, nil, nil)
	w.s.Receive(late)
	w.silent()
	w.clock += evictAfter - 1
	for _, f := range fs[1:] {
		f.send(ack, "")
	}
	w.s.Receive(late)
	w.silent()
	w.clock++
	w.s.Receive(late)
	if h := w.must(); h.to.port != 9 || h.flags != syn|ack {
		t.Errorf("%+v", h)
	}
	if h := w.must(); h.to != fs[0].me || h.flags != rst|ack || h.seq != fs[0].ack {
		t.Errorf("%+v", h)
	}
	for _, f := range fs[1:] {
		f.want(10)
	}
	// What waits to be refused is bounded.
	for i := range 10 * maxResets {
		w.s.Receive(frame(peer{there, uint16(i)}, 81, 7, 0, syn, 1000, nil, nil))
	}
	for range maxResets {
		w.must()
	}
	w.silent()
	w.s.Receive(frame(peer{there, 3}, 81, 7, 0, syn, 1000, nil, nil))
	w.s.Reset()
	if w.silent() != 0 || len(w.s.conns) != 0 {
		t.Error("something is left after a reset")
	}
}
