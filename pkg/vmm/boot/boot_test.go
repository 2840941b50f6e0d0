package boot

import (
	"bytes"
	"encoding/binary"
	"errors"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/memory"
	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/vmmtest"
)

const testRAM = 64 << 20

func newMemory(tb testing.TB, size uint64) *memory.Memory {
	tb.Helper()
	m, err := memory.New(size, memory.HostPages)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { m.Close() })
	return m
}

func file(p []byte) File { return File{ReaderAt: bytes.NewReader(p), Size: uint64(len(p))} }

func read(t *testing.T, m *memory.Memory, addr, n uint64) []byte {
	t.Helper()
	p, err := m.Slice(addr, n)
	if err != nil {
		t.Fatalf("%d bytes at %#x: %v", n, addr, err)
	}
	return p
}

func TestLoad(t *testing.T) {
	le := binary.LittleEndian
	initrd := bytes.Repeat([]byte("initrd"), 1000)
	code := []byte("code of the kernel")
	for _, c := range []struct {
		name   string
		kernel []byte
		want   Entry
		at     uint64
	}{
		{"PVH", vmmtest.ELF(code), Entry{ProtocolPVH, kernelAddr}, kernelAddr},
		{"bzImage", vmmtest.BzImage(code), Entry{ProtocolLinux64, kernelAddr + 0x200}, kernelAddr + 0x200},
	} {
		t.Run(c.name, func(t *testing.T) {
			m := newMemory(t, testRAM)
			ir := file(initrd)
			e, err := Load(m, Params{Kernel: file(c.kernel), Initrd: &ir, CommandLine: "a=b", RSDP: acpiAddr})
			if err != nil || e != c.want {
				t.Fatalf("Load = %+v, %v; want %+v", e, err, c.want)
			}
			if got := read(t, m, c.at, uint64(len(code))); !bytes.Equal(got, code) {
				t.Errorf("at the entry: %q", got)
			}
			if got := read(t, m, commandLineAddr, 4); string(got) != "a=b\x00" {
				t.Errorf("command line %q", got)
			}
			var at, size, rsdp uint64
			if c.want.Protocol == ProtocolPVH {
				info := read(t, m, pvhInfoAddr, pvhInfoSize)
				if le.Uint32(info) != pvhMagic || le.Uint32(info[12:]) != 1 || le.Uint32(info[48:]) != 3 {
					t.Errorf("start_info %x", info)
				}
				mod := read(t, m, le.Uint64(info[16:]), pvhModuleSize)
				at, size, rsdp = le.Uint64(mod), le.Uint64(mod[8:]), le.Uint64(info[32:])
			} else {
				zp := read(t, m, zeroPageAddr, 4096)
				at, size = uint64(le.Uint32(zp[hdrRamdiskImage:])), uint64(le.Uint32(zp[hdrRamdiskSize:]))
				rsdp = le.Uint64(zp[zpRSDP:])
				if zp[zpE820Entries] != 3 || zp[hdrLoader] != loaderUnknown || le.Uint32(zp[hdrCmdLinePtr:]) != commandLineAddr {
					t.Errorf("zero page: %d e820 entries, loader %#x, command line at %#x", zp[zpE820Entries], zp[hdrLoader], le.Uint32(zp[hdrCmdLinePtr:]))
				}
			}
			if at%4096 != 0 || size != uint64(len(initrd)) || at+size > testRAM || testRAM-at-size >= 4096 || rsdp != acpiAddr {
				t.Errorf("initrd of %d bytes at %#x, RSDP at %#x", size, at, rsdp)
			}
			if got := read(t, m, at, size); !bytes.Equal(got, initrd) {
				t.Error("the initrd is not what was given")
			}
		})
	}
}

// put changes a little-endian field of a copy.
func put(p []byte, off int, size int, v uint64) []byte {
	p = bytes.Clone(p)
	var b [8]byte
	binary.LittleEndian.PutUint64(b[:], v)
	copy(p[off:off+size], b[:])
	return p
}

