package boot

import (
	"encoding/binary"
	"fmt"

	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/memory"
)

// Load puts the kernel and all that it needs into guest RAM and says how to enter it. An ELF file is entered through its
// PVH note, anything else is taken for a bzImage. Guest RAM is zero before the call. Errors wrap ErrKernel, ErrInitrd,
// ErrNoRoom, ErrCommandLine, or an error of reading the kernel.
func Load(mem *memory.Memory, p Params) (Entry, error) {
	if err := checkCommandLine(p.CommandLine); err != nil {
		return Entry{}, err
	}
	if lowRegion(mem) <= kernelAddr {
		return Entry{}, fmt.Errorf("%w: %d bytes end below the kernel's address %#x", ErrNoRoom, lowRegion(mem), uint64(kernelAddr))
	}
	var magic [4]byte
	if n, err := p.Kernel.ReadAt(magic[:], 0); n < len(magic) {
		return Entry{}, fmt.Errorf("%w: %d bytes long (%w)", ErrKernel, p.Kernel.Size, err)
	}
	if err := writeGuest(mem, commandLineAddr, append([]byte(p.CommandLine), 0)); err != nil {
		return Entry{}, err
	}
	if string(magic[:]) == elfMagic {
		return loadPVH(mem, p)
	}
	return loadBzImage(mem, p)
}

// lowRegion is the end of guest RAM below the gap.
func lowRegion(mem *memory.Memory) uint64 {
	r := mem.Regions()
	if len(r) == 0 || r[0].Addr != 0 {
		return 0
	}
	return r[0].End()
}

// loadInitrd puts the initrd at the top of guest RAM below limit and above kernelEnd, and gives its address.
func loadInitrd(mem *memory.Memory, f *File, kernelEnd, limit uint64) (uint64, error) {
	limit = min(limit, memory.GapStart)
	if f.Size > limit {
		return 0, fmt.Errorf("%w: %d bytes: want at most %d", ErrInitrd, f.Size, limit)
	}
	limit = min(limit, lowRegion(mem))
	kernelEnd = alignUp(kernelEnd, memory.PageSize)
	if f.Size > limit || kernelEnd > (limit-f.Size)&^(memory.PageSize-1) {
		return 0, fmt.Errorf("%w: initrd of %d bytes between the kernel's end at %#x and %#x", ErrNoRoom, f.Size, kernelEnd, limit)
	}
	addr := (limit - f.Size) &^ (memory.PageSize - 1)
	if err := f.readInto(mem, addr, 0, f.Size); err != nil {
		return 0, fmt.Errorf("%w: %w", ErrInitrd, err)
	}
	return addr, nil
}

func writeGuest(mem *memory.Memory, addr uint64, p []byte) error {
	dst, err := mem.Slice(addr, uint64(len(p)))
	if err != nil {
		return fmt.Errorf("%d bytes at %#x: %w", len(p), addr, err)
	}
	copy(dst, p)
	return nil
}

// alignUp rounds n up to a multiple of a, a power of two. The caller has bounded n.
func alignUp(n, a uint64) uint64 { return (n + a - 1) &^ (a - 1) }

// Memory map types, the same in an e820 map and in PVH's.
const (
	mapRAM      = 1
	mapReserved = 2
)

type mapEntry struct {
	addr, size uint64
	kind       uint32
}

// memoryMap is what the firmware says of guest RAM.
func memoryMap(mem *memory.Memory) []mapEntry {
	m := []mapEntry{
		{0, lowRAMEnd, mapRAM},
		{lowRAMEnd, kernelAddr - lowRAMEnd, mapReserved},
	}
	for i, r := range mem.Regions() {
		addr := r.Addr
		if i == 0 {
			addr = kernelAddr
		}
		m = append(m, mapEntry{addr, r.End() - addr, mapRAM})
	}
	return m
}

// Segment selectors of the boot GDT. The 64-bit boot protocol wants code at 0x10 and data at 0x18.
const (
	SelectorTSS  = 0x08
	SelectorCode = 0x10
	SelectorData = 0x18
)

// GDT and IDT as a vCPU's table registers want them.
const (
	GDTAddr  = gdtAddr
	GDTLimit = 4*8 - 1
	IDTAddr  = idtAddr
	IDTLimit = 8 - 1
	// StackAddr is the boot stack of the 64-bit protocol.
	StackAddr = bootStack
	// PageTableAddr is the root of the boot page tables.
	PageTableAddr = pml4Addr
	// ZeroPageAddr is the boot_params of the 64-bit protocol, PVHInfoAddr the start_info of PVH.
	ZeroPageAddr = zeroPageAddr
	PVHInfoAddr  = pvhInfoAddr
)

// Attributes of segments: bits 40 to 47 and 52 to 55 of a descriptor.
const (
	attrTSS    = 0x008b
	attrCode32 = 0xc09b
	attrCode64 = 0xa09b
	attrData   = 0xc093
)

// writeGDT writes flat segments, their code 32 or 64 bits wide.
func writeGDT(mem *memory.Memory, code uint16) error {
	var t [GDTLimit + 1 + IDTLimit + 1]byte // the IDT, which follows, is empty
	for sel, d := range map[int]uint64{
		SelectorTSS:  descriptor(attrTSS, 0, 0x67),
		SelectorCode: descriptor(code, 0, 0xfffff),
		SelectorData: descriptor(attrData, 0, 0xfffff),
	} {
		binary.LittleEndian.PutUint64(t[sel:], d)
	}
	return writeGuest(mem, gdtAddr, t[:])
}

// descriptor packs a segment descriptor (Intel SDM 3A §3.4.5). limit has 20 bits.
func descriptor(attr uint16, base, limit uint32) uint64 {
	return uint64(limit)&0xffff | uint64(base)&0xffffff<<16 | uint64(attr&0xff)<<40 |
		uint64(limit)>>16&0xf<<48 | uint64(attr>>12)&0xf<<52 | uint64(base)>>24<<56
}

// writePageTables maps the first GiB one to one in pages of 2 MiB.
func writePageTables(mem *memory.Memory) error {
	const (
		present, writable, large = 1 << 0, 1 << 1, 1 << 7
		pageSize                 = 2 << 20
	)
	t, err := mem.Slice(pml4Addr, 3*memory.PageSize)
	if err != nil {
		return err
	}
	le := binary.LittleEndian
	le.PutUint64(t, pdptAddr|present|writable)
	le.PutUint64(t[pdptAddr-pml4Addr:], pdAddr|present|writable)
	for i := range uint64(identityMapped / pageSize) {
		le.PutUint64(t[pdAddr-pml4Addr+8*i:], i*pageSize|present|writable|large)
	}
	return nil
}
