// Command compact makes a kernel cheaper to load: of an ELF kernel it keeps what a loader needs, without the padding.
//
//	compact IN OUT
//
// A linker aligns a kernel's text, read-only data and data to 2 MiB, for page tables, and fills what is between with zeros or, in code,
// with 0xcc. A good part of our kernel is that. Whole pages of it are left out of OUT's segments, so that nobody copies them into a guest
// and no host gives memory for them: guest RAM is zero at boot, and code that is never executed need not trap if it were.
// Section headers, which say where code is, and symbols are left out, too.
package main

import (
	"debug/elf"
	"errors"
	"fmt"
	"os"
)

func main() {
	if len(os.Args) != 3 {
		fmt.Fprintln(os.Stderr, "compact: want two arguments, the kernel and where to put the new one")
		os.Exit(2)
	}
	if err := run(os.Args[1], os.Args[2]); err != nil {
		fmt.Fprintln(os.Stderr, "compact:", err)
		os.Exit(1)
	}
}

func run(in, out string) error {
	f, err := elf.Open(in)
	if err != nil {
		return err
	}
	defer f.Close()
	if f.Class != elf.ELFCLASS64 || f.ByteOrder.String() != "LittleEndian" {
		return fmt.Errorf("%s: want a 64-bit, little-endian ELF file", in)
	}
	k := kernel{header: f.FileHeader}
	sections := layout(f.Sections)
	var notes []segment
	for _, p := range f.Progs {
		if p.Type != elf.PT_LOAD && p.Type != elf.PT_NOTE {
			continue
		}
		data := make([]byte, p.Filesz)
		if _, err := p.ReadAt(data, 0); err != nil {
			return fmt.Errorf("%s: segment at %#x: %w", in, p.Paddr, err)
		}
		if p.Type == elf.PT_NOTE {
			notes = append(notes, segment{p.ProgHeader, data})
			continue
		}
		k.segments = append(k.segments, split(segment{p.ProgHeader, data}, sections)...)
	}
	if len(k.segments) == 0 {
		return errors.New("no segment to load")
	}
	k.segments = append(notes, k.segments...)
	if len(k.segments) > maxSegments {
		return fmt.Errorf("%d segments: want at most %d, which is what a VMM takes", len(k.segments), maxSegments)
	}
	return os.WriteFile(out, k.encode(), 0o644)
}
