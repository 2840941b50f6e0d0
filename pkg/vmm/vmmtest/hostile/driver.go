package hostile

import (
	"encoding/binary"
	"fmt"
)

// Registers of virtio-mmio (virtio 1.2 §4.2.2) and bits of the status (§2.1).
const (
	regMagic             = 0x000
	regDeviceID          = 0x008
	regDeviceFeatures    = 0x010
	regDeviceFeaturesSel = 0x014
	regDriverFeatures    = 0x020
	regDriverFeaturesSel = 0x024
	regQueueSel          = 0x030
	regQueueNumMax       = 0x034
	regQueueNum          = 0x038
	regQueueReady        = 0x044
	regQueueNotify       = 0x050
	regInterruptACK      = 0x064
	regStatus            = 0x070
	regQueueDesc         = 0x080 // low half; the high one follows
	regQueueDriver       = 0x090
	regQueueDevice       = 0x0a0
	regConfig            = 0x100

	statusAcknowledge = 1
	statusDriver      = 2
	statusDriverOK    = 4
	statusFeaturesOK  = 8

	descNext     = 1
	descWrite    = 2
	descIndirect = 4

	featureVersion1 = 1 << 32
)

// Driver is an honest driver, the simplest there is: a request is out at a time on each queue.
type Driver struct {
	g      *Guest
	dev    *Device
	queues []honest
}

// honest is a queue of a Driver: parts of its area.
type honest struct {
	desc, avail, used uint32
	buffers           uint32
	count             uint16
	in                []byte
}

const (
	honestSize   = 8 // descriptors of a queue
	honestBytes  = 0x10000
	honestBuffer = 0x8000 // for each direction, but for the rings
)

// Reset resets a device and waits for the end of that. A device whose host holds up a request ends it later, and says so.
func (g *Guest) Reset(d *Device) error {
	var err error
	waited := g.until(fmt.Sprintf("reset of the device at window %d", d.Window), func() bool {
		if err = g.run(0, script{{opWrite32, d.reg(regStatus), 0, 0}, {opRead32, d.reg(regStatus), 0, 0}}); err != nil {
			return true
		}
		return g.result(1) == 0
	})
	if err != nil {
		return err
	}
	return waited
}

// Drive resets a device and starts it in an orderly way. It accepts no features of the device's, so it is told how many
// queues there are without any. One Driver may be in use at a time: reset its device behind it.
func (g *Guest) Drive(d *Device, queues int) (*Driver, error) {
	if err := g.Reset(d); err != nil {
		return nil, err
	}
	w := func(off, v uint32) op { return op{opWrite32, d.reg(off), v, 0} }
	s := script{
		w(regStatus, statusAcknowledge), w(regStatus, statusAcknowledge|statusDriver),
		w(regDriverFeaturesSel, 0), w(regDriverFeatures, 0),
		w(regDriverFeaturesSel, 1), w(regDriverFeatures, featureVersion1>>32),
		w(regStatus, statusAcknowledge|statusDriver|statusFeaturesOK),
	}
	r := &Driver{g: g, dev: d}
	for n := range d.QueueSizes {
		at := driverAddr + uint32(n)*honestBytes
		if n >= min(queues, driverSize/honestBytes) {
			break
		}
		q := honest{desc: at, avail: at + 0x400, used: at + 0x800, buffers: at + 0x1000}
		clear(g.ram[at:][:honestBytes])
		r.queues = append(r.queues, q)
		s = append(s, w(regQueueSel, uint32(n)), w(regQueueNum, honestSize),
			w(regQueueDesc, q.desc), w(regQueueDesc+4, 0), w(regQueueDriver, q.avail), w(regQueueDriver+4, 0),
			w(regQueueDevice, q.used), w(regQueueDevice+4, 0), w(regQueueReady, 1))
	}
	const ready = statusAcknowledge | statusDriver | statusFeaturesOK | statusDriverOK
	s = append(s, w(regStatus, ready), op{opRead32, d.reg(regStatus), 0, 0})
	if err := g.run(0, s); err != nil {
		return nil, err
	}
	if status := g.result(len(s) - 1); status != ready {
		return nil, fmt.Errorf("the device at window %d has status %#x after its start, want %#x", d.Window, status, ready)
	}
	return r, nil
}

// Send makes one request available: out for the device to read, and room for in bytes from it.
func (r *Driver) Send(queue int, out []byte, in int) error {
	q, le := &r.queues[queue], binary.LittleEndian
	if len(out) > honestBuffer-0x1000 || in > honestBuffer-0x1000 {
		return fmt.Errorf("a request of %d and %d bytes: want less than %d", len(out), in, honestBuffer-0x1000)
	}
	ram := r.g.ram
	copy(ram[q.buffers:], out)
	q.in = ram[q.buffers+honestBuffer-0x1000:][:in]
	clear(q.in)
	put := func(i int, addr uint32, n int, flags, next uint16) {
		p := ram[q.desc+uint32(16*i):]
		le.PutUint64(p, uint64(addr))
		le.PutUint32(p[8:], uint32(n))
		le.PutUint16(p[12:], flags)
		le.PutUint16(p[14:], next)
	}
	inAddr := q.buffers + honestBuffer - 0x1000
	switch {
	case in == 0:
		put(0, q.buffers, len(out), 0, 0)
	case len(out) == 0:
		put(0, inAddr, in, descWrite, 0)
	default:
		put(0, q.buffers, len(out), descNext, 1)
		put(1, inAddr, in, descWrite, 0)
	}
	le.PutUint16(ram[q.avail+4+2*uint32(q.count%honestSize):], 0)
	q.count++
	store32(ram[q.avail:], uint32(q.count)<<16)
	return r.g.run(0, script{{opWrite32, r.dev.reg(regQueueNotify), uint32(queue), 0}})
}

// Answer waits until the device has used the queue's request, and gives what it has written.
func (r *Driver) Answer(queue int) ([]byte, error) {
	q := &r.queues[queue]
	used := r.g.ram[q.used:]
	what := fmt.Sprintf("answer of the device at window %d on queue %d", r.dev.Window, queue)
	if err := r.g.until(what, func() bool { return uint16(load32(used)>>16) == q.count }); err != nil {
		return nil, err
	}
	n := binary.LittleEndian.Uint32(used[4+8*uint32((q.count-1)%honestSize)+4:])
	if int64(n) > int64(len(q.in)) {
		return nil, fmt.Errorf("%s: %d bytes in room for %d", what, n, len(q.in))
	}
	return q.in[:n], nil
}

// Do is Send and Answer.
func (r *Driver) Do(queue int, out []byte, in int) ([]byte, error) {
	if err := r.Send(queue, out, in); err != nil {
		return nil, err
	}
	return r.Answer(queue)
}
