package main

import (
	"debug/elf"
	"encoding/binary"
)

const (
	pageSize = 4096
	// minGap is the shortest padding that is worth a segment of its own, in bytes.
	minGap = 16 * pageSize
	// maxSegments is what pkg/vmm/boot accepts.
	maxSegments = 64
	headerSize  = 64
	entrySize   = 56
)

// segment is a program header with what it loads.
type segment struct {
	elf.ProgHeader
	data []byte
}

// split cuts a segment at its padding. The last piece goes on in memory to where the segment ended.
func split(s segment, l layout) []segment {
	end := s.Paddr + s.Memsz
	var pieces []segment
	for from := 0; from < len(s.data); {
		// Pages are those of memory, not of the file.
		used := usedUntil(s, l, from)
		if used > from {
			piece := s
			piece.data = s.data[from:used]
			piece.Vaddr, piece.Paddr = s.Vaddr+uint64(from), s.Paddr+uint64(from)
			piece.Filesz, piece.Memsz = uint64(used-from), uint64(used-from)
			pieces = append(pieces, piece)
		}
		from = max(used, nextUsed(s, l, used))
	}
	if len(pieces) == 0 { // nothing but zeros: still a place in memory
		s.data, s.Filesz = nil, 0
		return []segment{s}
	}
	last := &pieces[len(pieces)-1]
	last.Memsz = end - last.Paddr
	return pieces
}

// usedUntil is where, from an offset on, a gap of at least minGap begins, or the end.
func usedUntil(s segment, l layout, from int) int {
	for at := from; at < len(s.data); {
		next := nextUsed(s, l, at)
		if next-at >= minGap || next == len(s.data) && next > at {
			return at
		}
		at = pageEnd(s, max(next, at))
	}
	return len(s.data)
}

// nextUsed is the first offset, from one on, of a page that is no padding, or the end.
func nextUsed(s segment, l layout, at int) int {
	for at < len(s.data) {
		end := pageEnd(s, at)
		if end-at < pageSize || !padding(s.data[at:end], l.code(s.Vaddr+uint64(at))) {
			return at
		}
		at = end
	}
	return at
}

// pageEnd is where the page with the offset ends, in the segment.
func pageEnd(s segment, at int) int {
	in := (s.Paddr + uint64(at)) % pageSize
	return min(at+int(pageSize-in), len(s.data))
}

// layout is a kernel's sections.
type layout []*elf.Section

// code tells whether a page has no data: it lies in a section of code, or behind one.
func (l layout) code(page uint64) bool {
	behind := false
	for _, s := range l {
		if s.Flags&elf.SHF_ALLOC == 0 || s.Addr >= page+pageSize {
			continue
		}
		exec := s.Flags&elf.SHF_EXECINSTR != 0
		if !exec && s.Addr+s.Size > page {
			return false
		}
		behind = behind || exec
	}
	return behind
}

// padding tells whether a page is all zeros or, where there is code, all int3.
func padding(page []byte, code bool) bool {
	fill := page[0]
	if fill != 0 && !(code && fill == 0xcc) {
		return false
	}
	for _, b := range page {
		if b != fill {
			return false
		}
	}
	return true
}

// kernel is an ELF file in the making.
type kernel struct {
	header   elf.FileHeader
	segments []segment
}

// encode lays the file out: header, program headers, and each segment at an offset that is like its address, modulo pages.
func (k kernel) encode() []byte {
	le := binary.LittleEndian
	out := make([]byte, headerSize, headerSize+entrySize*len(k.segments))
	copy(out, elf.ELFMAG)
	out[elf.EI_CLASS], out[elf.EI_DATA], out[elf.EI_VERSION] = byte(elf.ELFCLASS64), byte(elf.ELFDATA2LSB), byte(elf.EV_CURRENT)
	le.PutUint16(out[16:], uint16(k.header.Type))
	le.PutUint16(out[18:], uint16(k.header.Machine))
	le.PutUint32(out[20:], uint32(elf.EV_CURRENT))
	le.PutUint64(out[24:], k.header.Entry)
	le.PutUint64(out[32:], headerSize) // program headers
	le.PutUint16(out[52:], headerSize)
	le.PutUint16(out[54:], entrySize)
	le.PutUint16(out[56:], uint16(len(k.segments)))
	at := uint64(headerSize + entrySize*len(k.segments))
	for i := range k.segments {
		s := &k.segments[i]
		if s.Type == elf.PT_LOAD {
			at += (s.Paddr - at) % pageSize
			s.Align = pageSize
		} else { // the alignment of notes is that of each of them
			at = (at + 7) &^ 7
		}
		s.Off = at
		at += uint64(len(s.data))
		out = le.AppendUint32(out, uint32(s.Type))
		out = le.AppendUint32(out, uint32(s.Flags))
		for _, v := range []uint64{s.Off, s.Vaddr, s.Paddr, s.Filesz, s.Memsz, s.Align} {
			out = le.AppendUint64(out, v)
		}
	}
	for _, s := range k.segments {
		out = append(out, make([]byte, s.Off-uint64(len(out)))...)
		out = append(out, s.data...)
	}
	return out
}
