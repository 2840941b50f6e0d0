// Package boot puts a kernel, its initrd, its command line and the firmware's tables into guest RAM.
//
// The kernel file is untrusted: every field of its headers is bounded before it is used, and the file's bytes go straight
// from the page cache into guest RAM, never through the heap. The package knows no KVM: what the first vCPU must start
// with is an Entry, which package cpu turns into registers. It must never read guest RAM that a vCPU could have written.
package boot

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/memory"
)

// Errors of Load, wrapped with what is wrong.
var (
	// ErrKernel: the file is not a kernel that this package can boot.
	ErrKernel = errors.New("not a bootable kernel")
	// ErrInitrd: the initrd cannot be read, or fits into no guest.
	ErrInitrd = errors.New("unusable initrd")
	// ErrNoRoom: kernel or initrd do not fit into this guest's RAM, and would into a larger one's.
	ErrNoRoom = errors.New("guest RAM too small")
	// ErrCommandLine: the command line is too long or holds a NUL byte.
	ErrCommandLine = errors.New("invalid kernel command line")
)

// Protocol is how a kernel is entered.
type Protocol int

const (
	// ProtocolPVH is the Xen PVH entry point, 32-bit protected mode without paging (xen/docs/misc/pvh.pandoc).
	ProtocolPVH Protocol = iota
	// ProtocolLinux64 is the 64-bit Linux boot protocol (Documentation/arch/x86/boot.rst).
	ProtocolLinux64
)

// String names the protocol for logs.
func (p Protocol) String() string {
	if p == ProtocolPVH {
		return "pvh"
	}
	return "linux64"
}

// Entry is where and how the first vCPU starts.
type Entry struct {
	Protocol Protocol
	// Addr is the guest-physical address of the first instruction.
	Addr uint64
}

// File is a kernel or initrd: an *os.File, or bytes in a test.
type File struct {
	io.ReaderAt
	// Size in bytes.
	Size uint64
}

// Open opens a regular file for Load. The caller closes the io.Closer.
func Open(path string) (File, io.Closer, error) {
	// Without O_NONBLOCK a named pipe would block here.
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return File{}, nil, err
	}
	st, err := f.Stat()
	if err == nil && !st.Mode().IsRegular() {
		err = fmt.Errorf("%s: not a regular file", path)
	}
	if err != nil {
		f.Close()
		return File{}, nil, err
	}
	return File{ReaderAt: f, Size: uint64(st.Size())}, f, nil
}

// readInto fills the n bytes of guest RAM at addr from the file's offset off.
func (f File) readInto(mem *memory.Memory, addr, off, n uint64) error {
	if off > f.Size || n > f.Size-off {
		return fmt.Errorf("bytes %d to %d are beyond the file's end at %d", off, off+n, f.Size)
	}
	if host, ok := f.ReaderAt.(*os.File); ok {
		return mem.LoadFile(addr, host, off, n)
	}
	p, err := mem.Slice(addr, n)
	if err != nil {
		return err
	}
	if _, err := io.ReadFull(io.NewSectionReader(f, int64(off), int64(n)), p); err != nil {
		return fmt.Errorf("read %d bytes at %d: %w", n, off, err)
	}
	return nil
}

// Params is what Load puts into guest RAM.
type Params struct {
	Kernel File
	// Initrd is nil for none.
	Initrd *File
	// CommandLine, at most MaxCommandLine bytes.
	CommandLine string
	// RSDP is the address of the ACPI tables' root; 0 for none.
	RSDP uint64
}

func checkCommandLine(s string) error {
	if len(s) > MaxCommandLine {
		return fmt.Errorf("%w: %d bytes: want at most %d", ErrCommandLine, len(s), MaxCommandLine)
	}
	if i := strings.IndexByte(s, 0); i >= 0 {
		return fmt.Errorf("%w: NUL byte at %d", ErrCommandLine, i)
	}
	return nil
}
