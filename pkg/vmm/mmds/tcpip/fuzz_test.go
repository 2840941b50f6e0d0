package tcpip

import (
	"testing"
	"time"
)

// FuzzStack has a guest send a series of frames, some of them in the middle of a conversation, while time goes by: nothing that comes back
// is wrong, bounds hold, and at last nothing is left to wait for.
func FuzzStack(f *testing.F) {
	me := peer{there, 1000}
	f.Add(uint16(3), []byte(nil), arp(here))
	f.Add(uint16(100), []byte("5\n"), frame(me, 80, 0, 0, ack, 1000, nil, []byte("9000\n")))
	f.Add(uint16(2000), []byte("close 70000\n70"), frame(me, 80, 0xfffffff0, 0, syn, 0, []byte{2, 4, 0, 1}, nil))
	f.Add(uint16(0), []byte("1"), frame(me, 80, 0, 0, fin|ack, 0, nil, nil))
	f.Add(uint16(0), []byte("1\n"), frame(me, 80, 0, 0, rst, 0, nil, nil))
	f.Add(uint16(9), []byte("10000\n"), frame(me, 81, 0, 0, syn, 0, []byte{1, 1, 5, 255}, nil))
	f.Fuzz(func(t *testing.T, window uint16, request, any []byte) {
		w := newWorld(t)
		fl := w.dial(1000)
		fl.window = window
		if len(request) > MaxRequest {
			request = request[:MaxRequest]
		}
		take := func(n int) {
			for range n {
				size, wait := w.s.Next(w.p[:])
				if size > MaxFrame || wait < 0 || wait > maxRTO {
					t.Fatalf("frame of %d bytes, wait of %v", size, wait)
				}
				if size == 0 {
					w.clock += wait
					continue
				}
				if w.p[ethType+1] == byte(typeARP&0xff) {
					continue
				}
				h := checkFrame(t, w.p[:size])
				if h.to == me && h.seq == fl.ack {
					fl.ack += uint32(len(h.data))
				}
			}
			if len(w.s.conns) > MaxConns || len(w.s.resets) > maxResets || len(w.s.arps) > maxARPs {
				t.Fatalf("%d connections, %d resets, %d ARPs", len(w.s.conns), len(w.s.resets), len(w.s.arps))
			}
			for _, c := range w.s.conns {
				if len(c.buf) > MaxRequest {
					t.Fatalf("%d bytes of a request", len(c.buf))
				}
			}
		}
		fl.send(ack, string(request))
		take(2)
		// The frame as it is, then with numbers that fit.
		w.s.Wants(any)
		w.s.Receive(any)
		take(2)
		if seg, is := parseTCP(any, here); is == good {
			for _, off := range []uint32{0, 1, ^uint32(0), 100} {
				w.s.Receive(frame(me, seg.port, fl.seq+off, fl.ack+off, seg.flags, seg.window, nil, seg.data))
				take(3)
				w.s.Receive(frame(seg.from, seg.port, seg.seq+off, seg.ack, seg.flags, seg.window, []byte{2, 4, 0, 9}, seg.data))
				take(3)
			}
		}
		for end := w.clock + 10*time.Minute; w.clock < end; {
			size, wait := w.s.Next(w.p[:])
			if size == 0 && wait == 0 {
				return
			}
			w.clock += wait
		}
		t.Fatal("still waits for something")
	})
}
