package memory

import (
	"os"
	"strings"
	"testing"
)

// TestAttach: what one mapping writes, the other reads, in both pieces; and areas that would not do are refused.
func TestAttach(t *testing.T) {
	each(t, GapStart+HugePageSize, testAttach)
}

func testAttach(t *testing.T, m *Memory) {
	if !m.huge {
		if err := m.File().Truncate(PageSize); !os.IsPermission(err) {
			t.Errorf("guest RAM can be shrunk: %v", err)
		}
	}
	var areas []Area
	for _, r := range m.Regions() {
		areas = append(areas, Area{Addr: r.Addr, Size: uint64(len(r.Mem)), Offset: r.Offset, File: m.File()})
	}
	other, err := Attach(areas)
	if err != nil {
		t.Fatal(err)
	}
	if other.Size() != m.Size() || other.File() != nil {
		t.Errorf("%d bytes, want %d", other.Size(), m.Size())
	}
	for _, addr := range []uint64{0, GapStart - 8, GapEnd, GapEnd + 16*PageSize - 8} {
		a, err := m.Slice(addr, 8)
		if err != nil {
			t.Fatal(err)
		}
		copy(a, "written!")
		if b, err := other.Slice(addr, 8); err != nil || string(b) != "written!" {
			t.Errorf("%#x: %q, %v", addr, b, err)
		}
	}
	if err := other.Close(); err != nil {
		t.Error(err)
	}
	f := m.File()
	for name, areas := range map[string][]Area{
		"multiples of 4096":  {{Size: 10, File: f}},
		"area 0 of 0 bytes":  {{File: f}},
		"area 1 of 4096":     {{Size: PageSize, File: f}, {Addr: 1<<64 - PageSize, Size: PageSize, File: f, Offset: 1}},
		"within the file":    {{Size: PageSize, Offset: m.Size(), File: f}},
		"area 0 of 8192":     {{Addr: 1<<64 - PageSize, Size: 2 * PageSize, File: f}},
		"areas 0 and 1 over": {{Size: 3 * PageSize, File: f}, {Addr: 2 * PageSize, Size: PageSize, File: f}},
	} {
		if m, err := Attach(areas); err == nil || m != nil || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
