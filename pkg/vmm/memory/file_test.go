package memory

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// each runs a test with RAM of each kind that this host has.
func each(t *testing.T, size uint64, test func(*testing.T, *Memory)) {
	for _, kind := range []struct {
		name string
		open func(uint64) (*os.File, error)
		huge bool
	}{
		{"small", func(size uint64) (*os.File, error) { return openMemfd(size, 0) }, false},
		{"huge", openTmpfs, true},
	} {
		t.Run(kind.name, func(t *testing.T) {
			f, err := kind.open(size)
			if err != nil && kind.huge && (errors.Is(err, unix.EPERM) || errors.Is(err, unix.ENOSYS) || errors.Is(err, unix.EINVAL)) {
				t.Skipf("this host has no such files for us: %v", err)
			}
			if err != nil {
				t.Fatal(err)
			}
			m := &Memory{file: f, huge: kind.huge}
			if err := m.build(size, TransparentPages); err != nil {
				t.Fatal(err)
			}
			defer m.Close()
			test(t, m)
		})
	}
}

// TestHugePages looks at what the host says of guest RAM that has been touched in two places.
func TestHugePages(t *testing.T) {
	each(t, 16<<20, func(t *testing.T, m *Memory) {
		mem := m.Regions()[0].Mem
		mem[5<<20], mem[11<<20] = 1, 2
		var st unix.Stat_t
		if err := unix.Fstat(int(m.file.Fd()), &st); err != nil {
			t.Fatal(err)
		}
		want := int64(2 * PageSize)
		if m.huge {
			want = 2 * HugePageSize
		}
		got := st.Blocks * 512
		if m.huge && got < want {
			t.Skipf("the host had no huge pages left: %d bytes are in use", got)
		}
		if got != want {
			t.Errorf("two touched bytes take %d bytes of the host's, want %d", got, want)
		}
	})
}

// TestMapping: guest RAM has its name in the process's mappings, is not dumped, and is found nowhere in the file system.
func TestMapping(t *testing.T) {
	each(t, 4<<20, func(t *testing.T, m *Memory) {
		link, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", m.file.Fd()))
		if err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(link, name) || !strings.HasSuffix(link, "(deleted)") {
			t.Errorf("it is %q, want %s (deleted)", link, name)
		}
		mounts, err := os.ReadFile("/proc/self/mountinfo")
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(string(mounts), "huge=within_size") {
			t.Errorf("a mount of it is seen:\n%s", mounts)
		}
	})
}

func TestTooFewReserved(t *testing.T) {
	const size = MaxSize &^ (HugePageSize - 1)
	if m, err := New(size, HugeTLBPages); !errors.Is(err, unix.ENOMEM) {
		t.Errorf("%v, want ENOMEM", err)
		if err == nil {
			m.Close()
		}
	}
}
