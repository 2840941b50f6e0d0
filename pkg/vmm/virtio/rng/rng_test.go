package rng

import (
	"bytes"
	"testing"
	"time"

	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/config"
	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/virtio/queue"
	vt "github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/virtio/virtiotest"
)

func TestEntropy(t *testing.T) {
	d, err := New(config.Entropy{})
	if err != nil {
		t.Fatal(err)
	}
	m := vt.Start(t, d, 1<<20)
	for range 2 {
		r := m.Rings[0]
		for _, tc := range []struct {
			name string
			in   []uint32
			want uint32
		}{
			{"one buffer", []uint32{64}, 64},
			{"two buffers", []uint32{1, 63}, 64},
			{"bounded", []uint32{60 << 10, 60 << 10}, 64 << 10},
			{"bounded in the first buffer", []uint32{100 << 10, 16}, 64 << 10},
		} {
			t.Run(tc.name, func(t *testing.T) {
				var in []vt.Span
				var all []byte
				for _, n := range tc.in {
					s := m.Arena.Alloc(n)
					clear(m.Bytes(s))
					in = append(in, s)
				}
				if n := m.Do(r, nil, in); n != tc.want {
					t.Fatalf("%d bytes, want %d", n, tc.want)
				}
				for _, s := range in {
					all = append(all, m.Bytes(s)...)
				}
				if bytes.Equal(all[:32], make([]byte, 32)) || !bytes.Equal(all[tc.want:], make([]byte, len(all)-int(tc.want))) {
					t.Fatal("not random up to the bound and untouched behind it")
				}
			})
		}
		if n := m.Do(r, []vt.Span{m.Arena.Alloc(16)}, nil); n != 0 {
			t.Fatalf("%d bytes for a chain without room", n)
		}
		d.Reset()
		m.Activate(0)
	}
}

// A request that waits for tokens is given up by a reset, which does not fill the bucket; a new limit lets the next one go.
func TestRateLimiter(t *testing.T) {
	if _, err := New(config.Entropy{RateLimiter: &config.RateLimiter{Ops: &config.TokenBucket{RefillTime: 1 << 63}}}); err == nil {
		t.Error("a bad limit was taken")
	}
	d, err := New(config.Entropy{RateLimiter: &config.RateLimiter{Bandwidth: &config.TokenBucket{Size: 100, OneTimeBurst: 28, RefillTime: 1e9}}})
	if err != nil {
		t.Fatal(err)
	}
	m := vt.Start(t, d, 1<<20)
	if n := m.Do(m.Rings[0], nil, []vt.Span{m.Arena.Alloc(128)}); n != 128 {
		t.Fatalf("%d bytes", n)
	}
	for range 2 {
		m.Rings[0].Add(nil, []vt.Span{m.Arena.Alloc(1)})
		m.Rings[0].Kick()
		m.WantBlocked(m.Rings[0])
		if err := d.Reset(); err != nil {
			t.Fatal(err)
		}
		m.Activate(0)
	}
	m.Rings[0].Add(nil, []vt.Span{m.Arena.Alloc(1)})
	m.Rings[0].Kick()
	m.WantBlocked(m.Rings[0])
	d.limiter.Update(&config.RateLimiter{Bandwidth: &config.TokenBucket{Size: 1 + 64<<10, RefillTime: 1e9}})
	if _, n := m.WaitUsed(m.Rings[0]); n != 1 {
		t.Errorf("%d bytes", n)
	}
	// A request costs what it is given, and not what it asks for.
	if n := m.Do(m.Rings[0], nil, []vt.Span{m.Arena.Alloc(64 << 10), m.Arena.Alloc(1)}); n != 64<<10 || d.limiter.Await(still{}, 1) == nil {
		t.Errorf("%d bytes, and something left", n)
	}
}

// still does not wait.
type still struct{}

func (still) Sleep(time.Duration) error { return queue.ErrStopped }
func (still) Wake()                     {}
