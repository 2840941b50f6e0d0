package boot

import (
	"errors"
	"testing"

	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/memory"
	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/vmmtest"
)

// fuzzLoad loads whatever it is given: it must not panic, and what it accepts must start inside guest RAM that it has filled,
// with nothing beyond the memory map's idea of RAM.
func fuzzLoad(f *testing.F, load func(*memory.Memory, Params) (Entry, error)) {
	mem := newMemory(f, testRAM)
	ir := file([]byte("an initrd"))
	f.Fuzz(func(t *testing.T, kernel []byte, line string) {
		e, err := load(mem, Params{Kernel: file(kernel), Initrd: &ir, CommandLine: line})
		if err != nil {
			if !errors.Is(err, ErrKernel) && !errors.Is(err, ErrInitrd) && !errors.Is(err, ErrNoRoom) && !errors.Is(err, ErrCommandLine) {
				t.Fatalf("an error of no class: %v", err)
			}
			return
		}
		if e.Addr < kernelAddr || e.Addr >= testRAM {
			t.Fatalf("entry %+v outside guest RAM", e)
		}
	})
}

func FuzzELF(f *testing.F) {
	good := vmmtest.ELF([]byte{0xf4})
	f.Add(good, "console=ttyS0")
	f.Add(put(good, 64+40, 8, 1<<62), "")
	f.Add(put(good, 64+56+32, 8, 12), "")
	f.Add(put(good, 64+2*56, 4, 0xffffffff), "")
	f.Add(good[:100], "")
	fuzzLoad(f, func(m *memory.Memory, p Params) (Entry, error) {
		if p.Kernel.Size >= 4 {
			var magic [4]byte
			p.Kernel.ReadAt(magic[:], 0)
			if string(magic[:]) != elfMagic {
				return Entry{}, ErrKernel
			}
		}
		return Load(m, p)
	})
}

func FuzzBzImage(f *testing.F) {
	good := vmmtest.BzImage([]byte{0xf4})
	f.Add(good, "console=ttyS0")
	f.Add(put(good, hdrSetupSects, 1, 255), "")
	f.Add(put(good, hdrRelocatable, 1, 0), "")
	f.Add(put(good, hdrLength, 1, 255), "")
	f.Add(put(good, hdrInitrdMax, 4, 0), "")
	f.Add(put(good, hdrPrefAddress, 8, 1<<30), "")
	fuzzLoad(f, Load)
}
