package queue_test

import (
	"encoding/binary"
	"testing"

	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/memory"
	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/virtio/queue"
	vt "github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/virtio/virtiotest"
)

// FuzzQueue lets a driver fill rings and tables with anything. The first bytes choose the geometry, the rest is guest RAM
// from address 0; the queue is popped until it says no.
func FuzzQueue(f *testing.F) {
	const header, size = 8, 64 << 10
	seed := func(build func(r *vt.Ring)) {
		r := vt.NewRing(vt.Memory(f, size), 0, 8, true, nil)
		build(r)
		data := []byte{3, 0, byte(r.Cfg.Avail), byte(r.Cfg.Avail >> 8), byte(r.Cfg.Used), byte(r.Cfg.Used >> 8), 1, 0}
		f.Add(append(data, r.Bytes(vt.Span{Len: 1024})...))
	}
	s := []vt.Span{{Addr: 0x8000, Len: 16}, {Addr: 0x9000, Len: 512}}
	seed(func(r *vt.Ring) { r.Add(s, s); r.Add(nil, s) })
	seed(func(r *vt.Ring) { r.AddIndirect(0x200, s, s); r.AddIndirect(0x280, s, nil) })
	seed(func(r *vt.Ring) { r.SetDesc(0, 0x8000, 1, vt.Next, 0); r.Publish(0, 0, 0) })
	seed(func(r *vt.Ring) { r.SetAvail(0xfff0) })
	f.Add([]byte{})

	mem, err := memory.New(size, memory.HostPages)
	if err != nil {
		f.Fatal(err)
	}
	ram := mem.Regions()[0].Mem
	f.Fuzz(func(t *testing.T, data []byte) {
		var h [header]byte
		data = data[copy(h[:], data):]
		clear(ram)
		copy(ram, data)
		q, err := queue.New(mem, queue.Config{
			Size:     1 << (h[0] & 15),
			Desc:     uint64(h[1]) << 4,
			Avail:    uint64(binary.LittleEndian.Uint16(h[2:])),
			Used:     uint64(binary.LittleEndian.Uint16(h[4:])),
			EventIdx: h[6]&1 != 0,
		})
		if err != nil {
			return
		}
		var c queue.Chain
		for n := 0; ; n++ {
			// A used ring on top of the available index feeds itself for ever; Stop must end that too.
			if n == 1000 {
				q.Stop()
			}
			ok, err := q.Pop(&c)
			if ok && (err != nil || n >= 1000) {
				t.Fatalf("round %d: a chain, and %v", n, err)
			}
			if !ok {
				break
			}
			if len(c.Readable)+len(c.Writable) > q.Size() {
				t.Fatalf("%d buffers in a queue of %d", len(c.Readable)+len(c.Writable), q.Size())
			}
			for _, b := range c.Readable {
				_ = b[len(b)-1]
			}
			if h[7]&1 != 0 {
				for _, b := range c.Writable {
					b[0], b[len(b)-1] = h[7], h[7]
				}
			}
			if err := q.Push(c.Head, uint32(c.WritableLen())); err != nil {
				t.Fatal(err)
			}
			q.NeedsInterrupt()
		}
	})
}
