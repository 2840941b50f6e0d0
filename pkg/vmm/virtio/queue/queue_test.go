package queue_test

import (
	"bytes"
	"errors"
	"os"
	"testing"
	"time"

	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/virtio/queue"
	vt "github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/virtio/virtiotest"
)

const ram = 1 << 20

func newPair(tb testing.TB, size uint16, eventIdx bool) (*vt.Ring, *queue.Queue) {
	tb.Helper()
	r := vt.NewRing(vt.Memory(tb, ram), 4096, size, eventIdx, vt.Eventfd(tb))
	q, err := queue.New(r.Mem, r.Cfg)
	if err != nil {
		tb.Fatal(err)
	}
	return r, q
}

func TestNew(t *testing.T) {
	mem := vt.Memory(t, ram)
	for _, tc := range []struct {
		name string
		cfg  queue.Config
		ok   bool
	}{
		{"good", queue.Config{Size: 8, Desc: 0, Avail: 4096, Used: 8192}, true},
		{"one", queue.Config{Size: 1, Desc: 0, Avail: 4096, Used: 8192}, true},
		{"largest", queue.Config{Size: 32768, Desc: 0, Avail: 1 << 19, Used: 1<<19 + 1<<17}, true},
		{"available ring at 2 mod 4", queue.Config{Size: 8, Desc: 0, Avail: 4098, Used: 8192}, true},
		{"up to the end", queue.Config{Size: 8, Desc: ram - 128, Avail: ram - 22, Used: ram - 72}, true},
		{"zero", queue.Config{Size: 0, Desc: 0, Avail: 4096, Used: 8192}, false},
		{"no power of two", queue.Config{Size: 12, Desc: 0, Avail: 4096, Used: 8192}, false},
		{"descriptors unaligned", queue.Config{Size: 8, Desc: 8, Avail: 4096, Used: 8192}, false},
		{"available unaligned", queue.Config{Size: 8, Desc: 0, Avail: 4097, Used: 8192}, false},
		{"used unaligned", queue.Config{Size: 8, Desc: 0, Avail: 4096, Used: 8194}, false},
		{"descriptors beyond RAM", queue.Config{Size: 8, Desc: ram - 112, Avail: 4096, Used: 8192}, false},
		{"available beyond RAM", queue.Config{Size: 8, Desc: 0, Avail: ram - 20, Used: 8192}, false},
		{"used beyond RAM", queue.Config{Size: 8, Desc: 0, Avail: 4096, Used: ram - 68}, false},
		{"used at the end of the address space", queue.Config{Size: 8, Desc: 0, Avail: 4096, Used: ^uint64(3)}, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			_, err := queue.New(mem, tc.cfg)
			if (err == nil) != tc.ok || (err != nil && !errors.Is(err, queue.ErrBroken)) {
				t.Fatalf("New(%+v): %v", tc.cfg, err)
			}
		})
	}
}

func TestChain(t *testing.T) {
	r, q := newPair(t, 8, false)
	for i := range 64 << 10 {
		r.Bytes(vt.Span{Addr: 0x20000, Len: 64 << 10})[i] = byte(i >> 8)
	}
	spans := func(n int) (s []vt.Span) {
		for i := range n {
			s = append(s, vt.Span{Addr: 0x20000 + uint64(i)<<8, Len: uint32(i + 1)})
		}
		return s
	}
	var c queue.Chain
	for _, tc := range []struct {
		name     string
		r, w     []vt.Span
		indirect bool
	}{
		{"one readable", spans(1), nil, false},
		{"one writable", nil, spans(1), false},
		{"mixed", spans(3), spans(5), false},
		{"indirect", spans(5), spans(3), true},
		{"empty buffer left out", []vt.Span{{Addr: 1 << 40}, {Addr: 0x20000, Len: 1}}, nil, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var head uint16
			if tc.indirect {
				head, _ = r.AddIndirect(0x10008, tc.r, tc.w)
			} else {
				head, _ = r.Add(tc.r, tc.w)
			}
			if ok, err := q.Pop(&c); !ok || err != nil || c.Head != head {
				t.Fatalf("Pop: %v, %v, head %d, want %d", ok, err, c.Head, head)
			}
			check := func(got [][]byte, want []vt.Span) {
				t.Helper()
				i := 0
				for _, s := range want {
					if s.Len == 0 {
						continue
					}
					if i >= len(got) || &got[i][0] != &r.Bytes(s)[0] || len(got[i]) != int(s.Len) || cap(got[i]) != len(got[i]) {
						t.Fatalf("buffer %d is not %+v", i, s)
					}
					i++
				}
				if i != len(got) {
					t.Fatalf("%d buffers, want %d", len(got), i)
				}
			}
			check(c.Readable, tc.r)
			check(c.Writable, tc.w)
			if ok, err := q.Pop(&queue.Chain{}); ok || err != nil {
				t.Fatalf("second Pop: %v, %v", ok, err)
			}
			if err := q.Push(head, 77); err != nil {
				t.Fatal(err)
			}
			if h, n, ok := r.Used(); !ok || h != head || n != 77 {
				t.Fatalf("Used: %d, %d, %v", h, n, ok)
			}
		})
	}
	if err := q.Push(8, 0); err == nil {
		t.Fatal("Push of a head beyond the queue succeeded")
	}
}

