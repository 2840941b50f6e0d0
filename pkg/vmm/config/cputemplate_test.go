package config

import (
	"encoding/json"
	"reflect"
	"strings"
	"testing"
)

func TestBitmap(t *testing.T) {
	for _, c := range []struct {
		text        string
		mask, value uint32
	}{
		{"0b1", 1, 1},
		{"0b0", 1, 0},
		{"0bx", 0, 0},
		{"0b1_x0_", 5, 4},
		{"101", 7, 5},
		{"0b" + strings.Repeat("x", 31) + "1", 1, 1},
		{"0b1" + strings.Repeat("x", 31), 1 << 31, 1 << 31},
		{"0b" + strings.Repeat("10", 16), 0xffffffff, 0xaaaaaaaa},
	} {
		var b Bitmap[uint32]
		if err := b.UnmarshalText([]byte(c.text)); err != nil || b.Mask != c.mask || b.Value != c.value {
			t.Errorf("%s: %+v, %v; want %#x, %#x", c.text, b, err, c.mask, c.value)
		}
		text, _ := b.MarshalText()
		var again Bitmap[uint32]
		if err := again.UnmarshalText(text); err != nil || again != b || len(text) != 34 {
			t.Errorf("%s becomes %s, and that %+v, %v", c.text, text, again, err)
		}
	}
	for _, text := range []string{"", "0b", "0b_", "0b2", "0bX", "0y1", "b1", "0b 1", "-0b1", "0b" + strings.Repeat("x", 33), "0b" + strings.Repeat("0", 100000)} {
		b := Bitmap[uint32]{Mask: 3, Value: 2}
		if err := b.UnmarshalText([]byte(text)); err == nil || !strings.Contains(err.Error(), "up to 32 of 0, 1 and x") || b.Mask != 3 {
			t.Errorf("%.40q: %+v, %v", text, b, err)
		}
	}
	var wide Bitmap[uint64]
	if err := wide.UnmarshalText([]byte("0b" + strings.Repeat("01", 32))); err != nil || wide.Mask != ^uint64(0) || wide.Value != 0x5555555555555555 {
		t.Errorf("64 bits: %+v, %v", wide, err)
	}
	if got := (Bitmap[uint32]{Mask: 0b0110, Value: 0b0100}).Apply(0b1011); got != 0b1101 {
		t.Errorf("applied: %#b", got)
	}
}

func TestNumber(t *testing.T) {
	for text, want := range map[string]Number{"0x1": 1, "0x80000008": 0x80000008, "0xC0000080": 0xc0000080, "0b11": 3, "26": 26, "0": 0, "0xffffffff": 0xffffffff} {
		var n Number
		if err := n.UnmarshalText([]byte(text)); err != nil || n != want {
			t.Errorf("%s: %d, %v", text, n, err)
		}
	}
	for _, text := range []string{"", "0x", "x", "1a", "0b2", "-1", "+1", " 1", "0x100000000", "0o7"} {
		n := Number(5)
		if err := n.UnmarshalText([]byte(text)); err == nil || n != 5 {
			t.Errorf("%q: %d, %v", text, n, err)
		}
	}
}

func TestKVMCapability(t *testing.T) {
	for text, want := range map[string]KVMCapability{"171": {Number: 171}, "!56": {Number: 56, Remove: true}, "0": {}} {
		var k KVMCapability
		if err := k.UnmarshalText([]byte(text)); err != nil || k != want {
			t.Errorf("%s: %+v, %v", text, k, err)
		}
		if back, _ := k.MarshalText(); string(back) != text {
			t.Errorf("%s becomes %s", text, back)
		}
	}
	for _, text := range []string{"", "!", "!!1", "0x1", "-1", "1!", "4294967296"} {
		if err := new(KVMCapability).UnmarshalText([]byte(text)); err == nil {
			t.Errorf("%q was taken", text)
		}
	}
}

// A template that is shown is one that can be given.
func TestCPUConfigJSON(t *testing.T) {
	want := valid().CPUConfig
	text, err := json.Marshal(want)
	if err != nil {
		t.Fatal(err)
	}
	var got CPUConfig
	if err := json.Unmarshal(text, &got); err != nil || !reflect.DeepEqual(&got, want) {
		t.Errorf("%s becomes %+v, %v", text, got, err)
	}
	if s := string(text); !strings.Contains(s, `"leaf":"0x7"`) || !strings.Contains(s, `"!56"`) || !strings.Contains(s, `xxxx01x"`) {
		t.Errorf("written as %s", s)
	}
}
