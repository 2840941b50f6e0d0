package boot

import (
	"encoding/binary"
	"fmt"

	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/memory"
)

// Fields of Xen's struct hvm_start_info, version 1 (xen/include/public/arch-x86/hvm/start_info.h).
const (
	pvhMagic       = 0x336ec578
	pvhVersion     = 1
	pvhInfoSize    = 56
	pvhModuleSize  = 32
	pvhMapItemSize = 24
)

// loadPVH loads an ELF kernel and what its PVH entry point expects.
func loadPVH(mem *memory.Memory, p Params) (Entry, error) {
	k, err := loadELF(mem, p.Kernel)
	if err != nil {
		return Entry{}, err
	}
	le := binary.LittleEndian
	info := make([]byte, pvhInfoSize)
	le.PutUint32(info[0:], pvhMagic)
	le.PutUint32(info[4:], pvhVersion)
	if p.Initrd != nil {
		addr, err := loadInitrd(mem, p.Initrd, k.end, memory.GapStart)
		if err != nil {
			return Entry{}, err
		}
		module := make([]byte, pvhModuleSize)
		le.PutUint64(module[0:], addr)
		le.PutUint64(module[8:], p.Initrd.Size)
		if err := writeGuest(mem, pvhModulesAddr, module); err != nil {
			return Entry{}, err
		}
		le.PutUint32(info[12:], 1)
		le.PutUint64(info[16:], pvhModulesAddr)
	}
	le.PutUint64(info[24:], commandLineAddr)
	le.PutUint64(info[32:], p.RSDP)
	var table []byte
	entries := memoryMap(mem)
	for _, e := range entries {
		table = le.AppendUint64(table, e.addr)
		table = le.AppendUint64(table, e.size)
		table = le.AppendUint32(table, e.kind)
		table = le.AppendUint32(table, 0)
	}
	le.PutUint64(info[40:], pvhMemmapAddr)
	le.PutUint32(info[48:], uint32(len(entries)))
	if err := writeGuest(mem, pvhMemmapAddr, table); err != nil {
		return Entry{}, err
	}
	if err := writeGuest(mem, pvhInfoAddr, info); err != nil {
		return Entry{}, err
	}
	if err := writeGDT(mem, attrCode32); err != nil {
		return Entry{}, err
	}
	if k.entry < kernelAddr || k.entry >= k.end {
		return Entry{}, fmt.Errorf("%w: PVH entry point %#x outside the loaded segments", ErrKernel, k.entry)
	}
	return Entry{Protocol: ProtocolPVH, Addr: k.entry}, nil
}
