package block

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/config"
	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/virtio/queue"
	vt "github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/virtio/virtiotest"
)

// TestReadsOfBothKinds mixes reads of what is in the page cache, which end as they are submitted, with reads that wait for the disk, if
// the file is on one: none of them is lost.
func TestReadsOfBothKinds(t *testing.T) {
	needURing(t)
	const size, block, count = 16 << 20, 4096, 60
	d, data := drive(t, size, config.Drive{IOEngine: config.IOAsync})
	g := start(t, d)
	random := rand.New(rand.NewPCG(1, 2))
	for range 40 {
		if err := unix.Fsync(d.backing.fd); err != nil {
			t.Fatal(err)
		}
		if err := unix.Fadvise(d.backing.fd, 0, 0, unix.FADV_DONTNEED); err != nil {
			t.Fatal(err)
		}
		a := vt.NewArena(8 << 20)
		var sectors []int
		var bufs, statuses []vt.Span
		for range count {
			h, s, b := a.Alloc(headerSize), a.Alloc(1), a.Alloc(block)
			sector := random.IntN((size - block) / SectorSize)
			clear(g.Bytes(h))
			binary.LittleEndian.PutUint64(g.Bytes(h)[8:], uint64(sector))
			g.Bytes(s)[0] = 0xff
			if _, ok := g.Rings[0].Add([]vt.Span{h}, []vt.Span{b, s}); !ok {
				t.Fatal("no descriptors")
			}
			if random.IntN(4) == 0 {
				g.Rings[0].Kick()
			}
			sectors, bufs, statuses = append(sectors, sector), append(bufs, b), append(statuses, s)
		}
		g.Rings[0].Kick()
		for range count {
			g.WaitUsed(g.Rings[0])
		}
		for i, b := range bufs {
			if off := sectors[i] * SectorSize; g.Bytes(statuses[i])[0] != statusOK || !bytes.Equal(g.Bytes(b), data[off:off+block]) {
				t.Fatalf("sector %d: status %d, or something else was read", sectors[i], g.Bytes(statuses[i])[0])
			}
		}
	}
}

// TestReadyEndsAtOnce: who submits a read of what the host has at hand ends it, too.
func TestReadyEndsAtOnce(t *testing.T) {
	needURing(t)
	d, data := drive(t, 8192, config.Drive{IOEngine: config.IOAsync})
	e := d.async
	ram := vt.Memory(t, 1<<20)
	q, err := queue.New(ram, vt.NewRing(ram, 4096, QueueSize, true, vt.Eventfd(t)).Cfg)
	if err != nil {
		t.Fatal(err)
	}
	e.q, e.irq = q, deaf{} // nobody else takes results
	mem := ram.Regions()[0].Mem
	c := queue.Chain{Head: 7, Readable: [][]byte{mem[:headerSize]}, Writable: [][]byte{mem[1<<19:][:4096], mem[1<<19-1:][:1]}}
	s := d.serve(0)
	atOnce := 0
	for range 100 {
		mem[1<<19-1] = 0xff
		s.disk = d.begin()
		if !e.begin(s, &c, 4096) {
			t.Fatal("not begun")
		}
		if err := e.submitAndEnd(); err != nil {
			t.Fatal(err)
		}
		if e.pending.Load() == 0 {
			atOnce++
		}
		for begin := time.Now(); e.pending.Load() > 0; time.Sleep(time.Millisecond) { // the page cache may have been emptied
			if err := e.endReady(); err != nil || time.Since(begin) > vt.Timeout {
				t.Fatal("the read has not ended", err)
			}
		}
		if mem[1<<19-1] != statusOK || !bytes.Equal(mem[1<<19:][:4096], data[:4096]) {
			t.Fatalf("status %d, or something else was read", mem[1<<19-1])
		}
	}
	if atOnce == 0 {
		t.Error("no read has ended at once")
	}
}

// deaf is a driver that hears nothing.
type deaf struct{}

func (deaf) Queue()       {}
func (deaf) Config()      {}
func (deaf) Broken(error) {}
