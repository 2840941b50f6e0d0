package main

import (
	"fmt"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/fcshim/containerd-shim-fc-v2/integration/bench/guest/task"
)

// iocb and ioEvent are Linux's (include/uapi/linux/aio_abi.h), little-endian.
type iocb struct {
	data   uint64
	_, _   uint32 // key, flags of this operation
	opcode uint16
	_      int16 // priority
	fd     uint32
	buf    uint64
	bytes  uint64
	offset int64
	_      uint64
	_, _   uint32 // flags, eventfd
}

type ioEvent struct {
	data, obj uint64
	res, res2 int64
}

const (
	iocbPread  = 0
	iocbPwrite = 1
)

// aio keeps a number of operations on a file under way.
type aio struct {
	ctx    uintptr
	fd     int
	write  bool
	cbs    []iocb
	ptrs   []*iocb
	events []ioEvent
}

// newAIO makes a context for depth operations at a time. Precondition: what prepare is given later stays until the context's end, which
// is the process's.
func newAIO(fd, depth int, write bool) (*aio, error) {
	q := &aio{fd: fd, write: write, cbs: make([]iocb, depth), ptrs: make([]*iocb, 0, depth), events: make([]ioEvent, depth)}
	if _, _, errno := unix.Syscall(unix.SYS_IO_SETUP, uintptr(depth), uintptr(unsafe.Pointer(&q.ctx)), 0); errno != 0 {
		return nil, fmt.Errorf("io_setup: %w", errno)
	}
	return q, nil
}

// prepare makes slot's operation number i of the task. Precondition: slot has none under way, and buf is not memory that moves: it
// is from mmap, and has a block for each slot.
func (q *aio) prepare(t task.Task, buf []byte, slot, i, seed int) {
	b, off := buf[slot*t.Block:][:t.Block], t.Offset(i)
	cb := &q.cbs[slot]
	*cb = iocb{data: uint64(slot), opcode: iocbPread, fd: uint32(q.fd), bytes: uint64(t.Block), offset: int64(off),
		buf: uint64(uintptr(unsafe.Pointer(&b[0])))}
	if q.write {
		cb.opcode = iocbPwrite
		task.Mark(b, off/task.Page, seed)
	}
	q.ptrs = append(q.ptrs, cb)
}

// round does all operations of a task, refilling what has been completed. Precondition: see prepare.
func (q *aio) round(t task.Task, buf []byte, n int) (time.Duration, error) {
	began := time.Now()
	total, next, done := t.Operations(), 0, 0
	for ; next < min(t.Depth, total); next++ {
		q.prepare(t, buf, next, next, n)
	}
	for done < total {
		for len(q.ptrs) > 0 {
			k, _, errno := unix.Syscall(unix.SYS_IO_SUBMIT, q.ctx, uintptr(len(q.ptrs)), uintptr(unsafe.Pointer(&q.ptrs[0])))
			if errno != 0 {
				return 0, fmt.Errorf("io_submit: %w", errno)
			}
			q.ptrs = q.ptrs[:copy(q.ptrs, q.ptrs[k:])]
		}
		k, _, errno := unix.Syscall6(unix.SYS_IO_GETEVENTS, q.ctx, 1, uintptr(len(q.events)), uintptr(unsafe.Pointer(&q.events[0])), 0, 0)
		if errno != 0 && errno != unix.EINTR {
			return 0, fmt.Errorf("io_getevents: %w", errno)
		}
		if errno != 0 {
			continue
		}
		for _, e := range q.events[:k] {
			cb := &q.cbs[e.data]
			if e.res != int64(t.Block) {
				return 0, fmt.Errorf("%d of %d bytes at %d", e.res, t.Block, cb.offset)
			}
			if !q.write {
				if err := task.CheckMarks(buf[int(e.data)*t.Block:][:t.Block], int(cb.offset)/task.Page, 0); err != nil {
					return 0, err
				}
			}
			done++
			if next < total {
				q.prepare(t, buf, int(e.data), next, n)
				next++
			}
		}
	}
	took := time.Since(began)
	for slot := range q.cbs { // what each has read or written last
		if err := task.Check(buf[slot*t.Block:][:t.Block], int(q.cbs[slot].offset)/task.Page, seed(q.write, n)); err != nil {
			return 0, err
		}
	}
	return took, nil
}
