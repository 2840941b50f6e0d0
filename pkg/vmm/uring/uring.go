// Package uring is as much of io_uring (io_uring(7)) as a device needs that reads and writes files: operations go in, results come out, and
// an eventfd tells of them. It knows no device. It must never write to memory that its caller did not name, nor lose a result: the
// caller sees to it that there are never more operations under way than New was told.
package uring

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// Operations (enum io_uring_op).
const (
	opReadv  = 1
	opWritev = 2
	opFsync  = 3
)

// Sizes and offsets of the kernel's structures (linux/io_uring.h).
const (
	sqeSize    = 64
	cqeSize    = 16
	paramsSize = 120

	offSQRing = 0
	offSQEs   = 0x10000000

	registerEventfd = 4
	// maxTries is how often Submit tries again, a millisecond later, when the host has no memory.
	maxTries      = 1000
	fsyncDatasync = 1

	// cqEventfdDisabled in the completion ring's flags is an application's word that it needs no eventfd (Linux 5.8).
	cqEventfdDisabled = 1 << 0

	// featSingleMmap: both rings are in one mapping; featNoDrop: no result is lost; featSubmitStable: what an operation points to need
	// last only until Submit returns. Linux 5.5 has all of them.
	featSingleMmap   = 1 << 0
	featNoDrop       = 1 << 1
	featSubmitStable = 1 << 2
	featWanted       = featSingleMmap | featNoDrop | featSubmitStable
)

// ErrUnusable is wrapped when the host's kernel has no io_uring for this process.
var ErrUnusable = errors.New("no io_uring")

// Ring is a pair of rings. One goroutine may prepare and submit operations, and another one take their results, at the same time. Mute and
// Wake may be called from any goroutine.
type Ring struct {
	fd      int
	rings   []byte // both of them
	sqes    []byte
	entries uint32
	event   *os.File
	count   [8]byte

	sqHead, sqTail, cqHead, cqTail *atomic.Uint32
	cqFlags                        *atomic.Uint32 // nil before Linux 5.8
	sqMask, cqMask                 uint32
	cqes                           []byte

	tail     uint32 // prepared
	prepared uint32 // and not submitted
}

// New makes a ring for up to so many operations at once: a power of two, up to 4096.
func New(entries uint32) (_ *Ring, err error) {
	var p [paramsSize]byte
	fd, err := setup(entries, &p)
	if err != nil {
		return nil, fmt.Errorf("%w: io_uring_setup: %w", ErrUnusable, err)
	}
	r := &Ring{fd: fd, entries: entries}
	defer func() {
		if err != nil {
			err = errors.Join(err, r.Close())
		}
	}()
	u32 := func(off int) uint32 { return binary.NativeEndian.Uint32(p[off:]) }
	if f := u32(20); f&featWanted != featWanted {
		return nil, fmt.Errorf("%w: features %#x: want %#x (Linux 5.5)", ErrUnusable, f, featWanted)
	}
	sqEntries, cqEntries := u32(0), u32(4)
	sqOff, cqOff := p[40:80], p[80:120]
	at := func(offsets []byte, i int) uint32 { return binary.NativeEndian.Uint32(offsets[4*i:]) }
	array, cqes := at(sqOff, 6), at(cqOff, 5)
	size := max(array+4*sqEntries, cqes+cqeSize*cqEntries)
	if r.rings, err = unix.Mmap(fd, offSQRing, int(size), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_POPULATE); err != nil {
		return nil, fmt.Errorf("io_uring: mmap: %w", err)
	}
	if r.sqes, err = unix.Mmap(fd, offSQEs, int(sqEntries*sqeSize), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_POPULATE); err != nil {
		return nil, fmt.Errorf("io_uring: mmap: %w", err)
	}
	r.sqHead, r.sqTail = word(r.rings, at(sqOff, 0)), word(r.rings, at(sqOff, 1))
	r.cqHead, r.cqTail = word(r.rings, at(cqOff, 0)), word(r.rings, at(cqOff, 1))
	if off := at(cqOff, 6); off != 0 {
		r.cqFlags = word(r.rings, off)
	}
	r.sqMask, r.cqMask = sqEntries-1, cqEntries-1
	r.cqes = r.rings[cqes:][:cqEntries*cqeSize]
	for i := range sqEntries {
		binary.NativeEndian.PutUint32(r.rings[array+4*i:], i) // entry i is always in place i
	}
	efd, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("io_uring: eventfd: %w", err)
	}
	r.event = os.NewFile(uintptr(efd), "io_uring")
	if err := register(fd, registerEventfd, int32(efd)); err != nil {
		return nil, fmt.Errorf("io_uring: eventfd: %w", err)
	}
	return r, nil
}

