package rng

import (
	"bytes"
	"testing"

	vt "github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/virtio/virtiotest"
)

func TestEntropy(t *testing.T) {
	d := New()
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
