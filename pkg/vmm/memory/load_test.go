package memory

import (
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"
)

func TestLoadFile(t *testing.T) {
	each(t, 8<<20, testLoadFile)
}

func testLoadFile(t *testing.T, m *Memory) {
	data := make([]byte, 300_000)
	for i := range data {
		data[i] = byte(i * 7)
	}
	path := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for _, c := range []struct {
		addr, off, n uint64
		want         error
	}{
		{0x100000, 0, 300_000, nil},
		{0x200001, 17, 299_983, nil},
		{0x300fff, 4095, 2, nil},
		{8<<20 - 10, 0, 10, nil},
		{8 << 20, 0, 0, nil},
		{8<<20 - 10, 0, 11, ErrRange},
		{0x100000, 299_999, 2, io.ErrUnexpectedEOF},
		{0x100000, 1 << 40, 2, io.ErrUnexpectedEOF},
	} {
		if err := m.LoadFile(c.addr, f, c.off, c.n); !errors.Is(err, c.want) {
			t.Errorf("%+v: %v", c, err)
			continue
		}
		if c.want != nil {
			continue
		}
		if p, err := m.Slice(c.addr, c.n); err != nil || !bytes.Equal(p, data[c.off:c.off+c.n]) {
			t.Errorf("%+v: not the file's bytes (%v)", c, err)
		}
	}
	if p, _ := m.Slice(0x100000-1, 1); p[0] != 0 {
		t.Error("a byte before the range was written")
	}
}
