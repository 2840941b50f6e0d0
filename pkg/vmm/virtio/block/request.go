package block

import (
	"encoding/binary"

	"golang.org/x/sys/unix"

	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/ratelimit"
	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/virtio/iov"
	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/virtio/queue"
)

// Requests and their results (virtio 1.2 §5.2.6).
const (
	headerSize = 16
	idSize     = 20

	typeIn    = 0
	typeOut   = 1
	typeFlush = 4
	typeGetID = 8

	typeDiscard     = 11
	typeWriteZeroes = 13

	statusOK    = 0
	statusIOErr = 1
	statusUnsup = 2
)

// maxChunk bounds the bytes of one system call, so that a reset does not wait for a whole large request.
const maxChunk = 4 << 20

// server is a device at work.
type server struct {
	*Device
	// writeThrough: the driver sends no flushes, so each write must be stable when it is done.
	writeThrough bool
	vec          iov.Vec
	header       [headerSize]byte
	disk         *Backing // for the request in work
	// later begins a request that ends some other time, if it can. Nil: all of them end in handle.
	later func(c *queue.Chain, space int) bool

	// Whether the driver accepted discards and write-zeroes, and what one of these needs: its segments, as they came and read.
	canDiscard, canZero bool
	raw                 [maxSegments * segmentSize]byte
	segments            []segment
	zeros               []byte // made by the first who needs them
	fallocate           func(fd int, mode uint32, off, n int64) error
}

// ring is the part of a queue that a request looks at while it is in work.
type ring interface {
	ratelimit.Sleeper
	Stopped() bool
}

// handle carries out the request in c and returns the number of bytes written to c. It fails only when stopped halfway:
// then the request is abandoned; or with errUnderway.
func (s *server) handle(c *queue.Chain, q ring) (uint32, error) {
	space := c.WritableLen()
	if space == 0 {
		s.counts.InvalidReqs.Inc()
		return 0, nil // no room for a status
	}
	n := 0
	for _, b := range c.Readable {
		n += copy(s.header[n:], b)
	}
	bytes := uint64(0)
	if n == headerSize {
		s.loadSegments(c)
		bytes = s.cost(c, space-1)
	}
	if err := s.limiter.Await(q, bytes); err != nil {
		return 0, err
	}
	status, written := byte(statusIOErr), 0
	if n == headerSize {
		s.disk = s.begin()
		if s.later != nil && s.later(c, space-1) {
			return 0, errUnderway
		}
		timer := s.stopwatch()
		var err error
		status, written, err = s.do(c, space-1, q)
		timer.Stop()
		s.end(s.disk)
		if err != nil {
			return 0, err
		}
		s.count(binary.LittleEndian.Uint32(s.header[:]), status, c.ReadableLen()-headerSize, written)
	} else {
		s.counts.InvalidReqs.Inc()
	}
	last := c.Writable[len(c.Writable)-1]
	last[len(last)-1] = status
	// More than 2^32-1 cannot be told.
	return uint32(min(written+1, 1<<32-1)), nil
}

// cost is the number of bytes that a request takes from the rate limiter: those that it moves, if all is well. Its
// segments have been loaded, if it has any.
func (s *server) cost(c *queue.Chain, space int) uint64 {
	switch binary.LittleEndian.Uint32(s.header[:]) {
	case typeIn:
		return uint64(space)
	case typeOut:
		return uint64(max(c.ReadableLen()-headerSize, 0))
	case typeWriteZeroes:
		// They are written, at worst.
		n := uint64(0)
		for _, g := range s.segments {
			n += uint64(min(g.sectors, maxZeroesSectors)) * SectorSize
		}
		return n
	}
	return 0
}

func (s *server) do(c *queue.Chain, space int, q ring) (status byte, written int, err error) {
	sector := binary.LittleEndian.Uint64(s.header[8:])
	switch binary.LittleEndian.Uint32(s.header[:]) {
	case typeIn:
		if status, err = s.transfer(c.Writable, 0, space, sector, (*iov.Vec).Preadv, q); status == statusOK {
			written = space
		}
		return status, written, err
	case typeOut:
		if s.readOnly {
			return statusIOErr, 0, nil
		}
		status, err = s.transfer(c.Readable, headerSize, c.ReadableLen()-headerSize, sector, (*iov.Vec).Pwritev, q)
		if status == statusOK && s.writeThrough {
			status = s.sync()
		}
		return status, 0, err
	case typeFlush:
		if s.writeback {
			return s.sync(), 0, nil
		}
		return statusOK, 0, nil
	case typeGetID:
		var id [idSize]byte
		copy(id[:], s.id)
		return statusOK, scatter(c.Writable, id[:min(idSize, space)]), nil
	}
	return s.doSegments(q)
}

// doSegments carries out what a request asks for that moves no data, if the driver may ask for it.
func (s *server) doSegments(q ring) (status byte, written int, err error) {
	switch typ := binary.LittleEndian.Uint32(s.header[:]); {
	case typ == typeDiscard && s.canDiscard:
		status, err = s.discard(q)
	case typ == typeWriteZeroes && s.canZero:
		status, err = s.writeZeroes(q)
	default:
		status = statusUnsup
	}
	return status, 0, err
}

// inside says whether n bytes from a sector on are whole sectors of the drive.
func (s *server) inside(n int, sector uint64) bool {
	return n%SectorSize == 0 && sector <= s.disk.sectors && uint64(n/SectorSize) <= s.disk.sectors-sector
}

// transfer moves n bytes of bufs behind skip from or to the drive.
func (s *server) transfer(bufs [][]byte, skip, n int, sector uint64, call func(*iov.Vec, int, int64) (int, error), q ring) (byte, error) {
	if !s.inside(n, sector) {
		return statusIOErr, nil
	}
	off := int64(sector * SectorSize)
	for n > 0 {
		s.vec.Set(bufs, skip, min(n, maxChunk))
		for s.vec.Len() > 0 {
			if q.Stopped() {
				return statusIOErr, queue.ErrStopped
			}
			m, err := call(&s.vec, s.disk.fd, off)
			if err != nil || m == 0 {
				return statusIOErr, nil // no bytes: the file was cut short
			}
			s.vec.Advance(m)
			off, skip, n = off+int64(m), skip+m, n-m
		}
	}
	return statusOK, nil
}

func (s *server) sync() byte {
	if unix.Fdatasync(s.disk.fd) != nil {
		return statusIOErr
	}
	return statusOK
}

// scatter copies p to bufs and returns how much fitted.
func scatter(bufs [][]byte, p []byte) int {
	n := 0
	for _, b := range bufs {
		n += copy(b, p[n:])
	}
	return n
}
