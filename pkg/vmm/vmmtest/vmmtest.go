// Package vmmtest helps tests of machines: it finds out whether KVM can be used, and makes kernels out of a few bytes of
// machine code. It is for tests only.
package vmmtest

import (
	"bytes"
	"encoding/binary"
	"os"
	"testing"

	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/kvm"
)

// RequireEnv, set to 1, makes the absence of KVM a failure.
const RequireEnv = "FC_REQUIRE_KVM"

// NeedKVM skips the test, or fails it if RequireEnv asks for that, where there is no KVM that runs ordinary kernels. A device
// node alone is not enough: some hosts have one whose KVM emulates all but paravirtualised guests.
func NeedKVM(tb testing.TB) {
	tb.Helper()
	if why := missing(); why != "" {
		if os.Getenv(RequireEnv) == "1" {
			tb.Fatalf("%s=1, and %s", RequireEnv, why)
		}
		tb.Skipf("needs KVM: %s (go test -exec $PWD/integration/kvmhost runs it where there is one)", why)
	}
}

func missing() string {
	info, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		return err.Error()
	}
	hardware := false
	for _, f := range bytes.Fields(info) {
		hardware = hardware || string(f) == "svm" || string(f) == "vmx"
	}
	if !hardware {
		return "the CPU shows neither svm nor vmx"
	}
	sys, err := kvm.Open("")
	if err != nil {
		return err.Error()
	}
	defer sys.Close()
	vm, err := sys.CreateVM()
	if err != nil {
		return err.Error()
	}
	vm.Close()
	return ""
}

// KernelAddr is where the kernels of ELF and BzImage are loaded.
const KernelAddr = 0x100000

// ELF is a kernel with a PVH entry point: 32-bit code that starts at KernelAddr, without paging.
func ELF(code []byte) []byte {
	const header, phSize = 64, 56
	le := binary.LittleEndian
	note := le.AppendUint32(le.AppendUint32(le.AppendUint32(nil, 4), 4), 18)
	note = append(note, "Xen\x00"...)
	note = le.AppendUint32(note, KernelAddr)
	noteAt := uint64(header + 2*phSize)
	codeAt := noteAt + uint64(len(note))

	h := make([]byte, header)
	copy(h, "\x7fELF\x02\x01\x01")
	le.PutUint16(h[16:], 2)
	le.PutUint16(h[18:], 62)
	le.PutUint32(h[20:], 1)
	le.PutUint64(h[32:], header)
	le.PutUint16(h[52:], header)
	le.PutUint16(h[54:], phSize)
	le.PutUint16(h[56:], 2)
	segment := func(kind uint32, off, paddr, size, memsz uint64) []byte {
		p := make([]byte, phSize)
		le.PutUint32(p, kind)
		le.PutUint64(p[8:], off)
		le.PutUint64(p[24:], paddr)
		le.PutUint64(p[32:], size)
		le.PutUint64(p[40:], memsz)
		return p
	}
	n := uint64(len(code))
	return bytes.Join([][]byte{h, segment(1, codeAt, KernelAddr, n, n+4096), segment(4, noteAt, 0, uint64(len(note)), 0), note, code}, nil)
}

// BzImage is a kernel for the 64-bit boot protocol: 64-bit code that is loaded at KernelAddr and entered there plus 0x200,
// with the first GiB mapped one to one.
func BzImage(code []byte) []byte {
	le := binary.LittleEndian
	b := make([]byte, 2*512+0x200, 2*512+0x200+len(code))
	b[0x1f1] = 1 // one sector of set-up code
	le.PutUint16(b[0x1fe:], 0xaa55)
	b[0x201] = 0x66
	copy(b[0x202:], "HdrS")
	le.PutUint16(b[0x206:], 0x20f)
	le.PutUint32(b[0x22c:], 0x7fffffff)
	le.PutUint32(b[0x230:], 0x200000)
	b[0x234] = 1
	le.PutUint16(b[0x236:], 1)
	le.PutUint32(b[0x238:], 2047)
	le.PutUint64(b[0x258:], 0x1000000)
	le.PutUint32(b[0x260:], 0x100000)
	return append(b, code...)
}
