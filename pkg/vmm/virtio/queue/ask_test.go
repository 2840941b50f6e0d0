package queue_test

import (
	"testing"

	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/virtio/queue"
	vt "github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/virtio/virtiotest"
)

// A device that serves each notification at once is notified of each chain.
func TestAsk(t *testing.T) {
	for _, eventIdx := range []bool{false, true} {
		r, q := newPair(t, 4, eventIdx)
		var c queue.Chain
		s := []vt.Span{{Addr: 0x20000, Len: 1}}
		if q.Ask() {
			t.Fatal("an empty queue has a chain")
		}
		for i := range 70000 {
			r.Add(s, nil)
			if !r.ShouldKick() {
				t.Fatalf("round %d: no notification", i)
			}
			if !q.Ask() {
				t.Fatalf("round %d: no chain", i)
			}
			if ok, err := q.Pop(&c); !ok || err != nil {
				t.Fatal(ok, err)
			}
			if err := q.Push(c.Head, 0); err != nil {
				t.Fatal(err)
			}
			r.Used()
			if q.Ask() {
				t.Fatalf("round %d: a chain too many", i)
			}
		}
	}
}