func TestBroken(t *testing.T) {
	const buf, table = 0x20000, 0x30000
	for _, tc := range []struct {
		name string
		do   func(r *vt.Ring)
	}{
		{"index jumps", func(r *vt.Ring) { r.SetAvail(9) }},
		{"index goes back", func(r *vt.Ring) { r.SetAvail(0xffff) }},
		{"head", func(r *vt.Ring) { r.Publish(8) }},
		{"next", func(r *vt.Ring) { r.SetDesc(0, buf, 1, vt.Next, 8); r.Publish(0) }},
		{"loop of one", func(r *vt.Ring) { r.SetDesc(0, buf, 1, vt.Next, 0); r.Publish(0) }},
		{"loop of two", func(r *vt.Ring) {
			r.SetDesc(0, buf, 1, vt.Next, 1)
			r.SetDesc(1, buf, 1, vt.Next, 0)
			r.Publish(0)
		}},
		{"readable behind writable", func(r *vt.Ring) {
			r.SetDesc(0, buf, 1, vt.Next|vt.Write, 1)
			r.SetDesc(1, buf, 1, 0, 0)
			r.Publish(0)
		}},
		{"buffer outside RAM", func(r *vt.Ring) { r.SetDesc(0, ram-1, 2, 0, 0); r.Publish(0) }},
		{"buffer wraps", func(r *vt.Ring) { r.SetDesc(0, ^uint64(0), 2, 0, 0); r.Publish(0) }},
		{"empty table", func(r *vt.Ring) { r.SetDesc(0, table, 0, vt.Indirect, 0); r.Publish(0) }},
		{"table of 17 bytes", func(r *vt.Ring) { r.SetDesc(0, table, 17, vt.Indirect, 0); r.Publish(0) }},
		{"table larger than the queue", func(r *vt.Ring) { r.SetDesc(0, table, 9*16, vt.Indirect, 0); r.Publish(0) }},
		{"table outside RAM", func(r *vt.Ring) { r.SetDesc(0, ram-8, 16, vt.Indirect, 0); r.Publish(0) }},
		{"table with next", func(r *vt.Ring) { r.SetDesc(0, table, 16, vt.Indirect|vt.Next, 1); r.Publish(0) }},
		{"nested table", func(r *vt.Ring) {
			vt.PutDesc(r.Bytes(vt.Span{Addr: table, Len: 16}), table, 16, vt.Indirect, 0)
			r.SetDesc(0, table, 16, vt.Indirect, 0)
			r.Publish(0)
		}},
		{"loop in a table", func(r *vt.Ring) {
			vt.PutDesc(r.Bytes(vt.Span{Addr: table, Len: 16}), buf, 1, vt.Next, 0)
			r.SetDesc(0, table, 16, vt.Indirect, 0)
			r.Publish(0)
		}},
		{"table leaves itself", func(r *vt.Ring) {
			vt.PutDesc(r.Bytes(vt.Span{Addr: table, Len: 16}), buf, 1, vt.Next, 1)
			r.SetDesc(0, table, 16, vt.Indirect, 0)
			r.Publish(0)
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r, q := newPair(t, 8, true)
			tc.do(r)
			var c queue.Chain
			for range 2 {
				ok, err := q.Pop(&c)
				if ok || !errors.Is(err, queue.ErrBroken) || len(c.Readable)+len(c.Writable) != 0 {
					t.Fatalf("Pop: %v, %v, %d buffers", ok, err, len(c.Readable)+len(c.Writable))
				}
				t.Log(err)
			}
			if err := q.Wait(); !errors.Is(err, queue.ErrBroken) {
				t.Fatalf("Wait: %v", err)
			}
		})
	}
}

