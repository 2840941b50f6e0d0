package balloon

import (
	"encoding/binary"
	"testing"

	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/memory"
	vt "github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/virtio/virtiotest"
)

type running struct{}

func (running) Stopped() bool { return false }

// FuzzPages gives the device lists of pages, cut into buffers: each page that is listed goes back once, and no other. The same bytes are
// read as statistics and as a command too.
func FuzzPages(f *testing.F) {
	le := binary.LittleEndian
	f.Add(uint16(4), le.AppendUint32(le.AppendUint32(le.AppendUint32(nil, 700), 702), 701))
	f.Add(uint16(1), le.AppendUint32(le.AppendUint32(nil, 1<<32-1), 0))
	f.Add(uint16(3), le.AppendUint32(le.AppendUint32(nil, ramSize/pageSize-1), ramSize/pageSize))
	f.Add(uint16(10), packed(entry{0, 1}, entry{15, 1<<64 - 1}, entry{16, 0}, entry{65535, 3}))
	f.Add(uint16(0), []byte{2, 0, 0, 0})
	f.Add(uint16(4000), make([]byte, 4*listSize+7))
	mem := vt.Memory(f, ramSize)
	d := device(f, all)
	f.Fuzz(func(t *testing.T, cut uint16, data []byte) {
		var bufs [][]byte
		for rest, n := data, cut; len(rest) > 0; n = n*31 + 1 {
			k := min(int(n%8192), len(rest))
			bufs = append(bufs, rest[:k])
			rest = rest[k:]
		}
		var l pageList
		got := map[uint64]int{}
		batches := len(data)/len(l.raw) + 1
		if err := l.discard(bufs, running{}, func(addr, n uint64) {
			if n == 0 || addr%pageSize != 0 || n%pageSize != 0 || n > listSize*pageSize {
				t.Fatalf("%d bytes at %#x", n, addr)
			}
			for at := addr; at < addr+n; at += pageSize {
				got[at]++
			}
			if err := mem.Discard(addr, n); (err == nil) != (addr+n <= ramSize) || err != nil && err != memory.ErrRange {
				t.Fatalf("%d bytes at %#x: %v", n, addr, err)
			}
		}); err != nil {
			t.Fatal(err)
		}
		want := map[uint64]bool{}
		for p := data; len(p) >= 4; p = p[4:] {
			want[uint64(le.Uint32(p))*pageSize] = true
		}
		for at, n := range got {
			if !want[at] || n > batches {
				t.Fatalf("page at %#x went %d times", at, n)
			}
		}
		if len(got) != len(want) {
			t.Fatalf("%d pages went, want %d", len(got), len(want))
		}

		d.statistics.read(bufs)
		if command, ok := commandOf(bufs); ok != (len(data) == 4) || ok && command != le.Uint32(data) {
			t.Fatalf("command %d, %v", command, ok)
		}
		st, err := d.Statistics()
		if err != nil || len(data) >= entrySize && le.Uint16(data) == 0 && st.SwapIn == nil {
			t.Fatalf("%+v, %v", st, err)
		}
	})
}
