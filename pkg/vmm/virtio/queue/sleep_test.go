package queue_test

import (
	"errors"
	"os"
	"testing"
	"time"

	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/virtio/queue"
	vt "github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/virtio/virtiotest"
)

func TestSleep(t *testing.T) {
	r, q := newPair(t, 4, true)
	for _, tt := range []struct {
		name string
		d    time.Duration
		wake func()
		want error
	}{
		{"time", time.Millisecond, func() {}, nil},
		{"no time", -time.Hour, func() {}, nil},
		{"wake", 1<<63 - 1, func() { q.Wake() }, nil},
		{"notification", time.Hour, func() { vt.Kick(r.Cfg.Notify) }, nil},
		{"stop", time.Hour, func() { q.Stop() }, queue.ErrStopped},
		{"after stop", time.Hour, func() {}, queue.ErrStopped},
	} {
		t.Run(tt.name, func(t *testing.T) {
			done := make(chan error)
			begin := time.Now()
			go func() { done <- q.Sleep(tt.d) }()
			tt.wake()
			select {
			case err := <-done:
				if err != tt.want {
					t.Fatalf("got %v, want %v", err, tt.want)
				}
			case <-time.After(vt.Timeout):
				t.Fatal("asleep for ever")
			}
			if d := time.Since(begin); tt.d == time.Millisecond && d < tt.d {
				t.Errorf("slept for %v", d)
			}
		})
	}
}

// A Stop at any moment of Sleep ends it, and what Sleep has taken for a wake, Wait still finds in the ring.
func TestSleepRaces(t *testing.T) {
	r, q := newPair(t, 4, true)
	for i := range 300 {
		if _, ok := r.Add([]vt.Span{{Addr: 0x20000, Len: 1}}, nil); !ok {
			t.Fatal("no descriptor is free")
		}
		done := make(chan error)
		go func() {
			for q.Sleep(time.Duration(i%3)*time.Millisecond) == nil {
			}
			done <- q.Sleep(time.Hour)
		}()
		r.Kick()
		time.Sleep(time.Duration(i%7) * 100 * time.Microsecond)
		q.Stop()
		select {
		case err := <-done:
			if !errors.Is(err, queue.ErrStopped) {
				t.Fatal(err)
			}
		case <-time.After(vt.Timeout):
			t.Fatal("Stop did not end Sleep")
		}
		var err error
		r = vt.NewRing(r.Mem, 4096, 4, true, r.Cfg.Notify)
		if q, err = queue.New(r.Mem, r.Cfg); err != nil {
			t.Fatal(err)
		}
	}
	var c queue.Chain
	r.Add([]vt.Span{{Addr: 0x20000, Len: 1}}, nil)
	r.Kick()
	if err := q.Sleep(time.Hour); err != nil {
		t.Fatal(err)
	}
	if err := q.Wait(); err != nil {
		t.Fatal(err)
	}
	if ok, err := q.Pop(&c); !ok || err != nil {
		t.Fatal(ok, err)
	}
	r.Cfg.Notify.Close()
	if err := q.Sleep(time.Hour); err == nil || errors.Is(err, queue.ErrStopped) {
		t.Fatalf("on a closed eventfd: %v", err)
	}
	q.Wake()
	r.Cfg.Notify = nil
	if q, err := queue.New(r.Mem, r.Cfg); err != nil || !errors.Is(q.Sleep(0), os.ErrInvalid) {
		t.Fatalf("without an eventfd: %v", err)
	}
}

func TestSleepDoesNotAllocate(t *testing.T) {
	_, q := newPair(t, 4, true)
	if n := testing.AllocsPerRun(100, func() {
		if err := q.Sleep(time.Microsecond); err != nil {
			t.Fatal(err)
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}
