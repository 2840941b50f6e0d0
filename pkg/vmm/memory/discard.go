package memory

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// Discard gives the whole pages in the n bytes of guest RAM at addr back to the host. They read as zero from then on, and take
// memory again once somebody writes to them, the guest included. Parts of pages at either end stay as they are. The error is
// ErrRange, as Slice's, or the host's, after which some of the pages may be gone. It does not allocate.
func (m *Memory) Discard(addr, n uint64) error {
	for i := range m.regions {
		r := &m.regions[i]
		if addr < r.Addr || addr-r.Addr > uint64(len(r.Mem)) || n > uint64(len(r.Mem))-(addr-r.Addr) {
			continue
		}
		return m.punch(r.Offset+addr-r.Addr, n)
	}
	return ErrRange
}

// DiscardSlice is Discard for the bytes of a slice that Slice has returned.
func (m *Memory) DiscardSlice(p []byte) error {
	for i := range m.regions {
		r := &m.regions[i]
		if off, ok := within(r.Mem, p); ok {
			return m.punch(r.Offset+off, uint64(len(p)))
		}
	}
	return ErrRange
}

// punch gives the whole pages of n bytes at offset off of the file back. A hole in the file is what takes the pages from all
// who have mapped it, KVM's page tables included; MADV_DONTNEED would leave them in the file.
func (m *Memory) punch(off, n uint64) error {
	begin := (off + PageSize - 1) &^ (PageSize - 1)
	end := (off + n) &^ (PageSize - 1)
	if begin >= end {
		return nil
	}
	for {
		err := unix.Fallocate(int(m.file.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, int64(begin), int64(end-begin))
		switch {
		case err == nil:
			return nil
		case !errors.Is(err, unix.EINTR):
			return fmt.Errorf("guest RAM: punch a hole of %d bytes at %d: %w", end-begin, begin, err)
		}
	}
}
