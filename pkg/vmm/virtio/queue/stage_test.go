package queue_test

import (
	"testing"

	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/virtio/queue"
	vt "github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/virtio/virtiotest"
)

// The driver sees staged chains all at once, and not before; indices wrap meanwhile.
func TestStage(t *testing.T) {
	for _, eventIdx := range []bool{false, true} {
		r, q := newPair(t, 4, eventIdx)
		var c queue.Chain
		s := []vt.Span{{Addr: 0x20000, Len: 1}}
		for i := range 65536 {
			var heads []uint16
			for range 1 + i%3 {
				r.Add(nil, s)
				if ok, err := q.Pop(&c); !ok || err != nil {
					t.Fatalf("round %d: %v, %v", i, ok, err)
				}
				heads = append(heads, c.Head)
			}
			r.Arm()
			for _, h := range heads {
				if err := q.Stage(h, uint32(i)); err != nil {
					t.Fatal(err)
				}
			}
			if _, _, ok := r.Used(); ok || q.NeedsInterrupt() {
				t.Fatalf("round %d: the driver sees a staged chain", i)
			}
			q.Publish()
			for _, want := range heads {
				if h, n, ok := r.Used(); !ok || h != want || n != uint32(i) {
					t.Fatalf("round %d: Used %d, %d, %v; want %d", i, h, n, ok, want)
				}
			}
			if _, _, ok := r.Used(); ok {
				t.Fatalf("round %d: one chain too many", i)
			}
			if !q.NeedsInterrupt() {
				t.Fatalf("round %d: no interrupt", i)
			}
			if q.Publish(); q.NeedsInterrupt() {
				t.Fatalf("round %d: interrupt for nothing", i)
			}
		}
	}
	_, q := newPair(t, 4, false)
	if err := q.Stage(4, 0); err == nil {
		t.Error("a head beyond the queue was staged")
	}
}
