package memory

import (
	"errors"
	"math"
	"testing"

	"golang.org/x/sys/unix"
)

// small makes guest RAM of small pages, whatever the host has.
func small(t *testing.T, size uint64) *Memory {
	t.Helper()
	f, err := openMemfd(size, 0)
	if err != nil {
		t.Fatal(err)
	}
	m := &Memory{file: f}
	if err := m.build(size, HostPages); err != nil {
		t.Fatal(err)
	}
	return m
}

// allocated is how much memory guest RAM takes of the host, in bytes.
func allocated(t *testing.T, m *Memory) int64 {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Fstat(int(m.file.Fd()), &st); err != nil {
		t.Fatal(err)
	}
	return st.Blocks * 512
}

func TestDiscard(t *testing.T) {
	const size = GapStart + 1<<20 // a region on either side of the gap
	for _, c := range []struct {
		name    string
		addr, n uint64
		from    uint64 // the pages that go
		pages   int64
		want    error
	}{
		{"a page", 0x10000, PageSize, 0x10000, 1, nil},
		{"pages", 0x10000, 5 * PageSize, 0x10000, 5, nil},
		{"parts stay", 0x10001, 3*PageSize - 2, 0x11000, 1, nil},
		{"less than a page", 0x10001, PageSize, 0, 0, nil},
		{"nothing", 0x10000, 0, 0, 0, nil},
		{"the first", 0, PageSize, 0, 1, nil},
		{"before the gap", GapStart - PageSize, PageSize, GapStart - PageSize, 1, nil},
		{"into the gap", GapStart - PageSize, 2 * PageSize, 0, 0, ErrRange},
		{"in the gap", GapStart + PageSize, PageSize, 0, 0, ErrRange},
		{"after the gap", GapEnd, PageSize, GapEnd, 1, nil},
		{"the last", GapEnd + 1<<20 - PageSize, PageSize, GapEnd + 1<<20 - PageSize, 1, nil},
		{"behind the last", GapEnd + 1<<20, PageSize, 0, 0, ErrRange},
		{"too many", GapEnd, 1<<20 + 1, 0, 0, ErrRange},
		{"overflow", PageSize, math.MaxUint64, 0, 0, ErrRange},
		{"the last address", math.MaxUint64, 1, 0, 0, ErrRange},
	} {
		for _, bySlice := range []bool{false, true} {
			m := small(t, size)
			touched := 0
			for _, at := range []uint64{0, 0x10000, GapStart - 8*PageSize, GapEnd, GapEnd + 1<<20 - 8*PageSize} {
				p, err := m.Slice(at, 8*PageSize)
				if err != nil {
					t.Fatal(err)
				}
				for i := range p {
					p[i] = 0xa5
				}
				touched += len(p)
			}
			before := allocated(t, m)
			if before != int64(touched) {
				t.Fatalf("%d bytes are allocated, %d were touched", before, touched)
			}
			var err error
			if bySlice {
				var p []byte
				if p, err = m.Slice(c.addr, c.n); err == nil && c.n > 0 {
					err = m.DiscardSlice(p)
				}
			} else {
				err = m.Discard(c.addr, c.n)
			}
			if !errors.Is(err, c.want) {
				t.Errorf("%s: %v, want %v", c.name, err, c.want)
			}
			if gone := (before - allocated(t, m)) / PageSize; gone != c.pages {
				t.Errorf("%s: %d pages went, want %d", c.name, gone, c.pages)
			}
			if c.pages > 0 {
				p, err := m.Slice(c.from, uint64(c.pages)*PageSize)
				if err != nil {
					t.Fatal(err)
				}
				for i := range p {
					if p[i] != 0 {
						t.Fatalf("%s: byte %d is %#x after its page went", c.name, i, p[i])
					}
				}
				p[0] = 1 // the page comes back
			}
			if err := m.Close(); err != nil {
				t.Error(err)
			}
		}
	}
}

// A slice that is not guest RAM's, or reaches beyond it, is refused.
func TestDiscardSliceOfOthers(t *testing.T) {
	m, err := New(1<<20, HostPages)
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	for name, p := range map[string][]byte{"empty": {}, "nil": nil, "the heap's": make([]byte, 2*PageSize), "too large": make([]byte, 2<<20)} {
		if err := m.DiscardSlice(p); !errors.Is(err, ErrRange) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// A huge page goes back whole; of one that goes in part, only the part is gone.
func TestDiscardHugePages(t *testing.T) {
	f, err := openTmpfs(8 * HugePageSize)
	if err != nil {
		t.Skip("needs a tmpfs of its own:", err)
	}
	m := &Memory{file: f, huge: true}
	if err := m.build(8*HugePageSize, TransparentPages); err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	ram := m.Regions()[0].Mem
	for i := range ram {
		ram[i] = 0xa5
	}
	before := allocated(t, m)
	if err := m.Discard(2*HugePageSize, 3*HugePageSize); err != nil {
		t.Fatal(err)
	}
	if gone := before - allocated(t, m); gone != 3*HugePageSize {
		t.Errorf("%d bytes went back, want %d", gone, 3*HugePageSize)
	}
	if err := m.Discard(PageSize, PageSize); err != nil {
		t.Fatal(err)
	}
	for i, want := range map[int]byte{0: 0xa5, PageSize - 1: 0xa5, PageSize: 0, 2*PageSize - 1: 0, 2 * PageSize: 0xa5, 2*HugePageSize - 1: 0xa5, 2 * HugePageSize: 0, 5*HugePageSize - 1: 0, 5 * HugePageSize: 0xa5} {
		if ram[i] != want {
			t.Errorf("byte %#x is %#x, want %#x", i, ram[i], want)
		}
	}
}

func TestDiscardDoesNotAllocate(t *testing.T) {
	m, err := New(1<<20, HostPages)
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	p := m.Regions()[0].Mem[PageSize : 3*PageSize]
	if n := testing.AllocsPerRun(100, func() {
		p[0] = 1
		if m.Discard(PageSize, 2*PageSize) != nil || m.DiscardSlice(p) != nil || m.Discard(1<<20, 1) != ErrRange {
			t.Fatal("not discarded")
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}
