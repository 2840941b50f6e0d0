package block

import (
	"encoding/binary"

	"golang.org/x/sys/unix"

	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/virtio/queue"
)

// Bounds of a discard or write-zeroes request, which the driver is told. A segment is worked off by system calls for maxPiece, or by
// writes of zeros where the host's file system has no such call.
const (
	maxSegments       = 32
	maxDiscardSectors = 256 << 20 / SectorSize
	maxZeroesSectors  = 32 << 20 / SectorSize
	// discardAlignment is the usual block of file systems, in sectors: less frees nothing.
	discardAlignment = 4096 / SectorSize
	// maxPiece bounds the bytes of one fallocate(2), so that a reset does not wait for a whole large segment.
	maxPiece = 16 << 20

	segmentSize = 16
	flagUnmap   = 1 << 0
)

// segment is struct virtio_blk_discard_write_zeroes (virtio 1.2 §5.2.6), copied from the guest once.
type segment struct {
	sector  uint64
	sectors uint32
	flags   uint32
}

// loadSegments copies a request's segments to s.segments: none of a request that has not any, or that the driver may not send,
// nor if they are too many or not whole.
func (s *server) loadSegments(c *queue.Chain) {
	s.segments = s.segments[:0]
	switch typ := binary.LittleEndian.Uint32(s.header[:]); {
	case typ == typeDiscard && s.canDiscard, typ == typeWriteZeroes && s.canZero:
	default:
		return
	}
	size := c.ReadableLen() - headerSize
	if size <= 0 || size%segmentSize != 0 || size > maxSegments*segmentSize {
		return
	}
	n, skip := 0, headerSize
	for _, b := range c.Readable {
		k := min(skip, len(b))
		skip -= k
		n += copy(s.raw[n:size], b[k:])
	}
	for p := s.raw[:n]; len(p) >= segmentSize; p = p[segmentSize:] {
		s.segments = append(s.segments, segment{
			sector:  binary.LittleEndian.Uint64(p),
			sectors: binary.LittleEndian.Uint32(p[8:]),
			flags:   binary.LittleEndian.Uint32(p[12:]),
		})
	}
}

// checkSegments says what is wrong with the segments, before any of them is touched: statusOK for nothing.
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
		switch err := s.allocate(q, unix.FALLOC_FL_PUNCH_HOLE, g); err {
		case nil, unix.EOPNOTSUPP, unix.EINVAL: // EINVAL: smaller than a block of the host's device
		case queue.ErrStopped:
			return statusIOErr, err
		default:
			return statusIOErr, nil
		}
	}
	return statusOK, nil
}

// writeZeroes makes the segments read as zeros. Space is freed only where the driver says that it may be.
func (s *server) writeZeroes(q ring) (byte, error) {
	if status := s.checkSegments(maxZeroesSectors, flagUnmap); status != statusOK {
		return status, nil
	}
	for _, g := range s.segments {
		if status, err := s.zero(q, g); status != statusOK || err != nil {
			return status, err
		}
	}
	if s.writeThrough {
		return s.sync(), nil
	}
	return statusOK, nil
}

// zero makes a segment read as zeros, in the best way that the host's file system knows.
func (s *server) zero(q ring, g segment) (byte, error) {
	modes := [...]uint32{unix.FALLOC_FL_PUNCH_HOLE, unix.FALLOC_FL_ZERO_RANGE}
	try := modes[:]
	if g.flags&flagUnmap == 0 {
		try = modes[1:]
	}
	for _, mode := range try {
		switch err := s.allocate(q, mode, g); err {
		case nil:
			return statusOK, nil
		case queue.ErrStopped:
			return statusIOErr, err
		}
	}
	return s.overwrite(q, g)
}

// allocate is fallocate(2) in pieces, which never makes the file longer. It fails with queue.ErrStopped between two of them.
func (s *server) allocate(q ring, mode uint32, g segment) error {
	off, left := int64(g.sector*SectorSize), int64(g.sectors)*SectorSize
	for left > 0 {
		if q.Stopped() {
			return queue.ErrStopped
		}
		n := min(left, maxPiece)
		switch err := s.fallocate(s.disk.fd, mode|unix.FALLOC_FL_KEEP_SIZE, off, n); err {
		case nil:
			off, left = off+n, left-n
		case unix.EINTR:
		default:
			return err
		}
	}
	return nil
}

// zerosSize is what overwrite writes at a time, in bytes.
const zerosSize = 256 << 10

// overwrite writes zeros to a segment: for file systems that know no better way.
func (s *server) overwrite(q ring, g segment) (byte, error) {
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
