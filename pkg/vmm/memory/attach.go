package memory

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// Area is a piece of guest RAM that another process has made.
type Area struct {
	// Addr is the guest-physical address and Size the length in bytes, Offset where it starts in File: multiples of PageSize.
	Addr, Size, Offset uint64
	File               *os.File
}

// Attach maps guest RAM that another process has made, for a device that is served outside of the VMM. The files may be closed
// afterwards. The areas are as untrusted as who gives them: they must not overlap, and where a file is too short for one, the error says so. A
// file that is shrunk later ends this process by SIGBUS.
func Attach(areas []Area) (_ *Memory, err error) {
	m := &Memory{}
	defer func() {
		if err != nil {
			err = errors.Join(err, m.Close())
		}
	}()
	for i, a := range areas {
		end := a.Addr + a.Size
		if (a.Addr|a.Size|a.Offset)%PageSize != 0 {
			return nil, fmt.Errorf("guest RAM: area %d of %d bytes at %#x, file offset %#x: want multiples of %d", i, a.Size, a.Addr, a.Offset, PageSize)
		}
		if a.Size == 0 || a.Size > MaxSize || end < a.Addr || a.Offset+a.Size < a.Offset {
			return nil, fmt.Errorf("guest RAM: area %d of %d bytes at %#x, file offset %#x: want 1 to %d bytes, within 64 bits", i, a.Size, a.Addr, a.Offset, uint64(MaxSize))
		}
		for j, b := range areas[:i] {
			if a.Addr < b.Addr+b.Size && b.Addr < end {
				return nil, fmt.Errorf("guest RAM: areas %d and %d overlap", j, i)
			}
		}
		// A page beyond the file's end would be a SIGBUS.
		fi, err := a.File.Stat()
		if err != nil {
			return nil, fmt.Errorf("guest RAM: area %d: %w", i, err)
		}
		if size := uint64(fi.Size()); a.Offset+a.Size > size {
			return nil, fmt.Errorf("guest RAM: area %d of %d bytes from %d of a file of %d: want it within the file", i, a.Size, a.Offset, size)
		}
		if err := m.mapRegion(int(a.File.Fd()), a.Addr, a.Offset, a.Size, unix.MAP_SHARED|unix.MAP_NORESERVE); err != nil {
			return nil, err
		}
	}
	return m, nil
}
