package net

import (
	"testing"

	"golang.org/x/sys/unix"

	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/config"
	vt "github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/virtio/virtiotest"
)

// The benchmarks move frames of 1514 bytes and of 64 KiB through the rings and a socket pair, one at a time.

func BenchmarkTransmit(b *testing.B) {
	for _, size := range []int{1514, 65550} {
		b.Run(name(size), func(b *testing.B) {
			g := newGuest(b, config.NetworkInterface{IfaceID: "eth0"})
			chain := g.put(frame(size), headerSize)
			in := make([]byte, MaxFrame)
			fd := int(g.wire.Fd())
			b.SetBytes(int64(size))
			b.ReportAllocs()
			for b.Loop() {
				g.Do(g.tx, chain, nil)
				if n, err := unix.Read(fd, in); n != size+headerSize {
					b.Fatal(n, err)
				}
			}
		})
	}
}

func BenchmarkReceive(b *testing.B) {
	for _, size := range []int{1514, 65550} {
		b.Run(name(size), func(b *testing.B) {
			g := newGuest(b, config.NetworkInterface{IfaceID: "eth0"})
			bufs := make(map[uint16][]vt.Span, QueueSize)
			for range QueueSize / 2 {
				s := []vt.Span{g.Arena.Alloc(1536)}
				head, _ := g.rx.Add(nil, s)
				bufs[head] = s
			}
			g.rx.Kick()
			out := frame(size)
			fd := int(g.wire.Fd())
			b.SetBytes(int64(size))
			b.ReportAllocs()
			for b.Loop() {
				if _, err := unix.Write(fd, out); err != nil {
					b.Fatal(err)
				}
				for left := len(out); left > 0; {
					head, n := g.WaitUsed(g.rx)
					left -= int(n)
					s := bufs[head]
					delete(bufs, head)
					again, _ := g.rx.Add(nil, s)
					bufs[again] = s
				}
				g.rx.Kick()
			}
		})
	}
}

func name(size int) string {
	if size > 1514 {
		return "64K"
	}
	return "1514"
}
