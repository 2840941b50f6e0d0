package hostile

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"time"
)

// ErrLost is wrapped by errors that say that a vCPU has not come to the end of its script.
var ErrLost = errors.New("the guest has not ended its script")

// Guest is the guest's other half: it knows the guest's RAM, and has the vCPUs run scripts. One goroutine may use it.
type Guest struct {
	// Alive says why the guest cannot end its script any more: nil for no reason. Waits ask it now and then.
	Alive func() error
	// Patience bounds each wait for a script and for a device.
	Patience time.Duration

	ram  []byte
	text []byte // the program as it should be
	runs [CPUs]uint32
}

// NewGuest is for a machine that has been started with Kernel, and whose RAM is mapped at ram. It waits until both vCPUs run.
func NewGuest(ram []byte, patience time.Duration, alive func() error) (*Guest, error) {
	g := &Guest{Alive: alive, Patience: patience, ram: ram, text: program()}
	for cpu := range CPUs {
		c := g.control(cpu)
		binary.LittleEndian.PutUint32(c[controlAt:], scriptOf(cpu))
		if err := g.run(cpu, nil); err != nil {
			return nil, fmt.Errorf("start of vCPU %d: %w", cpu, err)
		}
	}
	return g, nil
}

func (g *Guest) control(cpu int) []byte {
	return g.ram[controlAddr+cpu*controlSize:][:controlSize]
}

func scriptOf(cpu int) uint32 { return scriptAddr + uint32(cpu)*scriptSize }

// start has a vCPU begin a script, whose end it adds. The last one must have ended.
func (g *Guest) start(cpu int, s script) {
	s = append(s[:min(len(s), scriptSize/opSize-1)], op{})
	b := g.ram[scriptOf(cpu):]
	for i, o := range s {
		p := b[i*opSize:]
		binary.LittleEndian.PutUint32(p, uint32(o.kind))
		binary.LittleEndian.PutUint32(p[4:], o.addr)
		binary.LittleEndian.PutUint32(p[8:], o.lo)
		binary.LittleEndian.PutUint32(p[12:], o.hi)
	}
	c := g.control(cpu)
	binary.LittleEndian.PutUint32(c[controlAt:], scriptOf(cpu))
	g.runs[cpu]++
	store32(c[controlGo:], g.runs[cpu])
}

// await waits for the end of a script.
func (g *Guest) await(cpu int) error {
	done := g.control(cpu)[controlDone:]
	err := g.until(fmt.Sprintf("vCPU %d", cpu), func() bool { return load32(done) == g.runs[cpu] })
	if err != nil && !errors.Is(err, ErrLost) {
		err = fmt.Errorf("%w: %w", ErrLost, err)
	}
	return err
}

// until waits for f, as long as the guest lives: its end is ErrLost.
func (g *Guest) until(what string, f func() bool) error {
	deadline := time.Now().Add(g.Patience)
	for pause := 20 * time.Microsecond; !f(); pause = min(2*pause, 2*time.Millisecond) {
		if err := g.Alive(); err != nil {
			return fmt.Errorf("%s: %w: %w", what, ErrLost, err)
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("%s: nothing for %s: %w", what, g.Patience, os.ErrDeadlineExceeded)
		}
		time.Sleep(pause)
	}
	return nil
}

func (g *Guest) run(cpu int, s script) error {
	g.start(cpu, s)
	return g.await(cpu)
}

// Shot says whether the guest has had a device write over its program: it cannot be expected to do anything then.
func (g *Guest) Shot() bool { return !bytes.Equal(g.ram[programAddr:][:len(g.text)], g.text) }

// Contains says whether the guest has got hold of p: of bytes that it must not be able to read.
func (g *Guest) Contains(p []byte) bool { return bytes.Contains(g.ram, p) }

// read gives the last op's result after a run of the first vCPU.
func (g *Guest) result(i int) uint32 {
	return binary.LittleEndian.Uint32(g.ram[scriptOf(0)+uint32(i*opSize)+8:])
}

// read reads a 32-bit register.
func (g *Guest) read(addr uint32) (uint32, error) {
	err := g.run(0, script{{kind: opRead32, addr: addr}})
	return g.result(0), err
}

// Device is a virtio device as the guest finds it.
type Device struct {
	// Window is the number of its page of registers.
	Window   int
	Type     uint32
	Features uint64
	// QueueSizes are the largest that the device takes.
	QueueSizes []uint32
}

func (d *Device) reg(off uint32) uint32 { return virtioAddr + uint32(d.Window)*windowSize + off }

// Devices looks for all virtio devices.
func (g *Guest) Devices() ([]Device, error) {
	var found []Device
	for n := range windows {
		d := Device{Window: n}
		magic, err := g.read(d.reg(regMagic))
		if err != nil {
			return nil, err
		}
		if magic != 0x74726976 {
			return found, nil
		}
		s := script{
			{opRead32, d.reg(regDeviceID), 0, 0},
			{opWrite32, d.reg(regDeviceFeaturesSel), 0, 0}, {opRead32, d.reg(regDeviceFeatures), 0, 0},
			{opWrite32, d.reg(regDeviceFeaturesSel), 1, 0}, {opRead32, d.reg(regDeviceFeatures), 0, 0},
		}
		const most = 64 // queues
		for q := range uint32(most) {
			s = append(s, op{opWrite32, d.reg(regQueueSel), q, 0}, op{opRead32, d.reg(regQueueNumMax), 0, 0})
		}
		if err := g.run(0, s); err != nil {
			return nil, err
		}
		d.Type, d.Features = g.result(0), uint64(g.result(2))|uint64(g.result(4))<<32
		for q := range most {
			size := g.result(6 + 2*q)
			if size == 0 {
				break
			}
			d.QueueSizes = append(d.QueueSizes, size)
		}
		found = append(found, d)
	}
	return found, nil
}
