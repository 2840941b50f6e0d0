package memory

import (
	"errors"
	"unsafe"

	"golang.org/x/sys/unix"
)

// guard is the least that is kept unmapped on either side of guest RAM, in bytes: an access that runs out of it by whatever mistake
// of ours, or the kernel's on our behalf, fails instead of meeting somebody else's memory.
const guard = HugePageSize

// reservation is a piece of the process's address space, and all that is mapped in it.
type reservation struct {
	addr unsafe.Pointer
	size uintptr
}

// unmap gives the address space back.
//
// Precondition: nothing uses memory in it any more. A second call does nothing.
func (r *reservation) unmap() error {
	if r.addr == nil {
		return nil
	}
	err := unix.MunmapPtr(r.addr, r.size)
	r.addr = nil
	return err
}

// mapGuarded maps size bytes of a file, for reading and writing, between two guards, at a multiple of HugePageSize so that huge pages
// can be used. mem is that; unmap the reservation, not mem.
//
// Precondition: size is a multiple of the file's page size. mem is outside the Go heap, and only valid until unmap.
func mapGuarded(fd int, offset int64, size uintptr, flags int) (mem []byte, r reservation, err error) {
	r.size = size + 2*guard + HugePageSize
	if r.addr, err = unix.MmapPtr(-1, 0, nil, r.size, unix.PROT_NONE, unix.MAP_PRIVATE|unix.MAP_ANON|unix.MAP_NORESERVE); err != nil {
		return nil, reservation{}, err
	}
	at := unsafe.Add(r.addr, guard+int(-uintptr(r.addr)&(HugePageSize-1)))
	// MAP_FIXED: of the reservation, only what is ours.
	if _, err := unix.MmapPtr(fd, offset, at, size, unix.PROT_READ|unix.PROT_WRITE, flags|unix.MAP_FIXED); err != nil {
		return nil, reservation{}, errors.Join(err, r.unmap())
	}
	return unsafe.Slice((*byte)(at), size), r, nil
}
