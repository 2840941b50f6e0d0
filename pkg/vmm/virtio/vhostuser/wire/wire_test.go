package wire

import (
	"bytes"
	"errors"
	"reflect"
	"testing"
)

func TestRoundTrips(t *testing.T) {
	m := Message(GetConfig, FlagReply, []byte("payload"))
	h, err := ParseHeader((*[HeaderSize]byte)(m))
	if want := (Header{GetConfig, FlagReply | 1, 7}); err != nil || h != want || string(m[HeaderSize:]) != "payload" {
		t.Errorf("%+v, %v, want %+v", h, err, want)
	}
	if v, err := ParseU64(U64(1<<63 | 5)); err != nil || v != 1<<63|5 {
		t.Errorf("%d, %v", v, err)
	}
	state := VringState{3, 1 << 31}
	if v, err := ParseVringState(state.Bytes()); err != nil || v != state {
		t.Errorf("%+v, %v", v, err)
	}
	addr := VringAddr{1, 1 << 40, 2 << 40, 3 << 40}
	if v, err := ParseVringAddr(addr.Bytes()); err != nil || v != addr {
		t.Errorf("%+v, %v", v, err)
	}
	regions := []Region{{0, 3 << 30, 1 << 40, 0}, {4 << 30, 1 << 30, 5 << 40, 3 << 30}}
	for _, padding := range []int{0, 6 * regionSize} {
		if v, err := ParseMemTable(append(MemTable(regions), make([]byte, padding)...)); err != nil || !reflect.DeepEqual(v, regions) {
			t.Errorf("%+v, %v", v, err)
		}
	}
	if off, space, err := ParseConfig(Config(9, []byte("space"))); err != nil || off != 9 || !bytes.Equal(space, []byte("space")) {
		t.Errorf("%d, %q, %v", off, space, err)
	}
}

func TestMalformed(t *testing.T) {
	parse := func(b []byte) []error {
		_, e1 := ParseU64(b)
		_, e2 := ParseVringState(b)
		_, e3 := ParseVringAddr(b)
		_, e4 := ParseMemTable(b)
		_, _, e5 := ParseConfig(b)
		return []error{e1, e2, e3, e4, e5}
	}
	for _, b := range [][]byte{nil, make([]byte, 7), bytes.Repeat([]byte{0xff}, 41), bytes.Repeat([]byte{0xff}, MaxPayload)} {
		for i, err := range parse(b) {
			if !errors.Is(err, ErrMalformed) {
				t.Errorf("%d bytes, parser %d: %v", len(b), i, err)
			}
		}
	}
	for _, b := range [][]byte{MemTable(make([]Region, MaxRegions+1)), MemTable(make([]Region, 2))[:70], Config(0, make([]byte, MaxConfig+1)), Config(0, make([]byte, 5))[:16]} {
		_, e1 := ParseMemTable(b)
		_, _, e2 := ParseConfig(b)
		if e1 == nil && e2 == nil {
			t.Errorf("% x is nothing", b)
		}
	}
}
