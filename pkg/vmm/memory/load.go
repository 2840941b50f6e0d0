package memory

import (
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// LoadFile copies the n bytes at offset off of f into guest RAM at addr, or fails with ErrRange, io.ErrUnexpectedEOF if f ends
// before, or the host's error. The bytes go from the page cache into the memfd inside the kernel: half the work of reading
// them through the mapping, which would have each page faulted in and cleared first. No two calls may overlap, as they
// move the memfd's file position, and no guest may run that looks at the memory.
func (m *Memory) LoadFile(addr uint64, f *os.File, off, n uint64) error {
	p, err := m.Slice(addr, n)
	if err != nil || n == 0 {
		return err
	}
	for n > 0 {
		k, err := m.send(addr, f, off, n)
		if err != nil {
			// A file system that cannot splice is read.
			if _, err := io.ReadFull(io.NewSectionReader(f, int64(off), int64(n)), p[uint64(len(p))-n:]); err != nil {
				return fmt.Errorf("guest RAM: read %d bytes at %d of %s: %w", n, off, f.Name(), err)
			}
			return nil
		}
		if k == 0 {
			return fmt.Errorf("guest RAM: %s ends %d bytes too early: %w", f.Name(), n, io.ErrUnexpectedEOF)
		}
		addr, off, n = addr+k, off+k, n-k
	}
	return nil
}

// send copies up to n bytes. Slice has accepted the whole range.
func (m *Memory) send(addr uint64, f *os.File, off, n uint64) (uint64, error) {
	for i := range m.regions {
		r := &m.regions[i]
		if addr < r.Addr || addr >= r.End() {
			continue
		}
		memfd := int(m.file.Fd())
		if _, err := unix.Seek(memfd, int64(r.Offset+addr-r.Addr), io.SeekStart); err != nil {
			return 0, err
		}
		from := int64(off)
		for {
			k, err := unix.Sendfile(memfd, int(f.Fd()), &from, int(min(n, 1<<30)))
			if errors.Is(err, unix.EINTR) {
				continue
			}
			return uint64(max(k, 0)), err
		}
	}
	return 0, ErrRange
}
