package block

import (
	"encoding/binary"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/metrics"
	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/uring"
	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/virtio"
	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/virtio/iov"
	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/virtio/queue"
)

// errUnderway is handle's error for a request that ends some other time.
var errUnderway = errors.New("request under way")

// engine carries out a drive's reads, writes and flushes by io_uring, many at once. One goroutine takes requests from the ring and begins
// them, another one ends them. Requests of other kinds are carried out by the first, one after another.
//
// A flush does not wait for the writes before it: it is for those that the driver has seen end (virtio 1.2 §5.2.6.2).
//
// Where the host fails, or the driver breaks its queue, the serving ends as a whole (fail): nothing more is begun, and what the kernel has
// taken is waited for, by the second goroutine, which thus is the last to end. Until then a reset has not come to its end.
type engine struct {
	d      *Device
	ring   operations
	ending virtio.Ending

	// Of a driver.
	running bool // there is one
	q       *queue.Queue
	irq     virtio.Interrupt
	taker   sync.WaitGroup
	ender   sync.WaitGroup
	failed  atomic.Bool // fail was called
	over    atomic.Bool // nothing is begun, and what is under way is abandoned; set with mu held
	pending atomic.Int32

	mu    sync.Mutex // guards the submission ring, slots and free
	slots [QueueSize]slot
	free  []uint32
	reads int  // have been prepared
	slow  bool // other requests have been, too

	results sync.Mutex // the completion ring

	used sync.Mutex // the queue's used side
}

// operations is a uring.Ring.
type operations interface {
	Readv(fd int, iov []unix.Iovec, off int64, id uint64)
	Writev(fd int, iov []unix.Iovec, off int64, flags uint32, id uint64)
	Fsync(fd int, id uint64)
	Submit() (dropped int, err error)
	Drop() int
	Wait() error
	Wake()
	Mute(on bool)
	Next() (id uint64, result int32, ok bool)
	Close() error
}

// slot is a request under way.
type slot struct {
	head   uint16
	kind   uint32
	flags  uint32 // RWF_
	disk   *Backing
	vec    iov.Vec
	off    int64
	came   int // bytes to be written
	read   int // bytes to be read, of which the driver is told
	timer  metrics.Timer
	status []byte
}

func newEngine(d *Device) (*engine, error) {
	r, err := uring.New(QueueSize)
	if err != nil {
		return nil, fmt.Errorf(`drive %q: io_engine is "Async": want "Sync", or a host of Linux 5.5 or newer that lets this process use io_uring `+
			`(/proc/sys/kernel/io_uring_disabled, seccomp): %w`, d.id, err)
	}
	e := &engine{d: d, ring: r}
	e.reclaim()
	return e, nil
}

// start serves a driver.
func (e *engine) start(a virtio.Activation) error {
	name := fmt.Sprintf("drive %s", e.d.id)
	if a.Queues[0] == nil {
		return fmt.Errorf("%s: driver left the queue disabled", name)
	}
	if err := e.ending.Err(); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	e.q, e.irq, e.running = a.Queues[0], a.Interrupt, true
	e.over.Store(false)
	e.failed.Store(false)
	s := e.d.serve(a.Features)
	s.later = func(c *queue.Chain, space int) bool { return e.begin(s, c, space) }
	e.taker.Go(func() {
		if err := e.take(s); !errors.Is(err, queue.ErrStopped) {
			e.fail(err)
		}
	})
	e.ender.Go(e.endAll)
	return nil
}

// stop abandons what is under way, and waits until the host has let go of guest memory: Device.Reset.
func (e *engine) stop() error {
	if !e.running {
		return e.ending.Err()
	}
	e.running = false
	e.q.Stop()
	return e.ending.Await(func() {
		e.taker.Wait()
		e.abandon()
		e.ender.Wait()
		e.reclaim()
	})
}

// abandon has nothing more begun, and no result told.
func (e *engine) abandon() {
	e.mu.Lock()
	e.over.Store(true)
	e.mu.Unlock()
	e.ring.Wake()
}

// fail ends the serving, and tells the driver, the first time that it is called.
func (e *engine) fail(err error) {
	e.abandon()
	e.q.Stop()
	if !e.failed.Swap(true) {
		e.d.counts.EventFails.Inc()
		e.irq.Broken(fmt.Errorf("drive %s: %w", e.d.id, err))
	}
}

// reclaim gives back what requests have that the host did not take. Nothing is under way.
func (e *engine) reclaim() {
	e.free = e.free[:0]
	for i := range e.slots {
		if d := e.slots[i].disk; d != nil {
			e.d.end(d)
			e.slots[i].disk = nil
		}
		e.free = append(e.free, uint32(i))
	}
}

// take takes requests from the queue until its end.
func (e *engine) take(s *server) error {
	q := e.q
	// A wait for tokens must not hold up what has been begun.
	waiter := patient{q, e}
	var c queue.Chain
	for {
		if err := q.Wait(); err != nil {
			return err
		}
		e.d.counts.QueueEvents.Inc()
		for n := 0; ; n++ {
			ok, err := q.Pop(&c)
			if err == nil && !ok {
				if n == 0 {
					e.d.counts.NoAvailBuffer.Inc()
				}
				break
			}
			var written uint32
			if err == nil {
				written, err = s.handle(&c, waiter)
			}
			if err == errUnderway {
				continue
			}
			if err == nil {
				err = e.push(c.Head, written)
			}
			if err != nil {
				return errors.Join(err, e.submit())
			}
			e.interrupt()
		}
		if err := e.submitAndEnd(); err != nil {
			return err
		}
	}
}

