package main

import (
	"errors"
	"fmt"
	"runtime"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fcshim/containerd-shim-fc-v2/integration/bench/guest/task"
)

// drive is the second one: the first is the root file system.
const drive = "/dev/vdb"

// blockWork is a round of all Readers: from the first operation to the last one's end.
func blockWork(t task.Task) (func(int) (time.Duration, error), error) {
	if t.Readers <= 1 {
		return reader(t)
	}
	begin, ended := make([]chan int, t.Readers), make(chan error, t.Readers)
	for i := range begin {
		round, err := reader(t.Share(i))
		if err != nil {
			return nil, err
		}
		begin[i] = make(chan int)
		go func() {
			runtime.LockOSThread()
			cpus := unix.CPUSet{}
			cpus.Set(i % runtime.NumCPU())
			if err := unix.SchedSetaffinity(0, &cpus); err != nil {
				ended <- err
				return
			}
			ended <- nil
			for n := range begin[i] {
				_, err := round(n)
				ended <- err
			}
		}()
		if err := <-ended; err != nil {
			return nil, err
		}
	}
	return func(n int) (time.Duration, error) {
		began := time.Now()
		for _, c := range begin {
			c <- n
		}
		var err error
		for range begin {
			err = errors.Join(err, <-ended)
		}
		return time.Since(began), err
	}, nil
}

// reader reads or writes the drive past the page cache. Operations one at a time are pread and pwrite; more go through Linux's
// AIO, which for O_DIRECT on a block device returns when they are queued.
func reader(t task.Task) (func(int) (time.Duration, error), error) {
	flags, write := unix.O_RDONLY, t.Work == task.BlockWrite
	if write {
		flags = unix.O_WRONLY
	}
	fd, err := unix.Open(drive, flags|unix.O_DIRECT|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", drive, err)
	}
	buf, err := unix.Mmap(-1, 0, t.Block*t.Depth, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANONYMOUS|unix.MAP_PRIVATE)
	if err != nil {
		return nil, err
	}
	task.Fill(buf) // touches the pages, too
	if t.Depth > 1 {
		q, err := newAIO(fd, t.Depth, write)
		if err != nil {
			return nil, err
		}
		return func(n int) (time.Duration, error) { return q.round(t, buf, n) }, nil
	}
	op := unix.Pread
	if write {
		op = unix.Pwrite
	}
	return func(n int) (time.Duration, error) {
		began := time.Now()
		for i := range t.Operations() {
			off := t.Offset(i)
			if write {
				task.Mark(buf, off/task.Page, n)
			}
			if err := whole(op(fd, buf, int64(off))).of(buf, off); err != nil {
				return 0, err
			}
			if !write {
				if err := task.CheckMarks(buf, off/task.Page, 0); err != nil {
					return 0, err
				}
			}
		}
		took := time.Since(began)
		return took, task.Check(buf, t.Offset(t.Operations()-1)/task.Page, seed(write, n))
	}, nil
}

// seed is that of the data: the host's have 0, each round's its number.
func seed(write bool, n int) int {
	if write {
		return n
	}
	return 0
}
