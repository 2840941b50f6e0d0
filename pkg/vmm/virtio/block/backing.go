package block

import (
	"errors"
	"fmt"
	"os"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// Backing is what a drive's sectors are on: an open file or block device of the host.
type Backing struct {
	file    *os.File
	fd      int
	sectors uint64
	busy    int // requests at work on it; guarded by Device.mu
}

// Close is for a backing that no Device owns.
func (b *Backing) Close() error { return b.file.Close() }

// Open opens a backing for the drive, as New does for the first one. It may be called from any goroutine, and takes as long as
// the host's file system does.
func (d *Device) Open(path string) (*Backing, error) {
	b, err := openBacking(path, d.readOnly)
	if err != nil {
		return nil, fmt.Errorf("drive %q: path_on_host %q: %w", d.id, path, err)
	}
	return b, nil
}

// Swap puts the drive on b, which the device owns from here on: requests that have not begun go there, and the last one that
// has is waited for by nobody. The capacity changes with it: the caller sees to it that the driver does not read half of that,
// and tells it. The caller closes the backing that Swap returns, which nothing uses any more, without a lock and where nobody waits:
// a close takes as long as the host's file system does. It is nil where a request is still at work on it.
func (d *Device) Swap(b *Backing) *Backing {
	d.mu.Lock()
	defer d.mu.Unlock()
	old := d.backing
	d.setBacking(b)
	if old.busy > 0 {
		return nil // end closes it
	}
	return old
}

// begin gives the backing for one request, until end.
func (d *Device) begin() *Backing {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.backing.busy++
	return d.backing
}

func (d *Device) end(b *Backing) {
	d.mu.Lock()
	b.busy--
	unused := b.busy == 0 && b != d.backing
	d.mu.Unlock()
	if unused {
		go b.Close() // the next request does not wait for it
	}
}

func openBacking(path string, readOnly bool) (*Backing, error) {
	flags := os.O_RDWR
	if readOnly {
		flags = os.O_RDONLY
	}
	// Without O_NONBLOCK a FIFO would block here.
	f, err := os.OpenFile(path, flags|unix.O_NONBLOCK, 0)
	if err != nil {
		var pe *os.PathError
		if errors.As(err, &pe) {
			err = pe.Err // the caller names the path
		}
		return nil, err
	}
	size, err := sizeOf(f)
	if err == nil && size < SectorSize {
		err = fmt.Errorf("size %d: want at least %d bytes: %w", size, SectorSize, errdefs.ErrInvalidArgument)
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	b := &Backing{file: f, fd: int(f.Fd()), sectors: size / SectorSize}
	// io_uring would take the flag for a wish not to wait for the disk.
	if err := unix.SetNonblock(b.fd, false); err != nil {
		f.Close()
		return nil, err
	}
	return b, nil
}

func sizeOf(f *os.File) (uint64, error) {
	fi, err := f.Stat()
	switch {
	case err != nil:
		return 0, err
	case fi.Mode().IsRegular():
		return uint64(fi.Size()), nil
	case fi.Mode()&os.ModeType == os.ModeDevice:
		return blockDeviceSize(f)
	}
	return 0, fmt.Errorf("%v: want a regular file or a block device: %w", fi.Mode().Type(), errdefs.ErrInvalidArgument)
}
