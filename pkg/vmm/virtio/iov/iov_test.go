package iov

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

func TestVec(t *testing.T) {
	mem, err := unix.Mmap(-1, 0, 4096, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Munmap(mem)
	copy(mem, "abcdefghij")
	bufs := [][]byte{mem[0:3], mem[3:4], mem[4:10]}
	for _, tc := range []struct {
		skip, max, advance int
		want               string
	}{
		{0, 100, 0, "abcdefghij"},
		{0, 4, 0, "abcd"},
		{3, 100, 0, "defghij"},
		{2, 3, 0, "cde"},
		{0, 0, 0, ""},
		{10, 1, 0, ""},
		{0, 100, 2, "cdefghij"},
		{0, 100, 3, "defghij"},
		{1, 8, 5, "ghi"},
		{0, 100, 10, ""},
	} {
		var v Vec
		v.Set(bufs, tc.skip, tc.max)
		v.Advance(tc.advance)
		if v.Len() != len(tc.want) {
			t.Errorf("%+v: length %d", tc, v.Len())
		}
		f, err := os.Create(filepath.Join(t.TempDir(), "f"))
		if err != nil {
			t.Fatal(err)
		}
		if n, err := v.Pwritev(int(f.Fd()), 2); err != nil || n != len(tc.want) {
			t.Errorf("%+v: wrote %d, %v", tc, n, err)
		}
		got, _ := os.ReadFile(f.Name())
		if !bytes.Equal(bytes.TrimLeft(got, "\x00"), []byte(tc.want)) {
			t.Errorf("%+v: got %q", tc, got)
		}
		f.Close()
	}
	f, err := os.Create(filepath.Join(t.TempDir(), "f"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var v Vec
	for range 2 {
		v.Set(bufs, 0, 100)
		if n, err := v.Pwritev2(int(f.Fd()), 0, unix.RWF_APPEND); n != 10 || err != nil {
			t.Fatalf("append: %d bytes, %v", n, err)
		}
	}
	if got, _ := os.ReadFile(f.Name()); string(got) != "abcdefghijabcdefghij" {
		t.Errorf("appended twice: %q", got)
	}
	many := make([][]byte, Max+1)
	for i := range many {
		many[i] = mem[:1]
	}
	if v.Set(many, 0, 4096); v.Len() != Max {
		t.Errorf("%d buffers, want %d", v.Len(), Max)
	}
	if n := v.Append(many, 0, 1); n != 0 {
		t.Errorf("%d more", n)
	}
}
