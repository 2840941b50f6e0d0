package legacy

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// TestLog prints more than fits: the file is bounded, and ends with the guest's newest output, without a gap.
func TestLog(t *testing.T) {
	for _, tc := range []struct {
		name     string
		max      int64
		before   int // bytes that the file holds already
		lines    int
		perWrite int
	}{
		{"fits", 1 << 20, 0, 100, 1},
		{"fills", 4096, 0, 1000, 1},
		{"fills exactly", 900, 0, 100, 10},
		{"large", 300 << 10, 0, 100_000, 7},
		{"one write is too large", 4096, 100, 5000, 5000},
		{"file is full", 4096, 4096, 10, 1},
		{"file is too large", 4096, 1 << 20, 1000, 3},
		{"tiny", 30, 5, 100, 1},
		{"nearly nothing", 1, 0, 10, 1},
	} {
		t.Run(tc.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "log")
			all := bytes.Repeat([]byte("old line\n"), tc.before/9+1)[:tc.before]
			if err := os.WriteFile(path, all, 0o600); err != nil {
				t.Fatal(err)
			}
			l, err := OpenLog(path, tc.max)
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close()
			var p []byte
			for i := range tc.lines {
				p = fmt.Appendf(p, "%08d\n", i)
				if (i+1)%tc.perWrite != 0 && i != tc.lines-1 {
					continue
				}
				if n, err := l.Write(p); n != len(p) || err != nil {
					t.Fatal(n, err)
				}
				if fi, err := os.Stat(path); err != nil || fi.Size() > tc.max {
					t.Fatalf("line %d: the file has %d bytes, %v", i, fi.Size(), err)
				}
				all, p = append(all, p...), p[:0]
			}
			got, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if int64(len(all)) <= tc.max {
				if !bytes.Equal(got, all) {
					t.Errorf("file %.40q", got)
				}
				return
			}
			note := dropped[:min(int64(len(dropped)), tc.max/2)]
			rest, ok := bytes.CutPrefix(got, []byte(note))
			if !ok || !bytes.HasSuffix(all, rest) {
				t.Errorf("file %.60q does not end the output", got)
			}
			if int64(len(rest)) < tc.max/2-int64(len(note)) {
				t.Errorf("only %d bytes of %d kept", len(rest), tc.max)
			}
		})
	}
}

// A FIFO has no bound, nor a place to write at.
func TestLogPipe(t *testing.T) {
	path := filepath.Join(t.TempDir(), "fifo")
	if err := unix.Mkfifo(path, 0o600); err != nil {
		t.Fatal(err)
	}
	l, err := OpenLog(path, 10)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	want := bytes.Repeat([]byte("x"), 1000)
	if _, err := l.Write(want); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, len(want))
	if n, err := l.f.Read(got); n != len(want) || err != nil {
		t.Errorf("%d bytes, %v", n, err)
	}
}

func TestLogErrors(t *testing.T) {
	if _, err := OpenLog(filepath.Join(t.TempDir(), "no", "log"), 10); !os.IsNotExist(err) {
		t.Error(err)
	}
	if _, err := OpenLog(t.TempDir(), 10); err == nil {
		t.Error("a folder was opened")
	}
}
