package boot

import (
	"encoding/binary"
	"fmt"

	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/memory"
)

// The setup header and struct boot_params (Documentation/arch/x86/boot.rst, zero-page.rst): offsets are the same in the
// kernel file and in the zero page.
const (
	hdrSetupSects   = 0x1f1
	hdrBootFlag     = 0x1fe
	hdrLength       = 0x201
	hdrMagic        = 0x202
	hdrVersion      = 0x206
	hdrLoader       = 0x210
	hdrLoadFlags    = 0x211
	hdrRamdiskImage = 0x218
	hdrRamdiskSize  = 0x21c
	hdrCmdLinePtr   = 0x228
	hdrInitrdMax    = 0x22c
	hdrAlignment    = 0x230
	hdrRelocatable  = 0x234
	hdrXLoadFlags   = 0x236
	hdrCmdLineSize  = 0x238
	hdrPrefAddress  = 0x258
	hdrInitSize     = 0x260
	hdrEnd          = 0x290

	zpRSDP        = 0x070
	zpE820Entries = 0x1e8
	zpE820Table   = 0x2d0

	bootFlag       = 0xaa55
	minVersion     = 0x020c // the first with XLoadFlags
	xlfKernel64    = 1 << 0
	loaderUnknown  = 0xff
	loadedHigh     = 1 << 0
	canUseHeap     = 1 << 7
	entry64Offset  = 0x200
	sectorSize     = 512
	maxKernelAlign = 1 << 30
)

// loadBzImage loads a bzImage for the 64-bit boot protocol.
func loadBzImage(mem *memory.Memory, p Params) (Entry, error) {
	f, le := p.Kernel, binary.LittleEndian
	var h [hdrEnd]byte
	if n, err := f.ReadAt(h[:], 0); n < len(h) {
		return Entry{}, fmt.Errorf("%w: neither ELF nor bzImage, %d bytes long (%w)", ErrKernel, f.Size, err)
	}
	if le.Uint16(h[hdrBootFlag:]) != bootFlag || string(h[hdrMagic:hdrMagic+4]) != "HdrS" {
		return Entry{}, fmt.Errorf("%w: neither ELF nor bzImage", ErrKernel)
	}
	if v := le.Uint16(h[hdrVersion:]); v < minVersion {
		return Entry{}, fmt.Errorf("%w: boot protocol %d.%02d: want 2.12 or later", ErrKernel, v>>8, v&0xff)
	}
	if le.Uint16(h[hdrXLoadFlags:])&xlfKernel64 == 0 {
		return Entry{}, fmt.Errorf("%w: bzImage without a 64-bit entry point", ErrKernel)
	}
	if n := le.Uint32(h[hdrCmdLineSize:]); uint64(len(p.CommandLine)) > uint64(n) {
		return Entry{}, fmt.Errorf("%w: %d bytes: this kernel takes at most %d", ErrCommandLine, len(p.CommandLine), n)
	}
	load, end, err := bzImagePlace(mem, h[:], f.Size)
	if err != nil {
		return Entry{}, err
	}
	setup := setupSize(h[:])
	if err := f.readInto(mem, load, setup, f.Size-setup); err != nil {
		return Entry{}, fmt.Errorf("kernel: %w", err)
	}

	zp, err := mem.Slice(zeroPageAddr, memory.PageSize)
	if err != nil {
		return Entry{}, err
	}
	clear(zp)
	copy(zp[hdrSetupSects:min(hdrMagic+int(h[hdrLength]), hdrEnd)], h[hdrSetupSects:])
	zp[hdrLoader] = loaderUnknown
	zp[hdrLoadFlags] = (zp[hdrLoadFlags] | loadedHigh) &^ canUseHeap
	le.PutUint32(zp[hdrCmdLinePtr:], commandLineAddr)
	le.PutUint64(zp[zpRSDP:], p.RSDP)
	if p.Initrd != nil {
		addr, err := loadInitrd(mem, p.Initrd, end, uint64(le.Uint32(h[hdrInitrdMax:]))+1)
		if err != nil {
			return Entry{}, err
		}
		le.PutUint32(zp[hdrRamdiskImage:], uint32(addr))
		le.PutUint32(zp[hdrRamdiskSize:], uint32(p.Initrd.Size))
	}
	table := zp[zpE820Table:zpE820Table]
	entries := memoryMap(mem)
	for _, e := range entries {
		table = le.AppendUint64(table, e.addr)
		table = le.AppendUint64(table, e.size)
		table = le.AppendUint32(table, e.kind)
	}
	zp[zpE820Entries] = byte(len(entries))

	if err := writePageTables(mem); err != nil {
		return Entry{}, err
	}
	if err := writeGDT(mem, attrCode64); err != nil {
		return Entry{}, err
	}
	return Entry{Protocol: ProtocolLinux64, Addr: load + entry64Offset}, nil
}

// setupSize is the length of the real-mode part, which the 64-bit protocol skips.
func setupSize(h []byte) uint64 {
	n := uint64(h[hdrSetupSects])
	if n == 0 {
		n = 4 // boot.rst: for backwards compatibility
	}
	return (n + 1) * sectorSize
}

// bzImagePlace says where the compressed kernel goes and where the memory ends that it needs to unpack itself.
func bzImagePlace(mem *memory.Memory, h []byte, size uint64) (load, end uint64, err error) {
	le := binary.LittleEndian
	setup := setupSize(h)
	if size < setup+entry64Offset {
		return 0, 0, fmt.Errorf("%w: %d bytes long, of which %d are set-up code", ErrKernel, size, setup)
	}
	align, pref, initSize := uint64(le.Uint32(h[hdrAlignment:])), le.Uint64(h[hdrPrefAddress:]), uint64(le.Uint32(h[hdrInitSize:]))
	if align == 0 || align&(align-1) != 0 || align > maxKernelAlign {
		return 0, 0, fmt.Errorf("%w: alignment %#x is not a power of two up to %#x", ErrKernel, align, uint64(maxKernelAlign))
	}
	if pref < kernelAddr || pref > identityMapped {
		return 0, 0, fmt.Errorf("%w: preferred address %#x: want %#x to %#x", ErrKernel, pref, uint64(kernelAddr), uint64(identityMapped))
	}
	load = kernelAddr
	if h[hdrRelocatable] == 0 {
		load = pref
	}
	// It unpacks to its preferred address, or to its load address, aligned, if that is higher.
	end = max(load+size-setup, max(alignUp(load, align), pref)+initSize)
	if end > identityMapped {
		return 0, 0, fmt.Errorf("%w: it unpacks up to %#x: want %#x or below, as boot page tables map no more", ErrKernel, end, uint64(identityMapped))
	}
	if top := lowRegion(mem); end > top {
		return 0, 0, fmt.Errorf("%w: the kernel unpacks up to %#x, RAM ends at %#x", ErrNoRoom, end, top)
	}
	return load, end, nil
}
