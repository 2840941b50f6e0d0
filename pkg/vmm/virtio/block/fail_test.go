package block

import (
	"bytes"
	"encoding/binary"
	"errors"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/config"
	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/virtio"
	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/virtio/queue"
	vt "github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/virtio/virtiotest"
)

// faulty is a ring whose host fails when it is told to.
type faulty struct {
	operations
	refuse, deaf atomic.Bool
	submits      atomic.Int32 // without a failure
}

func (f *faulty) Submit() (int, error) {
	if f.refuse.Load() {
		return f.Drop(), unix.EIO
	}
	n, err := f.operations.Submit()
	f.submits.Add(1)
	return n, err
}

func (f *faulty) Wait() error {
	err := f.operations.Wait()
	if f.deaf.Load() {
		return unix.EIO
	}
	return err
}

// slowDrive is a drive whose reads take until the test writes into a pipe.
type slowDrive struct {
	*guest
	d    *Device
	f    *faulty
	slow *Backing
	disk *Backing // what it has in the end
	pipe *os.File
}

func newSlowDrive(t *testing.T) (*slowDrive, []byte) {
	needURing(t)
	d, data := drive(t, 4096, config.Drive{DriveID: "root", IOEngine: config.IOAsync})
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { w.Close() })
	s := &slowDrive{d: d, f: &faulty{operations: d.async.ring}, slow: &Backing{file: r, fd: int(r.Fd()), sectors: 1 << 20}, pipe: w}
	d.async.ring = s.f
	s.disk = d.Swap(s.slow)
	s.guest = start(t, d)
	return s, data
}

// read asks for a sector, and gives where its status will be.
func (s *slowDrive) read() (status vt.Span) { return s.ask(typeIn) }

func (s *slowDrive) ask(typ uint32) (status vt.Span) {
	s.TB.Helper()
	h, buf, status := s.Arena.Alloc(headerSize), s.Arena.Alloc(SectorSize), s.Arena.Alloc(1)
	binary.LittleEndian.PutUint32(s.Bytes(h), typ)
	s.Bytes(status)[0] = 0xff
	if _, ok := s.Rings[0].Add([]vt.Span{h}, []vt.Span{buf, status}); !ok {
		s.TB.Fatal("no descriptors")
	}
	s.Rings[0].Kick()
	return status
}

func (s *slowDrive) write(n int) {
	s.TB.Helper()
	if _, err := s.pipe.Write(bytes.Repeat([]byte{0xaa}, n)); err != nil {
		s.TB.Fatal(err)
	}
}

func (s *slowDrive) await(what string, ok func() bool) {
	s.TB.Helper()
	for begin := time.Now(); !ok(); time.Sleep(time.Millisecond) {
		if time.Since(begin) > vt.Timeout {
			s.TB.Fatalf("not within %s: %s", vt.Timeout, what)
		}
	}
}

