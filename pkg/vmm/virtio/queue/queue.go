// Package queue is a split virtqueue (virtio 1.2 §2.7) as its device sees it, and it trusts nothing: the driver may write
// anything anywhere in the rings at any time. Addresses and sizes are checked once, each descriptor is copied once and
// the copy is used. A ring that breaks the rules yields ErrBroken for ever; nothing the driver writes makes this package
// panic, loop, or allocate without a bound.
//
// The host must be little-endian, as the rings are.
package queue

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/bits"
	"os"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/memory"
)

// MaxSize is the largest number of descriptors in a queue (virtio 1.2 §2.7).
const MaxSize = 32768

// maxChainBytes bounds the bytes of one descriptor chain (virtio 1.2 §2.7.5.2).
const maxChainBytes = 1 << 32

var (
	// ErrBroken says that the driver broke the rules of the ring: the device stops serving the queue.
	ErrBroken = errors.New("broken virtqueue")
	// ErrStopped is what Pop, Wait and Sleep return after Stop.
	ErrStopped = errors.New("virtqueue stopped")
)

// Config is where the driver put a queue.
type Config struct {
	// Size is the number of descriptors: a power of two, 1 to MaxSize.
	Size uint16
	// Desc, Avail and Used are the guest addresses of the three parts, aligned to 16, 2 and 4 bytes.
	Desc, Avail, Used uint64
	// EventIdx says that VIRTIO_F_EVENT_IDX was negotiated.
	EventIdx bool
	// Notify is a non-blocking eventfd that counts the driver's notifications. It belongs to the caller, outlives the
	// Queue, and serves one Queue at a time. Nil: Wait cannot be used.
	Notify *os.File
}

// Queue is a split virtqueue. Pop, Wait, Ask and Sleep form its available side; Push, Stage, Publish and NeedsInterrupt its used side.
// One goroutine may use each side at a time, both sides at once if need be. Stop and Wake may be called at any time.
type Queue struct {
	cfg      Config
	mem      *memory.Memory
	size     uint16
	eventIdx bool
	notify   *os.File
	raw      syscall.RawConn // of notify
	emptyFn  func(fd uintptr) bool

	desc, avail, used []byte

	// Available side.
	lastAvail uint16 // next entry to take
	seenAvail uint16 // driver's index when last read
	quiet     bool   // VIRTQ_USED_F_NO_NOTIFY is set
	broken    error
	scratch   [descSize]byte
	count     [8]byte

	// Used side; Pop reads nextUsed to bound what is in flight.
	nextUsed  atomic.Uint32
	staged    uint32
	signalled uint16

	stopped atomic.Bool
}

// Chain is a descriptor chain: the buffers that the device reads, then those that it writes. The slices are guest memory:
// they change under the reader, and their lengths add up to at most 2^32 bytes. Reuse one Chain for many calls of Pop to
// save allocations.
type Chain struct {
	// Head identifies the chain to Push.
	Head               uint16
	Readable, Writable [][]byte
}

// ReadableLen is the number of bytes that the device may read.
func (c *Chain) ReadableLen() int { return total(c.Readable) }

// WritableLen is the number of bytes that the device may write.
func (c *Chain) WritableLen() int { return total(c.Writable) }

func total(bufs [][]byte) int {
	n := 0
	for _, b := range bufs {
		n += len(b)
	}
	return n
}

// New checks where the driver put the queue and takes it over from its first entry.
func New(mem *memory.Memory, cfg Config) (*Queue, error) {
	if cfg.Size == 0 || cfg.Size > MaxSize || bits.OnesCount16(cfg.Size) != 1 {
		return nil, fmt.Errorf("%w: size %d: want a power of two from 1 to %d", ErrBroken, cfg.Size, MaxSize)
	}
	q := &Queue{cfg: cfg, mem: mem, size: cfg.Size, eventIdx: cfg.EventIdx, notify: cfg.Notify}
	n := uint64(cfg.Size)
	for _, part := range []struct {
		name              string
		dst               *[]byte
		addr, align, size uint64
	}{
		{"descriptor table", &q.desc, cfg.Desc, 16, descSize * n},
		{"available ring", &q.avail, cfg.Avail, 2, 6 + 2*n},
		{"used ring", &q.used, cfg.Used, 4, 6 + 8*n},
	} {
		if part.addr%part.align != 0 {
			return nil, fmt.Errorf("%w: %s at %#x: want a multiple of %d", ErrBroken, part.name, part.addr, part.align)
		}
		s, err := mem.Slice(part.addr, part.size)
		if err != nil {
			return nil, fmt.Errorf("%w: %s of %d bytes at %#x: %w", ErrBroken, part.name, part.size, part.addr, err)
		}
		*part.dst = s
	}
	storeUsedHeader(q.used)
	if q.notify != nil {
		// The last Queue's Stop may have left a deadline in the past.
		if err := q.notify.SetReadDeadline(time.Time{}); err != nil {
			return nil, fmt.Errorf("virtqueue notification: eventfd: %w", err)
		}
		raw, err := q.notify.SyscallConn()
		if err != nil {
			return nil, fmt.Errorf("virtqueue notification: eventfd: %w", err)
		}
		q.raw, q.emptyFn = raw, q.empty
	}
	return q, nil
}