// patient begins what has been prepared before it sleeps.
type patient struct {
	*queue.Queue
	e *engine
}

func (p patient) Sleep(d time.Duration) error {
	if err := p.e.submit(); err != nil {
		return err
	}
	return p.Queue.Sleep(d)
}

// begin prepares a request for which s has a header and a backing. It returns false for one that is to be carried out at once.
func (e *engine) begin(s *server, c *queue.Chain, space int) bool {
	kind := binary.LittleEndian.Uint32(s.header[:])
	sector := binary.LittleEndian.Uint64(s.header[8:])
	bufs, skip, n := c.Writable, 0, space
	switch {
	case kind == typeIn:
	case kind == typeOut && !s.readOnly:
		bufs, skip, n = c.Readable, headerSize, c.ReadableLen()-headerSize
	case kind == typeFlush && s.writeback:
		bufs, n = nil, 0
	default:
		return false
	}
	if kind != typeFlush && (n == 0 || !s.inside(n, sector)) {
		return false
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if len(e.free) == 0 {
		return false // which cannot be: the queue has no more requests
	}
	id := e.free[len(e.free)-1]
	e.free = e.free[:len(e.free)-1]
	last := c.Writable[len(c.Writable)-1]
	o := &e.slots[id]
	o.head, o.kind, o.disk, o.off, o.came, o.read, o.flags = c.Head, kind, s.disk, int64(sector*SectorSize), 0, 0, 0
	o.timer = s.stopwatch()
	o.status = last[len(last)-1:]
	o.vec.Set(bufs, skip, n)
	switch kind {
	case typeIn:
		o.read = n
	case typeOut:
		if o.came = n; s.writeThrough {
			o.flags = unix.RWF_DSYNC
		}
	}
	e.pending.Add(1)
	e.prepare(id)
	return true
}

// prepare puts what is left of a request into the submission ring. The caller holds mu.
func (e *engine) prepare(id uint32) {
	o := &e.slots[id]
	switch o.kind {
	case typeIn:
		e.reads++
		e.ring.Readv(o.disk.fd, o.vec.Rest(), o.off, uint64(id))
		return
	case typeOut:
		e.ring.Writev(o.disk.fd, o.vec.Rest(), o.off, o.flags, uint64(id))
	default:
		e.ring.Fsync(o.disk.fd, uint64(id))
	}
	e.slow = true
}

// submit begins what has been prepared. After an error, which is queue.ErrStopped once the engine is over, what the host has not taken is
// lost with the queue.
func (e *engine) submit() error {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.submitLocked()
}

func (e *engine) submitLocked() error {
	e.reads, e.slow = 0, false
	if e.over.Load() {
		e.pending.Add(-int32(e.ring.Drop()))
		e.ring.Wake() // endAll may have waited for them
		return queue.ErrStopped
	}
	dropped, err := e.ring.Submit()
	if err == nil {
		return nil
	}
	e.pending.Add(-int32(dropped))
	return fmt.Errorf("%d requests: %w", dropped, err)
}

// pause is how often endAll looks for results that nobody tells of.
const pause = 10 * time.Millisecond

// endAll ends requests until the last one after abandon. Whatever fails, it does not return before: the kernel may write to guest memory
// until it has given its result.
func (e *engine) endAll() {
	deaf := false // nobody tells of results; they come all the same
	for {
		ended := false
		for {
			id, result, ok := e.next()
			if !ok {
				break
			}
			if err := e.end(id, result); err != nil && !errors.Is(err, queue.ErrStopped) {
				e.fail(err)
			}
			ended = true
		}
		if ended {
			e.interrupt()
		}
		if e.over.Load() && e.pending.Load() == 0 {
			return
		}
		if deaf {
			time.Sleep(pause)
		} else if err := e.ring.Wait(); err != nil {
			deaf = true
			e.fail(fmt.Errorf("waiting for io_uring: %w", err))
		}
	}
}

// end takes a result, which may be a part of what was asked for: then the rest is begun.
func (e *engine) end(id uint32, result int32) error {
	head, written, told, err := e.settle(id, result)
	if !told {
		return err
	}
	return e.push(head, written)
}

// settle does end's work but for the queue's. told is false for a request that goes on, or is abandoned.
func (e *engine) settle(id uint32, result int32) (head uint16, written uint32, told bool, err error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	over := e.over.Load()
	o := &e.slots[id]
	status, again := byte(statusIOErr), result == -int32(unix.EINTR) || result == -int32(unix.EAGAIN)
	switch {
	case o.kind == typeFlush && result == 0:
		status = statusOK
	case o.kind != typeFlush && result > 0 && int(result) <= o.vec.Len():
		o.vec.Advance(int(result))
		o.off += int64(result)
		status, again = statusOK, o.vec.Len() > 0
	}
	if again && !over {
		e.prepare(id)
		return 0, 0, false, e.submitLocked()
	}
	head, written = o.head, 1
	if status == statusOK {
		written = uint32(min(o.read+1, 1<<32-1))
	}
	if !over {
		o.timer.Stop()
		e.d.count(o.kind, status, o.came, o.read)
		o.status[0] = status
	}
	e.d.end(o.disk)
	o.vec.Clear()
	o.disk, o.status = nil, nil
	e.free = append(e.free, id)
	e.pending.Add(-1)
	return head, written, !over, nil
}

func (e *engine) push(head uint16, written uint32) error {
	e.used.Lock()
	defer e.used.Unlock()
	return e.q.Push(head, written)
}

func (e *engine) interrupt() {
	e.used.Lock()
	defer e.used.Unlock()
	if e.q.NeedsInterrupt() {
		e.irq.Queue()
	}
}
