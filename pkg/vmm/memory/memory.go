// Package memory is guest RAM: a file in memory, mapped outside the Go heap, and the only bounds-checked way into it.
//
// Guest addresses are untrusted. Everything that turns one into host memory goes through Slice, which never returns
// memory outside one region. The guest can change what lies behind a slice at any time: copy a value out once, check the
// copy, use the copy.
package memory

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// PageSize is the granularity of guest RAM, in bytes.
const PageSize = 4096

// The guest-physical hole below 4 GiB, where devices live: no RAM is mapped in [GapStart, GapEnd).
const (
	GapStart = 3 << 30
	GapEnd   = 4 << 30
)

// MaxSize is the largest guest RAM, in bytes: what fits below the second hole that the field leaves at 256 GiB.
const MaxSize = 255 << 30

// ErrRange is what Slice returns for an address range that is not wholly inside one region of guest RAM.
var ErrRange = errors.New("address range outside guest RAM")

// Region is a contiguous piece of guest RAM.
type Region struct {
	// Addr is the guest-physical address, page-aligned.
	Addr uint64
	// Offset is where the region starts in the file, in bytes.
	Offset uint64
	// Mem is the region in this process; len(Mem) is its size. What is before and behind it cannot be accessed.
	Mem []byte

	whole reservation
}

// End is the guest-physical address just behind the region.
func (r *Region) End() uint64 { return r.Addr + uint64(len(r.Mem)) }

// Memory is a guest's RAM. Its methods are safe for concurrent use, Close excepted.
type Memory struct {
	file    *os.File
	huge    bool // the file may have huge pages
	regions []Region
}

// New makes guest RAM of size bytes: a multiple of PageSize, at most MaxSize. It starts at address 0 and leaves out the
// gap below 4 GiB. Pages are taken from the host when they are first touched, HugeTLBPages at once: if there are too few of them,
// the error is ENOMEM.
func New(size uint64, pages Pages) (*Memory, error) {
	if size == 0 || size%PageSize != 0 || size > MaxSize {
		return nil, fmt.Errorf("guest RAM of %d bytes: want a multiple of %d from %d to %d", size, PageSize, PageSize, uint64(MaxSize))
	}
	f, huge, err := open(size, pages)
	if err != nil {
		return nil, err
	}
	m := &Memory{file: f, huge: huge}
	if err := m.build(size, pages); err != nil {
		m.Close()
		return nil, err
	}
	return m, nil
}

func (m *Memory) build(size uint64, pages Pages) error {
	flags := unix.MAP_SHARED
	if pages != HugeTLBPages { // which are reserved here, so that a touch never fails
		flags |= unix.MAP_NORESERVE
	}
	low := min(size, GapStart)
	if err := m.mapRegion(int(m.file.Fd()), 0, 0, low, flags); err != nil {
		return err
	}
	if high := size - low; high > 0 {
		return m.mapRegion(int(m.file.Fd()), GapEnd, low, high, flags)
	}
	return nil
}

func (m *Memory) mapRegion(fd int, addr, offset, size uint64, flags int) error {
	mem, whole, err := mapGuarded(fd, int64(offset), uintptr(size), flags)
	if err != nil {
		return fmt.Errorf("guest RAM: mmap %d bytes: %w", size, err)
	}
	m.regions = append(m.regions, Region{Addr: addr, Offset: offset, Mem: mem, whole: whole})
	if err := unix.Madvise(mem, unix.MADV_DONTDUMP); err != nil {
		return fmt.Errorf("guest RAM: madvise(MADV_DONTDUMP): %w", err)
	}
	return nil
}

// Regions lists guest RAM by ascending address. The caller must not change the list.
func (m *Memory) Regions() []Region { return m.regions }

// File is the file behind guest RAM, for another process to map; it stays m's. Unless it is a sealed memfd, that process can shrink it, and this
// one would then die by SIGBUS: it is to be trusted with the guest. It is nil for what Attach has mapped.
func (m *Memory) File() *os.File { return m.file }

// Size is the guest's RAM in bytes, the gap not counted.
func (m *Memory) Size() uint64 {
	var n uint64
	for i := range m.regions {
		n += uint64(len(m.regions[i].Mem))
	}
	return n
}

// Slice returns the n bytes of guest RAM at addr, or ErrRange unless all of them lie in one region. It does not allocate.
// The bytes stay valid until Close and may change under the caller: they are shared with a running guest.
func (m *Memory) Slice(addr, n uint64) ([]byte, error) {
	for i := range m.regions {
		r := &m.regions[i]
		if addr < r.Addr || addr-r.Addr > uint64(len(r.Mem)) {
			continue
		}
		off := addr - r.Addr
		if n > uint64(len(r.Mem))-off {
			continue
		}
		return r.Mem[off : off+n : off+n], nil
	}
	return nil, ErrRange
}

// Close unmaps guest RAM. No slice of it may be used afterwards, and no vCPU or device may still run.
func (m *Memory) Close() error {
	var errs []error
	for i := range m.regions {
		errs = append(errs, m.regions[i].whole.unmap())
	}
	m.regions = nil
	if m.file != nil {
		errs = append(errs, m.file.Close())
	}
	return errors.Join(errs...)
}
