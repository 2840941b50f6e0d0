package hostile

import (
	"encoding/binary"
	"math/rand/v2"
	"reflect"
	"testing"

	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/virtio"
)

var types = []uint32{virtio.TypeBlock, virtio.TypeNet, virtio.TypeVsock, virtio.TypeEntropy, virtio.TypeFS, virtio.TypeBalloon, 99}

func someDevice(n int) *Device {
	return &Device{Window: n, Type: types[n%len(types)], Features: 1<<32 | 1<<29 | 1<<28 | 0x3fff, QueueSizes: []uint32{256, 1024, 64}[:1+n%3]}
}

func scripts(seed uint64, n int, ram []byte) (first, second script) {
	st := &storm{r: rand.New(rand.NewPCG(seed, uint64(n))), ram: ram, dev: someDevice(n), payload: PayloadFor(someDevice(n).Type), rude: 0.4}
	first = st.begin()
	for range 60 {
		st.act(&first)
		st.mutate(&second)
	}
	return first, second
}

// A guest that writes over its own program, or to what KVM needs, shows nothing.
func TestStormsSpareTheGuest(t *testing.T) {
	ram := make([]byte, RAMSize)
	for i := range ram[programAddr:programEnd] {
		ram[programAddr+i] = 0xa5
	}
	sizes := map[kind]uint64{opWrite8: 1, opWrite16: 2, opWrite32: 4, opWrite64: 8, opXor: 4, opBurst: 4}
	most := 0
	for n := range 300 {
		first, second := scripts(1, n, ram)
		most = max(most, len(first), len(second))
		for _, o := range append(first, second...) {
			size := sizes[o.kind]
			switch o.kind {
			case opCopy:
				size = uint64(o.hi)
			case opFill:
				size = 4 * uint64(o.hi)
			}
			if size != 0 && uint64(o.addr)+size > programAddr && o.addr < programEnd {
				t.Fatalf("storm %d writes to the program: %+v", n, o)
			}
			if size != 0 && o.addr >= 0xfec00000 {
				t.Fatalf("storm %d writes to a chip of KVM's: %+v", n, o)
			}
		}
	}
	for i, b := range ram[programAddr:programEnd] {
		if b != 0xa5 {
			t.Fatalf("a request lies in the program, at %#x", programAddr+i)
		}
	}
	if most >= scriptSize/opSize {
		t.Errorf("a script has %d ops: there is room for %d", most, scriptSize/opSize)
	}
}

// What a seed has found must be found again by it.
func TestStormsRepeat(t *testing.T) {
	for n := range 12 {
		a1, a2 := scripts(7, n, make([]byte, RAMSize))
		b1, b2 := scripts(7, n, make([]byte, RAMSize))
		if !reflect.DeepEqual(a1, b1) || !reflect.DeepEqual(a2, b2) {
			t.Errorf("storm %d is not the same twice", n)
		}
	}
}

// Ports that end the machine are left alone, in any width.
func TestDeadlyPorts(t *testing.T) {
	for _, c := range []struct {
		port uint32
		want bool
	}{{0x60, false}, {0x61, true}, {0x64, true}, {0x65, false}, {0x502, true}, {0x5fd, true}, {0x601, true}, {0x602, false}, {0x3f8, false}} {
		if got := touches(c.port, deadly[:]); got != c.want {
			t.Errorf("port %#x: %v", c.port, got)
		}
	}
}

func TestProgram(t *testing.T) {
	p := program()
	if len(p) > controlAddr-programAddr || len(Kernel()) > 1<<16 {
		t.Fatalf("%d bytes of program: want less than %d", len(p), controlAddr-programAddr)
	}
	// The table is before the trampoline, and leads into the program.
	table := p[len(p)-len(trampoline())-4*int(kinds):]
	for k := range kinds {
		if at := binary.LittleEndian.Uint32(table[4*k:]); at < programAddr || at >= programAddr+uint32(len(p)) {
			t.Errorf("kind %d is at %#x", k, at)
		}
	}
}
