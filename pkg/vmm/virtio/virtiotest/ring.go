// Package virtiotest is the driver's side of virtio, for tests of queues and devices without a guest. It must never be
// imported by anything but tests.
package virtiotest

import (
	"encoding/binary"
	"fmt"
	"os"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/memory"
	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/virtio/queue"
)

// Descriptor flags (virtio 1.2 §2.7.5).
const (
	Next     = 1
	Write    = 2
	Indirect = 4
)

// Span is a piece of guest memory.
type Span struct {
	Addr uint64
	Len  uint32
}

// Ring is a driver's virtqueue. One goroutine at a time may use it.
type Ring struct {
	Mem *memory.Memory
	Cfg queue.Config

	free     []uint16
	chains   [][]uint16 // descriptors of each chain by head
	avail    uint16
	kicked   uint16
	lastUsed uint16
	used     chan struct{} // an interrupt came
	timer    *time.Timer
}

// RingBytes is how much guest memory a ring of the given size takes.
func RingBytes(size uint16) uint64 {
	n := uint64(size)
	return (16*n + 6 + 2*n + 3 + 6 + 8*n + 4095) &^ 4095
}

// NewRing lays an empty ring out at the page-aligned address base.
func NewRing(mem *memory.Memory, base uint64, size uint16, eventIdx bool, notify *os.File) *Ring {
	n := uint64(size)
	r := &Ring{Mem: mem, used: make(chan struct{}, 1), chains: make([][]uint16, size)}
	r.Cfg = queue.Config{Size: size, EventIdx: eventIdx, Notify: notify, Desc: base, Avail: base + 16*n}
	r.Cfg.Used = (r.Cfg.Avail + 6 + 2*n + 3) &^ 3
	clear(r.at(base, RingBytes(size)))
	for i := range size {
		r.free = append(r.free, size-1-i)
	}
	return r
}

func (r *Ring) at(addr, n uint64) []byte {
	b, err := r.Mem.Slice(addr, n)
	if err != nil {
		panic(fmt.Sprintf("test uses %d bytes at %#x: %v", n, addr, err))
	}
	return b
}

// Bytes is the guest memory of s.
func (r *Ring) Bytes(s Span) []byte { return r.at(s.Addr, uint64(s.Len)) }

// SetDesc writes descriptor i as it is told, valid or not.
func (r *Ring) SetDesc(i uint16, addr uint64, n uint32, flags, next uint16) {
	PutDesc(r.at(r.Cfg.Desc+16*uint64(i), 16), addr, n, flags, next)
}

// PutDesc writes a descriptor to b.
func PutDesc(b []byte, addr uint64, n uint32, flags, next uint16) {
	binary.LittleEndian.PutUint64(b, addr)
	binary.LittleEndian.PutUint32(b[8:], n)
	binary.LittleEndian.PutUint16(b[12:], flags)
	binary.LittleEndian.PutUint16(b[14:], next)
}

// Add makes a chain available; it returns false when there are too few descriptors. It does not notify the device.
func (r *Ring) Add(readable, writable []Span) (uint16, bool) {
	n := len(readable) + len(writable)
	if n == 0 || n > len(r.free) {
		return 0, false
	}
	ids := r.free[len(r.free)-n:]
	r.free = r.free[:len(r.free)-n]
	head := ids[0]
	r.chains[head] = append(r.chains[head][:0], ids...)
	ids = r.chains[head]
	for i, id := range ids {
		s, flags := Span{}, uint16(0)
		if i < len(readable) {
			s = readable[i]
		} else {
			s, flags = writable[i-len(readable)], Write
		}
		next := uint16(0)
		if i+1 < n {
			next, flags = ids[i+1], flags|Next
		}
		r.SetDesc(id, s.Addr, s.Len, flags, next)
	}
	r.Publish(head)
	return head, true
}

// AddIndirect makes a chain available through an indirect table at table.
func (r *Ring) AddIndirect(table uint64, readable, writable []Span) (uint16, bool) {
	n := len(readable) + len(writable)
	if len(r.free) == 0 {
		return 0, false
	}
	head := r.free[len(r.free)-1]
	r.free = r.free[:len(r.free)-1]
	r.chains[head] = append(r.chains[head][:0], head)
	t := r.at(table, 16*uint64(n))
	for i := range n {
		s, flags := Span{}, uint16(0)
		if i < len(readable) {
			s = readable[i]
		} else {
			s, flags = writable[i-len(readable)], Write
		}
		if i+1 < n {
			flags |= Next
		}
		PutDesc(t[16*i:], s.Addr, s.Len, flags, uint16(i+1))
	}
	r.SetDesc(head, table, uint32(16*n), Indirect, 0)
	r.Publish(head)
	return head, true
}

