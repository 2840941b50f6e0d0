package block

import (
	"encoding/binary"

	"golang.org/x/sys/unix"

	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/virtio/queue"
)

// Bounds of a discard or write-zeroes request, which the driver is told. A range is worked off by one system call, or by writes
// of zeros where the host's file system has no such call.
const (
	maxSegments       = 32
	maxDiscardSectors = 256 << 20 / SectorSize
	maxZeroesSectors  = 32 << 20 / SectorSize
	// discardAlignment is the usual block of file systems, in sectors: less frees nothing.
	discardAlignment = 4096 / SectorSize

	segmentSize = 16
	flagUnmap   = 1 << 0
)

// segment is struct virtio_blk_discard_write_zeroes (virtio 1.2 §5.2.6), copied from the guest once.
type segment struct {
	sector  uint64
	sectors uint32
	flags   uint32
}

// loadSegments copies the ranges of a request. It returns false if they are none, too many, or not whole.
func (s *server) loadSegments(c *queue.Chain) bool {
	size := c.ReadableLen() - headerSize
	if size <= 0 || size%segmentSize != 0 || size > maxSegments*segmentSize {
		s.segments = s.segments[:0]
		return false
	}
	n, skip := 0, headerSize
	for _, b := range c.Readable {
		k := min(skip, len(b))
		skip -= k
		n += copy(s.ranges[n:size], b[k:])
	}
	s.segments = s.segments[:0]
	for p := s.ranges[:n]; len(p) >= segmentSize; p = p[segmentSize:] {
		s.segments = append(s.segments, segment{
			sector:  binary.LittleEndian.Uint64(p),
			sectors: binary.LittleEndian.Uint32(p[8:]),
			flags:   binary.LittleEndian.Uint32(p[12:]),
		})
	}
	return true
}

// checkSegments says what is wrong with the ranges, before any of them is touched: statusOK for nothing.
func (s *server) checkSegments(limit uint32, flags uint32) byte {
	for _, g := range s.segments {
		if g.flags&^flags != 0 {
			return statusUnsup // virtio 1.2 §5.2.6.2
		}
		if g.sectors > limit || g.sector > s.disk.sectors || uint64(g.sectors) > s.disk.sectors-g.sector {
			return statusIOErr
		}
	}
	if len(s.segments) == 0 {
		return statusIOErr
	}
	return statusOK
}

// discard frees what the host's file system can free. It is a hint: where there is no such thing, nothing is done.
func (s *server) discard(q ring) (byte, error) {
	if status := s.checkSegments(maxDiscardSectors, 0); status != statusOK {
		return status, nil
	}
	for _, g := range s.segments {
		if q.Stopped() {
			return statusIOErr, queue.ErrStopped
		}
		switch err := s.allocate(unix.FALLOC_FL_PUNCH_HOLE, g); err {
		case nil, unix.EOPNOTSUPP, unix.EINVAL: // EINVAL: smaller than a block of the host's device
		default:
			return statusIOErr, nil
		}
	}
	return statusOK, nil
}

// writeZeroes makes the ranges read as zeros. Space is freed only where the driver says that it may be.
func (s *server) writeZeroes(q ring) (byte, error) {
	if status := s.checkSegments(maxZeroesSectors, flagUnmap); status != statusOK {
		return status, nil
	}
	for _, g := range s.segments {
		if q.Stopped() {
			return statusIOErr, queue.ErrStopped
		}
		if g.flags&flagUnmap != 0 && s.allocate(unix.FALLOC_FL_PUNCH_HOLE, g) == nil || s.allocate(unix.FALLOC_FL_ZERO_RANGE, g) == nil {
			continue
		}
		if status, err := s.writeZeros(q, g); status != statusOK || err != nil {
			return status, err
		}
	}
	if s.writeThrough {
		return s.sync(), nil
	}
	return statusOK, nil
}

// allocate is fallocate(2), which never makes the file longer.
func (s *server) allocate(mode uint32, g segment) error {
	if g.sectors == 0 {
		return nil
	}
	for {
		err := s.fallocate(s.disk.fd, mode|unix.FALLOC_FL_KEEP_SIZE, int64(g.sector*SectorSize), int64(g.sectors)*SectorSize)
		if err != unix.EINTR {
			return err
		}
	}
}

// zerosSize is what writeZeros writes at a time, in bytes.
const zerosSize = 256 << 10

// writeZeros is for file systems that know no better way.
func (s *server) writeZeros(q ring, g segment) (byte, error) {
	if s.zeros == nil {
		s.zeros = make([]byte, zerosSize)
	}
	off, left := int64(g.sector*SectorSize), int(g.sectors)*SectorSize
	for left > 0 {
		if q.Stopped() {
			return statusIOErr, queue.ErrStopped
		}
		n, err := unix.Pwrite(s.disk.fd, s.zeros[:min(left, zerosSize)], off)
		switch {
		case err == unix.EINTR:
		case err != nil || n == 0:
			return statusIOErr, nil
		default:
			off, left = off+int64(n), left-n
		}
	}
	return statusOK, nil
}