// A driver that recycles chains before they were used cannot make a device hold more of them than the queue has.
func TestInFlightBound(t *testing.T) {
	r, q := newPair(t, 4, false)
	r.SetDesc(0, 0x20000, 1, 0, 0)
	var c queue.Chain
	for i := range 5 {
		r.Publish(0)
		ok, err := q.Pop(&c)
		if ok != (i < 4) || errors.Is(err, queue.ErrBroken) != (i == 4) {
			t.Fatalf("Pop %d: %v, %v", i, ok, err)
		}
	}
}

func TestTooManyBytes(t *testing.T) {
	r := vt.NewRing(vt.Memory(t, 3<<30), 4096, 8, false, nil)
	q, err := queue.New(r.Mem, r.Cfg)
	if err != nil {
		t.Fatal(err)
	}
	var c queue.Chain
	half := vt.Span{Addr: 4096, Len: 1 << 31}
	r.Add([]vt.Span{half, half}, nil)
	if ok, err := q.Pop(&c); !ok || err != nil || c.ReadableLen() != 1<<32 {
		t.Fatalf("2^32 bytes: %v, %v", ok, err)
	}
	r.Add([]vt.Span{half, half}, []vt.Span{{Addr: 4096, Len: 1}})
	if ok, err := q.Pop(&c); ok || !errors.Is(err, queue.ErrBroken) {
		t.Fatalf("2^32+1 bytes: %v, %v", ok, err)
	}
}

// Indices wrap at 2^16, and each chain carries its own byte.
func TestWrap(t *testing.T) {
	for _, eventIdx := range []bool{false, true} {
		r, q := newPair(t, 4, eventIdx)
		var c queue.Chain
		s := []vt.Span{{Addr: 0x20000, Len: 1}}
		for i := range 3 * 65536 {
			r.Bytes(s[0])[0] = byte(i)
			head, _ := r.Add(s, nil)
			if ok, err := q.Pop(&c); !ok || err != nil || c.Head != head || !bytes.Equal(c.Readable[0], []byte{byte(i)}) {
				t.Fatalf("round %d: %v, %v", i, ok, err)
			}
			if err := q.Push(head, uint32(i)); err != nil {
				t.Fatal(err)
			}
			if h, n, ok := r.Used(); !ok || h != head || n != uint32(i) {
				t.Fatalf("round %d: Used %d, %d, %v", i, h, n, ok)
			}
		}
	}
}

func TestNeedsInterrupt(t *testing.T) {
	var c queue.Chain
	s := []vt.Span{{Addr: 0x20000, Len: 1}}
	round := func(r *vt.Ring, q *queue.Queue) bool {
		h, _ := r.Add(s, nil)
		q.Pop(&c)
		q.Push(h, 0)
		r.Used()
		return q.NeedsInterrupt()
	}
	t.Run("flags", func(t *testing.T) {
		r, q := newPair(t, 4, false)
		if q.NeedsInterrupt() {
			t.Fatal("interrupt without a used chain")
		}
		if !round(r, q) {
			t.Fatal("no interrupt")
		}
		r.SuppressInterrupts(true)
		if round(r, q) {
			t.Fatal("interrupt though suppressed")
		}
		r.SuppressInterrupts(false)
		if !round(r, q) {
			t.Fatal("no interrupt after suppression")
		}
	})
	t.Run("event index", func(t *testing.T) {
		r, q := newPair(t, 4, true)
		r.SuppressInterrupts(true) // has no meaning now
		for i := range 70000 {
			if !r.Arm() || !round(r, q) {
				t.Fatalf("round %d: no interrupt", i)
			}
			if round(r, q) {
				t.Fatalf("round %d: interrupt not asked for", i)
			}
		}
	})
}