// Fsync prepares fdatasync(2).
func (r *Ring) Fsync(fd int, id uint64) { r.prepare(opFsync, fd, 0, 0, 0, fsyncDatasync, id) }

// prepare fills the next entry of the submission ring.
func (r *Ring) prepare(op byte, fd int, addr, off uint64, n uint32, flags uint32, id uint64) {
	e := r.sqes[(r.tail&r.sqMask)*sqeSize:][:sqeSize]
	clear(e)
	e[0] = op
	binary.NativeEndian.PutUint32(e[4:], uint32(fd))
	binary.NativeEndian.PutUint64(e[8:], off)
	binary.NativeEndian.PutUint64(e[16:], addr)
	binary.NativeEndian.PutUint32(e[24:], n)
	binary.NativeEndian.PutUint32(e[28:], flags)
	binary.NativeEndian.PutUint64(e[32:], id)
	r.tail++
	r.prepared++
}

// Submit starts what has been prepared, and does not wait for it. After an error, the last dropped ones of it have not been started, and
// never will be.
func (r *Ring) Submit() (dropped int, err error) {
	r.sqTail.Store(r.tail)
	for tries := 0; r.prepared > 0; {
		n, err := enter(r.fd, r.prepared)
		if n == 0 && err == nil {
			err = unix.EAGAIN // which no kernel does, and must not make this endless
		}
		switch {
		case err == nil:
			r.prepared -= min(n, r.prepared)
		case err == unix.EINTR:
		case (err == unix.EAGAIN || err == unix.EBUSY) && tries < maxTries:
			tries++
			time.Sleep(time.Millisecond) // the host has no memory at the moment
		default:
			return r.Drop(), fmt.Errorf("io_uring_enter: %w", err)
		}
	}
	return 0, nil
}

// Drop takes back what has been prepared and not been started, and says how much that was. The kernel looks at the ring in Submit's calls
// only, so that it never starts it.
func (r *Ring) Drop() int {
	n := r.prepared
	r.tail, r.prepared = r.tail-n, 0
	r.sqTail.Store(r.tail)
	return int(n)
}

// Wait sleeps until there may be results, or Wake has been called.
func (r *Ring) Wait() error {
	_, err := r.event.Read(r.count[:])
	return err
}

// Wake ends a Wait, at once or, if none is under way, the next. It may be called from any goroutine.
func (r *Ring) Wake() {
	// The counter cannot overflow; a closed file has no sleeper.
	_, _ = r.event.Write(binary.NativeEndian.AppendUint64(nil, 1))
}

// Mute has Wait not be told of results, or be told again, for who takes them itself after Submit. One that comes in the very moment in which
// it is unmuted may still be told to nobody: look with Next then, and call Wake if some are missing. Before Linux 5.8 nothing is ever muted.
func (r *Ring) Mute(on bool) {
	switch {
	case r.cqFlags == nil:
	case on:
		r.cqFlags.Store(cqEventfdDisabled) // there is no other flag
	default:
		r.cqFlags.Store(0)
	}
}

// Next takes a result: a number of bytes, or an error's number below zero.
func (r *Ring) Next() (id uint64, result int32, ok bool) {
	head := r.cqHead.Load()
	if head == r.cqTail.Load() {
		return 0, 0, false
	}
	e := r.cqes[(head&r.cqMask)*cqeSize:]
	id, result = binary.NativeEndian.Uint64(e), int32(binary.NativeEndian.Uint32(e[8:]))
	r.cqHead.Store(head + 1)
	return id, result, true
}

// Close ends the ring. No operation may be under way.
func (r *Ring) Close() error {
	var errs []error
	for _, m := range [][]byte{r.rings, r.sqes} {
		if m != nil {
			errs = append(errs, unix.Munmap(m))
		}
	}
	if r.event != nil {
		errs = append(errs, r.event.Close())
	}
	return errors.Join(append(errs, unix.Close(r.fd))...)
}