func TestLoadRefuses(t *testing.T) {
	elf, bz := vmmtest.ELF([]byte{0xf4}), vmmtest.BzImage([]byte{0xf4})
	const ph, note = 64, 64 + 2*56
	for _, c := range []struct {
		name   string
		kernel []byte
		line   string
		want   error
	}{
		{"empty", nil, "", ErrKernel},
		{"text", bytes.Repeat([]byte("text "), 1000), "", ErrKernel},
		{"command line too long", elf, string(make([]byte, MaxCommandLine+1)), ErrCommandLine},
		{"command line with NUL", elf, "a\x00b", ErrCommandLine},
		{"ELF: header cut", elf[:40], "", ErrKernel},
		{"ELF: 32 bits", put(elf, 4, 1, 1), "", ErrKernel},
		{"ELF: arm64", put(elf, 18, 2, 183), "", ErrKernel},
		{"ELF: no headers", put(elf, 56, 2, 0), "", ErrKernel},
		{"ELF: 65535 headers", put(elf, 56, 2, 65535), "", ErrKernel},
		{"ELF: headers outside", put(elf, 32, 8, 1<<63), "", ErrKernel},
		{"ELF: segment below", put(elf, ph+24, 8, 0x1000), "", ErrKernel},
		{"ELF: segment above", put(elf, ph+24, 8, testRAM-8), "", ErrNoRoom},
		{"ELF: segment beyond this RAM", put(elf, ph+24, 8, 2<<30), "", ErrNoRoom},
		{"ELF: segment beyond any RAM", put(elf, ph+24, 8, memory.GapStart), "", ErrKernel},
		{"ELF: segment above the gap", put(elf, ph+24, 8, memory.GapEnd), "", ErrKernel},
		{"ELF: segment wraps", put(elf, ph+24, 8, ^uint64(7)), "", ErrKernel},
		{"ELF: segment too large", put(elf, ph+40, 8, 1<<62), "", ErrKernel},
		{"ELF: file part larger", put(elf, ph+32, 8, 1<<62), "", ErrKernel},
		{"ELF: outside the file", put(elf, ph+8, 8, 1<<40), "", ErrKernel},
		{"ELF: huge notes", put(elf, ph+56+32, 8, 1<<40), "", ErrKernel},
		{"ELF: no PVH note", put(elf, note+8, 4, 17), "", ErrKernel},
		{"ELF: note cut", put(elf, note+4, 4, 1<<31), "", ErrKernel},
		{"ELF: entry outside", put(elf, note+16, 4, 0x10), "", ErrKernel},
		{"bzImage: header cut", bz[:0x250], "", ErrKernel},
		{"bzImage: old", put(bz, hdrVersion, 2, 0x20b), "", ErrKernel},
		{"bzImage: 32 bits", put(bz, hdrXLoadFlags, 2, 0), "", ErrKernel},
		{"bzImage: short command line", put(bz, hdrCmdLineSize, 4, 2), "abc", ErrCommandLine},
		{"bzImage: set-up code only", put(bz, hdrSetupSects, 1, 200), "", ErrKernel},
		{"bzImage: alignment", put(bz, hdrAlignment, 4, 3), "", ErrKernel},
		{"bzImage: preferred address", put(bz, hdrPrefAddress, 8, ^uint64(0)), "", ErrKernel},
		{"bzImage: large", put(bz, hdrInitSize, 4, testRAM), "", ErrNoRoom},
		{"bzImage: too large for any RAM", put(bz, hdrInitSize, 4, 0xffffffff), "", ErrKernel},
	} {
		t.Run(c.name, func(t *testing.T) {
			if _, err := Load(newMemory(t, testRAM), Params{Kernel: file(c.kernel), CommandLine: c.line}); !errors.Is(err, c.want) {
				t.Errorf("Load: %v, want %v", err, c.want)
			}
		})
	}
}

