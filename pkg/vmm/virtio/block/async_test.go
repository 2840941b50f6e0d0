package block

import (
	"bytes"
	"encoding/binary"
	"errors"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/config"
	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/virtio/queue"
	vt "github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/virtio/virtiotest"
)

// TestManyAtOnce fills the queue again and again with writes, reads and flushes, and resets the device in the middle of it.
func TestManyAtOnce(t *testing.T) {
	needURing(t)
	const count, size = 80, 2048 // three descriptors each
	d, _ := drive(t, count*size, config.Drive{CacheType: "Writeback", IOEngine: config.IOAsync})
	g := start(t, d)
	for round := range byte(10) {
		a := vt.NewArena(8 << 20)
		fill := func(typ uint32) (statuses, bufs []vt.Span) {
			for i := range count {
				h, s, b := a.Alloc(headerSize), a.Alloc(1), a.Alloc(size)
				binary.LittleEndian.PutUint32(g.Bytes(h), typ)
				binary.LittleEndian.PutUint64(g.Bytes(h)[8:], uint64(i*size/SectorSize))
				g.Bytes(s)[0] = 0xff
				out, in := []vt.Span{h}, []vt.Span{s}
				switch typ {
				case typeOut:
					copy(g.Bytes(b), bytes.Repeat([]byte{round + byte(i)}, size))
					out = append(out, b)
				case typeIn:
					clear(g.Bytes(b))
					in = []vt.Span{b, s}
				}
				if _, ok := g.Rings[0].Add(out, in); !ok {
					t.Fatal("no descriptors")
				}
				statuses, bufs = append(statuses, s), append(bufs, b)
			}
			g.Rings[0].Kick()
			return statuses, bufs
		}
		wait := func(statuses []vt.Span) {
			t.Helper()
			for range statuses {
				g.WaitUsed(g.Rings[0])
			}
			for i, s := range statuses {
				if got := g.Bytes(s)[0]; got != statusOK {
					t.Fatalf("request %d: status %d", i, got)
				}
			}
		}
		statuses, _ := fill(typeOut)
		wait(statuses)
		statuses, _ = fill(typeFlush)
		wait(statuses)
		statuses, bufs := fill(typeIn)
		wait(statuses)
		for i, b := range bufs {
			if !bytes.Equal(g.Bytes(b), bytes.Repeat([]byte{round + byte(i)}, size)) {
				t.Fatalf("round %d: request %d read something else", round, i)
			}
		}
		fill(typeOut)
		if err := d.Reset(); err != nil {
			t.Fatal(err)
		}
		if n := d.async.pending.Load(); n != 0 || d.backing.busy != 0 || len(d.async.free) != QueueSize {
			t.Fatalf("%d requests under way after a reset, %d at the file, %d places", n, d.backing.busy, len(d.async.free))
		}
		g.Activate(d.Features() &^ (featureFlush * uint64(round%2)))
	}
}

// TestSettle gives an engine the results that a host seldom has: parts, interruptions, errors, more than was asked for.
func TestSettle(t *testing.T) {
	needURing(t)
	d, data := drive(t, 8192, config.Drive{IOEngine: config.IOAsync})
	e := d.async
	mem := vt.Memory(t, 1<<20).Regions()[0].Mem
	begin := func() uint32 {
		c := queue.Chain{Head: 7, Readable: [][]byte{mem[:16]}, Writable: [][]byte{mem[4096:5120], mem[8192:8704], mem[16:17]}}
		s := d.serve(0)
		s.header = [headerSize]byte{8: 2}
		s.disk = d.begin()
		id := e.free[len(e.free)-1]
		if !e.begin(s, &c, 1536) {
			t.Fatal("not begun")
		}
		return id
	}
	// result is taken from the kernel, once the operation has been begun.
	result := func() int32 {
		if err := e.submit(); err != nil {
			t.Fatal(err)
		}
		for begin := time.Now(); time.Since(begin) < vt.Timeout; time.Sleep(100 * time.Microsecond) {
			if _, n, ok := e.ring.Next(); ok {
				return n
			}
		}
		t.Fatal("no result")
		return 0
	}
	id := begin()
	if n := result(); n != 1536 {
		t.Fatalf("%d bytes", n)
	}
	clear(mem[4096:8704])
	copy(mem[4096:], data[1024:1724])
	for _, n := range []int32{700, -int32(unix.EINTR), -int32(unix.EAGAIN)} {
		if _, _, ended, err := e.settle(id, n); ended || err != nil {
			t.Fatalf("after %d: %v, %v", n, ended, err)
		}
		if got := result(); got != 836 {
			t.Fatalf("the rest is %d bytes", got)
		}
	}
	if head, n, ended, err := e.settle(id, 836); head != 7 || n != 1537 || !ended || err != nil || mem[16] != statusOK {
		t.Errorf("chain %d, %d bytes, %v, %v, status %d", head, n, ended, err, mem[16])
	}
	if !bytes.Equal(append(mem[4096:5120:5120], mem[8192:8704]...), data[1024:2560]) {
		t.Error("read something else")
	}
	for _, n := range []int32{0, -int32(unix.EIO), 1537} {
		id := begin()
		result()
		if _, written, ended, err := e.settle(id, n); written != 1 || !ended || err != nil || mem[16] != statusIOErr {
			t.Errorf("result %d: %d bytes, %v, %v, status %d", n, written, ended, err, mem[16])
		}
	}
	// After a reset has begun, nobody is told.
	id = begin()
	result()
	mem[16] = 0xee
	e.abandon()
	if _, _, told, err := e.settle(id, 700); told || err != nil || mem[16] != 0xee {
		t.Errorf("%v, %v, status %#x", told, err, mem[16])
	}
	if e.pending.Load() != 0 || d.backing.busy != 0 {
		t.Errorf("%d under way, %d at the file", e.pending.Load(), d.backing.busy)
	}
}

// TestAsyncNeedsItsDrive: an error of the drive leaves no ring behind.
func TestAsyncNeedsItsDrive(t *testing.T) {
	before, _ := os.ReadDir("/proc/self/fd")
	if _, err := New(config.Drive{DriveID: "a", PathOnHost: "/nonexistent", IOEngine: config.IOAsync}); !errors.Is(err, os.ErrNotExist) {
		t.Error(err)
	}
	d, _ := drive(t, 4096, config.Drive{IOEngine: config.IOSync})
	if d.async != nil || d.Close() != nil {
		t.Error("an engine that nobody asked for")
	}
	if after, _ := os.ReadDir("/proc/self/fd"); len(after) != len(before) {
		t.Errorf("%d files are open, %d were", len(after), len(before))
	}
}

// TestBegunBeforeWait: a request that waits for tokens does not hold up the one before it, which came with the same notification.
func TestBegunBeforeWait(t *testing.T) { engines(t, testBegunBeforeWait) }

func testBegunBeforeWait(t *testing.T, engine string) {
	d, _ := drive(t, 4096, config.Drive{IOEngine: engine, RateLimiter: &config.RateLimiter{Ops: &config.TokenBucket{Size: 1, RefillTime: 1e9}}})
	g := start(t, d)
	for range 2 {
		if _, ok := g.Rings[0].Add([]vt.Span{g.Arena.Alloc(headerSize)}, []vt.Span{g.Arena.Alloc(512), g.Arena.Alloc(1)}); !ok {
			t.Fatal("no descriptors")
		}
	}
	g.Rings[0].Kick()
	g.WaitUsed(g.Rings[0])
	g.WantBlocked(g.Rings[0])
}
