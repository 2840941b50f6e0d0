package boot

import (
	"encoding/binary"
	"fmt"

	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/memory"
)

// ELF-64 constants (System V ABI, gABI chapter 4 and 5).
const (
	elfMagic      = "\x7fELF"
	elfHeaderSize = 64
	elfPhentsize  = 56
	elfClass64    = 2
	elfLittle     = 1
	elfX86_64     = 62
	elfPTLoad     = 1
	elfPTNote     = 4

	// maxSegments and maxNotes bound what a kernel file can make the loader do; Linux has about five segments and less than
	// a kilobyte of notes.
	maxSegments = 64
	maxNotes    = 64 << 10

	noteName  = "Xen\x00"
	notePhys  = 18 // XEN_ELFNOTE_PHYS32_ENTRY
	noteAlign = 4
)

// elfKernel is an ELF kernel in guest RAM.
type elfKernel struct {
	// entry is the PVH entry point, end the address behind the last segment; both guest-physical.
	entry, end uint64
}

// loadELF reads the PT_LOAD segments to their physical addresses and finds the PVH note.
func loadELF(mem *memory.Memory, f File) (elfKernel, error) {
	var h [elfHeaderSize]byte
	if n, err := f.ReadAt(h[:], 0); n < len(h) {
		return elfKernel{}, fmt.Errorf("%w: ELF header: %w", ErrKernel, err)
	}
	le := binary.LittleEndian
	if h[4] != elfClass64 || h[5] != elfLittle || le.Uint16(h[18:]) != elfX86_64 {
		return elfKernel{}, fmt.Errorf("%w: ELF class %d, data %d, machine %d: want x86-64", ErrKernel, h[4], h[5], le.Uint16(h[18:]))
	}
	phoff, phentsize, phnum := le.Uint64(h[32:]), le.Uint16(h[54:]), le.Uint16(h[56:])
	if phentsize != elfPhentsize || phnum == 0 || phnum > maxSegments {
		return elfKernel{}, fmt.Errorf("%w: %d program headers of %d bytes: want 1 to %d of %d", ErrKernel, phnum, phentsize, maxSegments, elfPhentsize)
	}
	size := uint64(phnum) * elfPhentsize
	if phoff > f.Size || size > f.Size-phoff {
		return elfKernel{}, fmt.Errorf("%w: program headers at %d beyond the file's end at %d", ErrKernel, phoff, f.Size)
	}
	ph := make([]byte, size)
	if n, err := f.ReadAt(ph, int64(phoff)); n < len(ph) {
		return elfKernel{}, fmt.Errorf("%w: program headers: %w", ErrKernel, err)
	}
	var k elfKernel
	found := false
	for ; len(ph) > 0; ph = ph[elfPhentsize:] {
		off, paddr, filesz, memsz := le.Uint64(ph[8:]), le.Uint64(ph[24:]), le.Uint64(ph[32:]), le.Uint64(ph[40:])
		switch le.Uint32(ph) {
		case elfPTLoad:
			if memsz == 0 {
				continue
			}
			if filesz > memsz || paddr < kernelAddr {
				return elfKernel{}, fmt.Errorf("%w: segment of %d bytes in the file and %d in memory at %#x: want it at %#x or above", ErrKernel, filesz, memsz, paddr, uint64(kernelAddr))
			}
			if paddr > memory.GapStart || memsz > memory.GapStart-paddr {
				return elfKernel{}, fmt.Errorf("%w: segment of %d bytes at %#x: want it to end at %#x or below, where any guest's RAM has a hole", ErrKernel, memsz, paddr, uint64(memory.GapStart))
			}
			if paddr+memsz > lowRegion(mem) {
				return elfKernel{}, fmt.Errorf("%w: kernel segment of %d bytes at %#x, RAM ends at %#x", ErrNoRoom, memsz, paddr, lowRegion(mem))
			}
			if err := f.readInto(mem, paddr, off, filesz); err != nil {
				return elfKernel{}, fmt.Errorf("%w: segment at %#x: %w", ErrKernel, paddr, err)
			}
			k.end = max(k.end, paddr+memsz)
		case elfPTNote:
			if off > f.Size || filesz > f.Size-off || filesz > maxNotes {
				return elfKernel{}, fmt.Errorf("%w: notes of %d bytes at %d: want at most %d, inside the file", ErrKernel, filesz, off, maxNotes)
			}
			notes := make([]byte, filesz)
			if n, err := f.ReadAt(notes, int64(off)); n < len(notes) {
				return elfKernel{}, fmt.Errorf("%w: notes: %w", ErrKernel, err)
			}
			if e, ok := pvhNote(notes); ok {
				k.entry, found = e, true
			}
		}
	}
	if k.end == 0 {
		return elfKernel{}, fmt.Errorf("%w: ELF file without a loadable segment", ErrKernel)
	}
	if !found {
		return elfKernel{}, fmt.Errorf("%w: ELF file without a PVH entry point (CONFIG_PVH)", ErrKernel)
	}
	return k, nil
}

// pvhNote looks for XEN_ELFNOTE_PHYS32_ENTRY, whose descriptor is an address of four or eight bytes.
func pvhNote(notes []byte) (uint64, bool) {
	le := binary.LittleEndian
	for len(notes) >= 12 {
		namesz, descsz, kind := uint64(le.Uint32(notes)), uint64(le.Uint32(notes[4:])), le.Uint32(notes[8:])
		desc := 12 + alignUp(namesz, noteAlign)
		next := desc + alignUp(descsz, noteAlign)
		if desc+descsz > uint64(len(notes)) {
			return 0, false
		}
		if kind == notePhys && string(notes[12:12+namesz]) == noteName {
			switch descsz {
			case 4:
				return uint64(le.Uint32(notes[desc:])), true
			case 8:
				return le.Uint64(notes[desc:]), true
			}
		}
		notes = notes[min(next, uint64(len(notes))):]
	}
	return 0, false
}