// Next is the available ring's entry that Pop takes next (vhost-user's GET_VRING_BASE). It belongs to the available side.
func (q *Queue) Next() uint16 { return q.lastAvail }

// Config is what New has checked: for a device whose queue another process serves.
func (q *Queue) Config() Config { return q.cfg }

// Size is the number of descriptors.
func (q *Queue) Size() int { return int(q.size) }

// Pop takes the next available chain into c. It returns false when there is none, and an error that wraps ErrBroken when
// the driver broke the rules; then every later call returns that error too. After Stop it returns ErrStopped, so that a
// driver that never lets the queue run dry cannot hold up a reset.
func (q *Queue) Pop(c *Chain) (bool, error) {
	c.Readable, c.Writable = c.Readable[:0], c.Writable[:0]
	if q.broken != nil {
		return false, q.broken
	}
	if q.stopped.Load() {
		return false, ErrStopped
	}
	if q.seenAvail == q.lastAvail {
		if q.seenAvail = load16(q.avail, availIdx); q.seenAvail == q.lastAvail {
			return false, nil
		}
		if q.seenAvail-q.lastAvail > q.size {
			return false, q.fail("available index %d is more than %d ahead of %d", q.seenAvail, q.size, q.lastAvail)
		}
	}
	// A driver that makes a chain available again before it was used could have any number in flight.
	if q.lastAvail-uint16(q.nextUsed.Load()) >= q.size {
		return false, q.fail("more than %d chains in flight", q.size)
	}
	if !q.eventIdx && !q.quiet {
		or32(q.used, usedFlags, usedFlagNoNotify)
		q.quiet = true
	}
	c.Head = load16(q.avail, availRing+2*int(q.lastAvail&(q.size-1)))
	if err := q.walk(c); err != nil {
		c.Readable, c.Writable = c.Readable[:0], c.Writable[:0]
		return false, err
	}
	q.lastAvail++
	return true, nil
}

// walk follows the chain from c.Head (virtio 1.2 §2.7.5).
func (q *Queue) walk(c *Chain) error {
	table, entries := q.desc, uint32(q.size)
	i, indirect := uint32(c.Head), false
	var bytes uint64
	for n := uint16(0); ; {
		if n == q.size {
			return q.fail("chain %d has more than %d descriptors", c.Head, q.size)
		}
		if i >= entries {
			return q.fail("chain %d: descriptor %d of %d", c.Head, i, entries)
		}
		copy(q.scratch[:], table[i*descSize:])
		addr := binary.LittleEndian.Uint64(q.scratch[0:])
		size := binary.LittleEndian.Uint32(q.scratch[8:])
		flags := binary.LittleEndian.Uint16(q.scratch[12:])
		next := binary.LittleEndian.Uint16(q.scratch[14:])

		if flags&descIndirect != 0 {
			if indirect || flags&descNext != 0 {
				return q.fail("chain %d: indirect descriptor nested or followed by another", c.Head)
			}
			if size == 0 || size%descSize != 0 || size/descSize > uint32(q.size) {
				return q.fail("chain %d: indirect table of %d bytes", c.Head, size)
			}
			t, err := q.mem.Slice(addr, uint64(size))
			if err != nil {
				return q.fail("chain %d: indirect table at %#x: outside guest RAM", c.Head, addr)
			}
			table, entries, i, indirect = t, size/descSize, 0, true
			continue
		}
		n++ // the descriptor of an indirect table does not count
		if bytes += uint64(size); bytes > maxChainBytes {
			return q.fail("chain %d has more than 2^32 bytes", c.Head)
		}
		if flags&descWrite == 0 && len(c.Writable) != 0 {
			return q.fail("chain %d: readable descriptor behind a writable one", c.Head)
		}
		if size != 0 {
			b, err := q.mem.Slice(addr, uint64(size))
			if err != nil {
				return q.fail("chain %d: %d bytes at %#x: outside guest RAM", c.Head, size, addr)
			}
			if flags&descWrite != 0 {
				c.Writable = append(c.Writable, b)
			} else {
				c.Readable = append(c.Readable, b)
			}
		}
		if flags&descNext == 0 {
			return nil
		}
		i = uint32(next)
	}
}