// Publish puts heads into the available ring, whatever they are.
func (r *Ring) Publish(heads ...uint16) {
	for _, h := range heads {
		store16(r.at(r.Cfg.Avail+4+2*uint64(r.avail&(r.Cfg.Size-1)), 2), h)
		r.avail++
	}
	r.SetAvail(r.avail)
}

// SetAvail sets the available index, whatever it is.
func (r *Ring) SetAvail(idx uint16) {
	r.avail = idx
	store16(r.at(r.Cfg.Avail+2, 2), idx)
}

// ShouldKick says whether the device asked for a notification of what was published since the last call.
func (r *Ring) ShouldKick() bool {
	old := r.kicked
	r.kicked = r.avail
	if r.avail == old {
		return false
	}
	if !r.Cfg.EventIdx {
		return load16(r.at(r.Cfg.Used, 2))&1 == 0
	}
	event := load16(r.at(r.Cfg.Used+4+8*uint64(r.Cfg.Size), 2))
	return r.avail-event-1 < r.avail-old
}

// Kick notifies the device if it asked for that.
func (r *Ring) Kick() {
	if r.ShouldKick() {
		Kick(r.Cfg.Notify)
	}
}

var one = [8]byte{1}

// Kick adds one to an eventfd.
func Kick(f *os.File) {
	if _, err := f.Write(one[:]); err != nil {
		panic(fmt.Sprintf("test kicks a queue: %v", err))
	}
}

// Used takes the next used chain.
func (r *Ring) Used() (head uint16, written uint32, ok bool) {
	if load16(r.at(r.Cfg.Used+2, 2)) == r.lastUsed {
		return 0, 0, false
	}
	e := r.at(r.Cfg.Used+4+8*uint64(r.lastUsed&(r.Cfg.Size-1)), 8)
	id := binary.LittleEndian.Uint32(e)
	if id >= uint32(r.Cfg.Size) {
		panic(fmt.Sprintf("device used chain %d", id))
	}
	r.lastUsed++
	head = uint16(id)
	r.free = append(r.free, r.chains[head]...)
	r.chains[head] = r.chains[head][:0]
	return head, binary.LittleEndian.Uint32(e[4:]), true
}

// Arm asks for an interrupt at the next used chain; it returns false if there is one already.
func (r *Ring) Arm() bool {
	if r.Cfg.EventIdx {
		store16(r.at(r.Cfg.Avail+4+2*uint64(r.Cfg.Size), 2), r.lastUsed)
	}
	return load16(r.at(r.Cfg.Used+2, 2)) == r.lastUsed
}

// SuppressInterrupts sets or clears VIRTQ_AVAIL_F_NO_INTERRUPT.
func (r *Ring) SuppressInterrupts(on bool) {
	v := uint16(0)
	if on {
		v = 1
	}
	store16(r.at(r.Cfg.Avail, 2), v)
}

// Interrupt wakes whoever sleeps on Interrupted.
func (r *Ring) Interrupt() {
	select {
	case r.used <- struct{}{}:
	default:
	}
}

// Interrupted yields once after each Interrupt or after several.
func (r *Ring) Interrupted() <-chan struct{} { return r.used }

// Eventfd makes a non-blocking eventfd that lives as long as the test.
func Eventfd(tb testing.TB) *os.File {
	tb.Helper()
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		tb.Fatal(err)
	}
	f := os.NewFile(uintptr(fd), "eventfd")
	tb.Cleanup(func() { f.Close() })
	return f
}

// Memory makes guest RAM that lives as long as the test.
func Memory(tb testing.TB, size uint64) *memory.Memory {
	tb.Helper()
	m, err := memory.New(size, memory.HostPages)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { m.Close() })
	return m
}

// Arena hands guest memory out, never to take it back.
type Arena struct{ next atomic.Uint64 }

// NewArena starts at addr.
func NewArena(addr uint64) *Arena {
	a := new(Arena)
	a.next.Store(addr)
	return a
}

// Alloc returns n bytes at a multiple of 64.
func (a *Arena) Alloc(n uint32) Span {
	size := (uint64(n) + 63) &^ 63
	return Span{Addr: a.next.Add(size) - size, Len: n}
}