func TestStop(t *testing.T) {
	r, q := newPair(t, 4, true)
	for range 3 { // the eventfd serves one queue after another
		done := make(chan error)
		go func() { done <- q.Wait() }()
		select {
		case err := <-done:
			t.Fatalf("Wait: %v", err)
		case <-time.After(10 * time.Millisecond):
		}
		q.Stop()
		q.Stop()
		select {
		case err := <-done:
			if !errors.Is(err, queue.ErrStopped) {
				t.Fatalf("Wait: %v", err)
			}
		case <-time.After(vt.Timeout):
			t.Fatal("Stop did not end Wait")
		}
		if err := q.Wait(); !errors.Is(err, queue.ErrStopped) {
			t.Fatalf("Wait after Stop: %v", err)
		}
		r = vt.NewRing(r.Mem, 4096, 4, true, r.Cfg.Notify)
		var err error
		if q, err = queue.New(r.Mem, r.Cfg); err != nil {
			t.Fatal(err)
		}
	}
	r.Cfg.Notify.Close()
	if err := q.Wait(); !errors.Is(err, os.ErrClosed) {
		t.Fatalf("Wait on a closed eventfd: %v", err)
	}
}

// Driver and device run freely; one lost notification or interrupt would leave both asleep.
func TestNoLostWakeups(t *testing.T) {
	rounds := 200000
	if testing.Short() {
		rounds = 20000
	}
	for _, eventIdx := range []bool{false, true} {
		name := map[bool]string{false: "flags", true: "event index"}[eventIdx]
		t.Run(name, func(t *testing.T) {
			r, q := newPair(t, 8, eventIdx)
			fail := make(chan error, 1)
			go func() {
				var c queue.Chain
				for {
					if err := q.Wait(); err != nil {
						fail <- err
						return
					}
					for {
						ok, err := q.Pop(&c)
						if err != nil {
							fail <- err
							return
						}
						if !ok {
							break
						}
						q.Push(c.Head, 1)
						if q.NeedsInterrupt() {
							r.Interrupt()
						}
					}
				}
			}()
			s := []vt.Span{{Addr: 0x20000, Len: 1}}
			timeout := time.NewTimer(vt.Timeout)
			for sent, got := 0, 0; got < rounds; {
				for n := 0; n < 1+sent%3 && sent < rounds; n++ {
					if _, ok := r.Add(s, nil); !ok {
						break
					}
					sent++
				}
				r.Kick()
				if _, _, ok := r.Used(); ok {
					got++
					continue
				}
				if !r.Arm() {
					continue
				}
				select {
				case <-r.Interrupted():
				case err := <-fail:
					t.Fatal(err)
				case <-timeout.C:
					t.Fatalf("asleep after %d of %d chains", got, sent)
				}
			}
			q.Stop()
			if err := <-fail; !errors.Is(err, queue.ErrStopped) {
				t.Fatal(err)
			}
		})
	}
}

// While the device is busy the driver needs no notification.
func TestQuietWhileBusy(t *testing.T) {
	for _, eventIdx := range []bool{false, true} {
		r, q := newPair(t, 8, eventIdx)
		var c queue.Chain
		s := []vt.Span{{Addr: 0x20000, Len: 1}}
		r.Add(s, nil)
		if !r.ShouldKick() {
			t.Fatal("a new queue asks for no notification")
		}
		if ok, err := q.Pop(&c); !ok || err != nil {
			t.Fatal(ok, err)
		}
		r.Add(s, nil)
		if r.ShouldKick() {
			t.Fatal("a busy queue asks for a notification")
		}
	}
}

func BenchmarkPopPush(b *testing.B) {
	r, q := newPair(b, 256, true)
	var c queue.Chain
	rd := []vt.Span{{Addr: 0x20000, Len: 16}, {Addr: 0x21000, Len: 4096}}
	wr := []vt.Span{{Addr: 0x20100, Len: 1}}
	b.ReportAllocs()
	for b.Loop() {
		h, _ := r.Add(rd, wr)
		if ok, err := q.Pop(&c); !ok {
			b.Fatal(err)
		}
		q.Push(h, 1)
		q.NeedsInterrupt()
		r.Used()
	}
}

func TestNoAllocations(t *testing.T) {
	r, q := newPair(t, 256, true)
	var c queue.Chain
	s := []vt.Span{{Addr: 0x20000, Len: 16}, {Addr: 0x21000, Len: 4096}}
	if n := testing.AllocsPerRun(1000, func() {
		h, _ := r.Add(s, s)
		vt.Kick(r.Cfg.Notify)
		q.Wait()
		q.Pop(&c)
		q.Push(h, 1)
		q.NeedsInterrupt()
		r.Used()
	}); n != 0 {
		t.Fatalf("%v allocations a chain, want 0", n)
	}
}