func (q *Queue) fail(format string, args ...any) error {
	q.broken = fmt.Errorf("%w: "+format, append([]any{ErrBroken}, args...)...)
	return q.broken
}

// Push gives a chain back to the driver, with the number of bytes that were written to it. Chains may be given back in
// any order. It fails only for a head that Pop cannot have returned.
func (q *Queue) Push(head uint16, written uint32) error {
	if err := q.Stage(head, written); err != nil {
		return err
	}
	q.Publish()
	return nil
}

// Stage is Push for one of several chains that the driver must see together: it sees none of them before Publish.
func (q *Queue) Stage(head uint16, written uint32) error {
	if head >= q.size {
		return fmt.Errorf("used chain %d: queue has %d descriptors", head, q.size)
	}
	e := q.used[usedRing+8*int(uint16(q.nextUsed.Load()+q.staged)&(q.size-1)):]
	binary.LittleEndian.PutUint32(e, uint32(head))
	binary.LittleEndian.PutUint32(e[4:], written)
	q.staged++
	return nil
}

// Publish shows the driver what Stage has prepared.
func (q *Queue) Publish() {
	n := q.staged
	q.staged = 0
	q.nextUsed.Add(n)
	// The index is the upper half of this word: the sum carries nowhere, and leaves the flags to the available side.
	add32(q.used, usedFlags, n<<16)
}

// NeedsInterrupt says whether the driver must be told of the chains pushed since the last call (virtio 1.2 §2.7.7.2).
func (q *Queue) NeedsInterrupt() bool {
	now := uint16(q.nextUsed.Load())
	old := q.signalled
	q.signalled = now
	if now == old {
		return false
	}
	if !q.eventIdx {
		return load16(q.avail, availFlags)&availFlagNoInterrupt == 0
	}
	// The index went out by a sequentially consistent operation, so this load cannot pass it.
	event := load16(q.avail, availRing+2*int(q.size))
	return now-event-1 < now-old
}

// Wait blocks until a chain is available. It returns ErrStopped after Stop, os.ErrClosed once the eventfd is closed, and
// the ring's error if it is broken. The driver is asked for notifications only while Wait sleeps.
func (q *Queue) Wait() error {
	for {
		if q.broken != nil {
			return q.broken
		}
		if q.stopped.Load() {
			return ErrStopped
		}
		if q.seenAvail != q.lastAvail {
			return nil
		}
		if q.Ask() {
			return nil
		}
		if q.notify == nil {
			return fmt.Errorf("virtqueue without eventfd: %w", os.ErrInvalid)
		}
		if _, err := q.notify.Read(q.count[:]); err != nil {
			if q.stopped.Load() {
				return ErrStopped
			}
			return fmt.Errorf("waiting for the driver's notification: %w", err)
		}
	}
}

// Ask has the driver notify the device of the next chain, and returns true if there is one already. It belongs to the available
// side; Wait does it by itself.
func (q *Queue) Ask() bool {
	if q.seenAvail != q.lastAvail {
		return true
	}
	// First ask, then look again: a driver that did not see the request has made its chain visible before.
	if q.eventIdx {
		store16(q.used, usedRing+8*int(q.size), q.lastAvail)
	} else if q.quiet {
		and32(q.used, usedFlags, ^uint32(usedFlagNoNotify))
		q.quiet = false
	}
	return load16(q.avail, availIdx) != q.lastAvail
}

// Stopped says whether Stop was called: for devices whose requests take long.
func (q *Queue) Stopped() bool { return q.stopped.Load() }

// Stop ends Wait, Sleep and Pop, now and for ever. The eventfd stays open for the next Queue, which must not be made before Stop returned.
func (q *Queue) Stop() {
	if q.stopped.Swap(true) || q.notify == nil {
		return
	}
	// A deadline in the past wakes the reader; the only failure is a closed file, whose reader is awake too.
	_ = q.notify.SetReadDeadline(time.Unix(1, 0))
}