// TestHostFails: whatever of io_uring fails, the drive stops serving and says so once; a reset waits for what the kernel still has, and
// nothing is written to guest memory after it. Then the drive is as good as new.
func TestHostFails(t *testing.T) {
	for _, tt := range []struct {
		name     string
		inflight int // requests before the failure
		fail     func(s *slowDrive)
		left     int32 // of them, with the kernel
	}{
		{"a request is not taken", 2, func(s *slowDrive) {
			s.f.refuse.Store(true)
			s.read()
		}, 2},
		{"the rest of a request is not taken", 2, func(s *slowDrive) {
			s.f.refuse.Store(true)
			s.write(100)
		}, 1},
		{"nobody tells of results", 2, func(s *slowDrive) {
			s.f.deaf.Store(true)
			s.f.Wake()
		}, 2},
		{"nothing of it works", 2, func(s *slowDrive) {
			s.f.refuse.Store(true)
			s.f.deaf.Store(true)
			s.read()
		}, 2},
		{"the driver breaks its queue", 1, func(s *slowDrive) {
			s.Rings[0].SetAvail(30000)
			s.Rings[0].Kick()
		}, 1},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel() // most of it is waiting
			s, data := newSlowDrive(t)
			e := s.d.async
			var statuses []vt.Span
			for i := range tt.inflight {
				statuses = append(statuses, s.read())
				s.await("the request is with the kernel", func() bool { return s.f.submits.Load() > int32(i) && e.pending.Load() == int32(i+1) })
			}
			tt.fail(s)
			select {
			case err := <-s.Broken:
				if !strings.Contains(err.Error(), "drive root: ") {
					t.Errorf("broken: %v", err)
				}
			case <-time.After(vt.Timeout):
				t.Fatal("nobody was told")
			}
			s.await("what the kernel has is counted", func() bool { return e.pending.Load() == tt.left })
			s.ask(typeGetID) // which needs no io_uring
			s.read()
			s.WantBlocked(s.Rings[0])
			if n := e.pending.Load(); n != tt.left {
				t.Errorf("%d requests under way behind the failure, %d before", n, tt.left)
			}

			for range 2 {
				if err := s.d.Reset(); !errors.Is(err, virtio.ErrBusy) {
					t.Fatalf("reset with requests under way: %v, want %v", err, virtio.ErrBusy)
				}
			}
			if err := s.d.Activate(virtio.Activation{Queues: []*queue.Queue{e.q}}); !errors.Is(err, virtio.ErrBusy) {
				t.Fatalf("activated with requests under way: %v", err)
			}
			s.write(SectorSize * int(tt.left))
			s.await("reset", func() bool { return s.d.Reset() == nil })
			mem := s.Mem.Regions()[0].Mem
			after := bytes.Clone(mem)
			if n := e.pending.Load(); n != 0 || s.slow.busy != 0 || len(e.free) != QueueSize {
				t.Errorf("%d requests under way after the reset, %d at the file, %d places", n, s.slow.busy, len(e.free))
			}
			for _, st := range statuses {
				if got := s.Bytes(st)[0]; got != 0xff {
					t.Errorf("an abandoned request has status %d", got)
				}
			}
			s.write(4 * SectorSize) // for whoever is still there
			time.Sleep(50 * time.Millisecond)
			if !bytes.Equal(mem, after) {
				t.Error("guest memory has changed after the reset")
			}
			if n := s.d.counts.EventFails.Count(); n != 1 || len(s.Broken) != 0 {
				t.Errorf("%d failures are counted, and %d told after the first", n, len(s.Broken))
			}

			s.f.refuse.Store(false)
			s.f.deaf.Store(false)
			s.d.Swap(s.disk).Close()
			s.Activate(s.d.Features())
			s.header, s.status = s.Arena.Alloc(headerSize), s.Arena.Alloc(1)
			buf := s.Arena.Alloc(1024)
			if status, n := s.do(typeIn, 1, nil, []vt.Span{buf}); status != statusOK || n != 1025 || !bytes.Equal(s.Bytes(buf), data[512:1536]) {
				t.Errorf("after the reset: status %d, %d bytes", status, n)
			}
		})
	}
}

// Requests that were begun when the serving ends are dropped by whoever would have submitted them.
func TestDropped(t *testing.T) {
	s, _ := newSlowDrive(t)
	if err := s.d.Reset(); err != nil {
		t.Fatal(err)
	}
	e := s.d.async
	e.over.Store(false) // nobody is there to end anything
	mem := s.Mem.Regions()[0].Mem
	begin := func() (id uint32) {
		sv := s.d.serve(0)
		sv.disk = s.d.begin()
		id = e.free[len(e.free)-1]
		c := queue.Chain{Readable: [][]byte{mem[:16]}, Writable: [][]byte{mem[512:1024], mem[16:17]}}
		if !e.begin(sv, &c, SectorSize) {
			t.Fatal("not begun")
		}
		return id
	}
	begin()
	begin()
	s.f.refuse.Store(true)
	if err := e.submit(); !errors.Is(err, unix.EIO) || !strings.Contains(err.Error(), "2 requests") || e.pending.Load() != 0 {
		t.Errorf("%v, %d under way", err, e.pending.Load())
	}
	// A request goes on, and takes another one with it.
	s.f.refuse.Store(false)
	id := begin()
	if err := e.submit(); err != nil {
		t.Fatal(err)
	}
	s.write(100)
	s.await("100 bytes", func() bool { _, n, ok := e.ring.Next(); return ok && n == 100 })
	begin()
	s.f.refuse.Store(true)
	if _, _, told, err := e.settle(id, 100); told || !errors.Is(err, unix.EIO) || e.pending.Load() != 0 {
		t.Errorf("%v, %v, %d under way", told, err, e.pending.Load())
	}
	s.f.refuse.Store(false)
	begin()
	e.abandon()
	if err := e.submit(); err != queue.ErrStopped || e.pending.Load() != 0 {
		t.Errorf("%v, %d under way", err, e.pending.Load())
	}
	e.reclaim()
	if s.slow.busy != 0 || len(e.free) != QueueSize {
		t.Errorf("%d at the file, %d places", s.slow.busy, len(e.free))
	}
	s.write(SectorSize)
	time.Sleep(20 * time.Millisecond)
	if id, n, ok := e.ring.Next(); ok {
		t.Errorf("request %d was carried out: %d", id, n)
	}
	s.disk.Close()
}
