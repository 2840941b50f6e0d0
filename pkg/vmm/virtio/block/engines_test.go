package block

import (
	"encoding/binary"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/config"
	vt "github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/virtio/virtiotest"
)

// BenchmarkColdReads is reads of 4 KiB that are not in the host's page cache, 32 at a time: what the engines differ in. It needs a TMPDIR
// on a disk, and says nothing but about that disk.
func BenchmarkColdReads(b *testing.B) {
	needURing(b)
	const size, block, depth = 256 << 20, 4096, 32
	for _, engine := range []string{config.IOSync, config.IOAsync} {
		b.Run(engine, func(b *testing.B) {
			d, _ := drive(b, size, config.Drive{IOEngine: engine})
			fd := d.backing.fd
			if err := unix.Fsync(fd); err != nil {
				b.Fatal(err)
			}
			for _, advice := range []int{unix.FADV_DONTNEED, unix.FADV_RANDOM} {
				if err := unix.Fadvise(fd, 0, 0, advice); err != nil {
					b.Fatal(err)
				}
			}
			g := start(b, d)
			var out, in [depth][]vt.Span
			for i := range depth {
				out[i], in[i] = []vt.Span{g.Arena.Alloc(headerSize)}, []vt.Span{g.Arena.Alloc(block), g.Arena.Alloc(1)}
			}
			b.SetBytes(block)
			b.ResetTimer()
			for n := 0; n < b.N; n += depth {
				for i := range depth {
					at := (n + i) * 40503 % (size / block) // odd: it meets them all
					binary.LittleEndian.PutUint64(g.Bytes(out[i][0])[8:], uint64(at)*block/SectorSize)
					if _, ok := g.Rings[0].Add(out[i], in[i]); !ok {
						b.Fatal("no descriptors")
					}
				}
				g.Rings[0].Kick()
				for range depth {
					g.WaitUsed(g.Rings[0])
				}
			}
		})
	}
}
