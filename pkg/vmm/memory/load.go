package memory

import (
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// LoadFile copies the n bytes at offset off of f into guest RAM at addr, or fails with ErrRange, io.ErrUnexpectedEOF if f ends
// before, or the host's error. No two calls may overlap, as they move the file position of guest RAM, and no guest may run that looks
// at the memory.
//
// Small pages get the bytes inside the kernel, from page cache to page cache: to read them through the mapping would have each page
// faulted in and cleared first, twice the work. In huge pages the mapping is the shorter way.
func (m *Memory) LoadFile(addr uint64, f *os.File, off, n uint64) error {
	p, err := m.Slice(addr, n)
	if err != nil {
		return err
	}
	for n > 0 && !m.huge {
		k, err := m.send(addr, f, off, n)
		if err != nil {
			break // a file system that cannot splice is read
		}
		if k == 0 {
			return tooShort(f, n)
		}
		addr, off, n = addr+k, off+k, n-k
	}
	k, err := io.ReadFull(io.NewSectionReader(f, int64(off), int64(n)), p[uint64(len(p))-n:])
	switch n -= uint64(k); {
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return tooShort(f, n)
	case err != nil:
		return fmt.Errorf("guest RAM: read %d bytes of %s: %w", n, f.Name(), err)
	}
	return nil
}

func tooShort(f *os.File, n uint64) error {
	return fmt.Errorf("guest RAM: %s ends %d bytes too early: %w", f.Name(), n, io.ErrUnexpectedEOF)
}

// send copies up to n bytes. Slice has accepted the whole range.
func (m *Memory) send(addr uint64, f *os.File, off, n uint64) (uint64, error) {
	for i := range m.regions {
		r := &m.regions[i]
		if addr < r.Addr || addr >= r.End() {
			continue
		}
		ram := int(m.file.Fd())
		if _, err := unix.Seek(ram, int64(r.Offset+addr-r.Addr), io.SeekStart); err != nil {
			return 0, err
		}
		from := int64(off)
		for {
			k, err := unix.Sendfile(ram, int(f.Fd()), &from, int(min(n, 1<<30)))
			if errors.Is(err, unix.EINTR) {
				continue
			}
			return uint64(max(k, 0)), err
		}
	}
	return 0, ErrRange
}
