package main

import (
	"bytes"
	"debug/elf"
	"os"
	"path/filepath"
	"testing"
)

// pages makes n pages of a byte.
func pages(n int, b byte) []byte { return bytes.Repeat([]byte{b}, n*pageSize) }

func load(addr, memory uint64, data ...[]byte) segment {
	s := segment{data: bytes.Join(data, nil)}
	s.ProgHeader = elf.ProgHeader{Type: elf.PT_LOAD, Paddr: addr, Vaddr: addr | 1<<63, Filesz: uint64(len(s.data)), Memsz: memory}
	return s
}

// image is guest RAM from 1 MiB on, as a loader fills it.
func image(t *testing.T, segments []segment) (ram []byte, end uint64) {
	t.Helper()
	const base = 1 << 20
	ram = make([]byte, 4<<20)
	for _, s := range segments {
		if s.Type != elf.PT_LOAD {
			continue
		}
		if s.Filesz != uint64(len(s.data)) || s.Memsz < s.Filesz || s.Vaddr != s.Paddr|1<<63 {
			t.Errorf("segment %+v with %d bytes", s.ProgHeader, len(s.data))
		}
		copy(ram[s.Paddr-base:], s.data)
		end = max(end, s.Paddr+s.Memsz)
	}
	return ram, end
}

func TestSplit(t *testing.T) {
	code := layout{{SectionHeader: elf.SectionHeader{Flags: elf.SHF_ALLOC | elf.SHF_EXECINSTR, Addr: 1<<20 | 1<<63, Size: 4 << 20}}}
	data := layout{code[0], {SectionHeader: elf.SectionHeader{Flags: elf.SHF_ALLOC, Addr: (1<<20 + 2*pageSize) | 1<<63, Size: 30 * pageSize}}}
	for name, c := range map[string]struct {
		in       segment
		want     int // segments
		sections layout
	}{
		"no padding":       {load(1<<20, 3*pageSize, pages(3, 1)), 1, code},
		"short padding":    {load(1<<20, 20*pageSize, pages(2, 1), pages(15, 0), pages(2, 1)), 1, code},
		"zeros":            {load(1<<20, 40*pageSize, pages(2, 1), pages(16, 0), pages(2, 1)), 2, code},
		"traps":            {load(1<<20, 40*pageSize, pages(2, 1), pages(30, 0xcc), pages(2, 1)), 2, code},
		"both":             {load(1<<20, 40*pageSize, pages(2, 1), pages(8, 0xcc), pages(8, 0), pages(2, 1)), 2, code},
		"at the beginning": {load(1<<20, 40*pageSize, pages(20, 0), pages(2, 1)), 1, code},
		"at the end":       {load(1<<20, 40*pageSize, pages(2, 1), pages(1, 0)), 1, code},
		"a part of a page": {load(1<<20+100, 40*pageSize, pages(2, 1), pages(20, 0), []byte{1, 2, 3}), 2, code},
		"nothing else":     {load(1<<20, 40*pageSize, pages(20, 0)), 1, code},
		"traps in data":    {load(1<<20, 40*pageSize, pages(2, 1), pages(30, 0xcc), pages(2, 1)), 1, data},
		"traps, unknown":   {load(1<<20, 40*pageSize, pages(2, 1), pages(30, 0xcc), pages(2, 1)), 1, nil},
		"only in memory":   {load(1<<20, 40*pageSize), 1, code},
	} {
		t.Run(name, func(t *testing.T) {
			pieces := split(c.in, c.sections)
			if len(pieces) != c.want {
				t.Errorf("%d segments, want %d", len(pieces), c.want)
			}
			got, end := image(t, pieces)
			want, wantEnd := image(t, []segment{c.in})
			for i := range want {
				if want[i] == 0xcc && c.want > 1 {
					want[i], got[i] = 0, 0 // padding, which nobody looks at
				}
			}
			if !bytes.Equal(got, want) || end != wantEnd {
				t.Errorf("guest RAM differs, or ends at %#x and not at %#x", end, wantEnd)
			}
		})
	}
}

// A compacted file is a valid one, with the same entry, notes and memory.
func TestRun(t *testing.T) {
	note := segment{data: []byte("a note")}
	note.ProgHeader = elf.ProgHeader{Type: elf.PT_NOTE, Paddr: 1<<20 + 48, Filesz: 6, Memsz: 6, Align: 4}
	in := kernel{
		header:   elf.FileHeader{Type: elf.ET_EXEC, Machine: elf.EM_X86_64, Entry: 1 << 20},
		segments: []segment{load(1<<20, 100*pageSize, pages(1, 1), pages(50, 0), pages(1, 2), pages(3, 0)), note},
	}
	dir := t.TempDir()
	big, small := filepath.Join(dir, "big"), filepath.Join(dir, "small")
	if err := os.WriteFile(big, in.encode(), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := run(big, small); err != nil {
		t.Fatal(err)
	}
	f, err := elf.Open(small)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if f.Entry != 1<<20 || f.Machine != elf.EM_X86_64 || len(f.Progs) != 3 {
		t.Errorf("%+v with %d segments, want 3", f.FileHeader, len(f.Progs))
	}
	for _, p := range f.Progs {
		data := make([]byte, p.Filesz)
		if _, err := p.ReadAt(data, 0); err != nil {
			t.Fatal(err)
		}
		if p.Type == elf.PT_NOTE && (string(data) != "a note" || p.Align != 4 || p.Off%4 != 0) || p.Type == elf.PT_LOAD && (p.Filesz != pageSize || p.Off%pageSize != 0) {
			t.Errorf("%+v: %.20q", p.ProgHeader, data)
		}
	}
	if st, err := os.Stat(small); err != nil || st.Size() > 4*pageSize {
		t.Errorf("%v, %v: want at most four pages", st.Size(), err)
	}
	if err := run(small+"?", small); err == nil {
		t.Error("no error without a kernel")
	}
}