func TestInitrd(t *testing.T) {
	for name, kernel := range map[string][]byte{"PVH": vmmtest.ELF([]byte{0xf4}), "bzImage": vmmtest.BzImage([]byte{0xf4})} {
		for _, c := range []struct {
			what string
			size uint64
			want error
		}{
			{"that cannot be read", 4096, ErrInitrd},
			{"for a larger guest", testRAM - kernelAddr, ErrNoRoom},
			{"as large as the guest", testRAM, ErrNoRoom},
			{"for no guest", 1 << 40, ErrInitrd},
		} {
			ir := File{ReaderAt: bytes.NewReader(nil), Size: c.size}
			_, err := Load(newMemory(t, testRAM), Params{Kernel: file(kernel), Initrd: &ir})
			if !errors.Is(err, c.want) || errors.Is(err, ErrKernel) {
				t.Errorf("%s, initrd %s: %v, want %v", name, c.what, err, c.want)
			}
		}
	}
}

// A named pipe without a writer must not hold up whoever opens it.
func TestOpenWantsRegularFiles(t *testing.T) {
	pipe := filepath.Join(t.TempDir(), "pipe")
	if err := unix.Mkfifo(pipe, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{pipe, "/dev/null", t.TempDir()} {
		opened := make(chan error, 1)
		go func() {
			_, _, err := Open(path)
			opened <- err
		}()
		select {
		case err := <-opened:
			if err == nil || !strings.Contains(err.Error(), "not a regular file") {
				t.Errorf("%s: %v", path, err)
			}
		case <-time.After(5 * time.Second):
			t.Errorf("%s: blocked for 5 s", path)
		}
	}
}

func TestMemoryMapLeavesTheGap(t *testing.T) {
	m := memoryMap(newMemory(t, 5<<30))
	var ram uint64
	for _, e := range m {
		if e.kind != mapRAM {
			continue
		}
		ram += e.size
		if e.addr < memory.GapEnd && e.addr+e.size > memory.GapStart {
			t.Errorf("RAM at %#x, %#x bytes reaches into the gap", e.addr, e.size)
		}
	}
	if want := uint64(5<<30 - (kernelAddr - lowRAMEnd)); ram != want {
		t.Errorf("%#x bytes of RAM, want %#x", ram, want)
	}
}

func TestPageTables(t *testing.T) {
	m := newMemory(t, testRAM)
	if err := writePageTables(m); err != nil {
		t.Fatal(err)
	}
	le := binary.LittleEndian
	walk := func(va uint64) uint64 {
		table := uint64(pml4Addr)
		for _, shift := range []int{39, 30} {
			e := le.Uint64(read(t, m, table+8*(va>>shift&511), 8))
			if e&3 != 3 {
				t.Fatalf("%#x is not mapped", va)
			}
			table = e &^ 0xfff
		}
		e := le.Uint64(read(t, m, table+8*(va>>21&511), 8))
		return e&^0x1fffff | va&0x1fffff
	}
	for _, va := range []uint64{0, 0x100200, 0x1fffff, 0x200000, identityMapped - 1} {
		if pa := walk(va); pa != va {
			t.Errorf("%#x is mapped to %#x", va, pa)
		}
	}
}

func TestDescriptor(t *testing.T) {
	for _, c := range []struct {
		attr  uint16
		limit uint32
		want  uint64
	}{{attrCode32, 0xfffff, 0x00cf9b000000ffff}, {attrCode64, 0xfffff, 0x00af9b000000ffff}, {attrData, 0xfffff, 0x00cf93000000ffff}, {attrTSS, 0x67, 0x00008b0000000067}} {
		if d := descriptor(c.attr, 0, c.limit); d != c.want {
			t.Errorf("descriptor(%#x) = %#016x, want %#016x", c.attr, d, c.want)
		}
	}
}
