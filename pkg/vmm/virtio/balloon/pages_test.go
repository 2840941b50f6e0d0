package balloon

import (
	"encoding/binary"
	"errors"
	"slices"
	"testing"

	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/virtio/queue"
)

type stopped struct{}

func (stopped) Stopped() bool { return true }

// Neighbours go back in one call, as each call is one of the system's.
func TestRuns(t *testing.T) {
	type run struct{ page, n uint64 }
	var many []uint32
	for i := range uint32(2*listSize + 1) {
		many = append(many, i)
	}
	for _, tt := range []struct {
		name  string
		pages []uint32
		want  []run
	}{
		{"none", nil, nil},
		{"neighbours", []uint32{5, 3, 4, 4, 9}, []run{{3, 3}, {9, 1}}},
		{"the highest", []uint32{1<<32 - 1, 1<<32 - 2}, []run{{1<<32 - 2, 2}}},
		{"batches", many, []run{{0, listSize}, {listSize, listSize}, {2 * listSize, 1}}},
	} {
		var raw []byte
		for _, p := range tt.pages {
			raw = binary.LittleEndian.AppendUint32(raw, p)
		}
		var got []run
		give := func(addr, n uint64) { got = append(got, run{addr / pageSize, n / pageSize}) }
		var l pageList
		if err := l.discard([][]byte{raw}, running{}, give); err != nil || !slices.Equal(got, tt.want) {
			t.Errorf("%s: %v, %v, want %v", tt.name, got, err, tt.want)
		}
		got = nil
		if err := l.discard([][]byte{raw}, stopped{}, give); !errors.Is(err, queue.ErrStopped) || got != nil {
			t.Errorf("%s: %v after the end, %v", tt.name, got, err)
		}
	}
}

// Large buffers go back piece by piece, until the device is reset.
func TestPieces(t *testing.T) {
	const n = 2*maxPiece + 5
	buf := make([]byte, n) // never touched
	var got []int
	give := func(p []byte) { got = append(got, len(p)) }
	if err := eachPiece([][]byte{nil, buf, buf[:1]}, running{}, give); err != nil || !slices.Equal(got, []int{maxPiece, maxPiece, 5, 1}) {
		t.Errorf("%v, %v", got, err)
	}
	got = nil
	if err := eachPiece([][]byte{buf}, stopped{}, give); !errors.Is(err, queue.ErrStopped) || got != nil {
		t.Errorf("%v, %v after the end", got, err)
	}
}
