package vmm

import (
	"encoding/binary"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/config"
	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/legacy"
)

// generation tells a guest that its machine goes on from a copy of its past, so that it does not use the same random numbers, leases or
// transaction ids twice, and knows that time has jumped. A guest finds both ways by ACPI (boot.ACPI). Nothing that it has written there is read.
type generation struct {
	// id is a random number in guest RAM, another one in each copy (Microsoft, "Virtual Machine Generation ID").
	id []byte
	// clock is VMClock's page in guest RAM (linux/vmclock-abi.h). It says nothing about time but that it was disrupted.
	clock []byte
	// count is how often the machine has gone on from a copy: a part of what a snapshot must keep.
	count uint64
	irq   legacy.IRQ
}

// VMClock's fields: their offsets, and what is in those that do not change.
const (
	clockMagicAt      = 0
	clockSizeAt       = 4
	clockVersionAt    = 8
	clockCounterAt    = 10
	clockSequenceAt   = 12 // even: what follows is consistent
	clockDisruptionAt = 16
	clockFlagsAt      = 24
	clockGenerationAt = 104

	clockMagic     = 0x4b4c4356 // "VCLK"
	clockVersion   = 1
	clockNoCounter = 0xff        // no time is told
	clockFlags     = 1<<8 | 1<<9 // it counts generations, and a change is notified
)

// write puts a new id and the present count into guest RAM. No vCPU runs: a guest never reads half of it.
func (g *generation) write() error {
	id := make([]byte, len(g.id)) // not into guest RAM at once: a signal may cut it short
	for n := 0; n < len(id); {
		m, err := unix.Getrandom(id[n:], 0)
		if err != nil && err != unix.EINTR {
			return fmt.Errorf("generation id: getrandom: %w", err)
		}
		n += max(m, 0)
	}
	copy(g.id, id)
	le := binary.LittleEndian
	le.PutUint32(g.clock[clockMagicAt:], clockMagic)
	le.PutUint32(g.clock[clockSizeAt:], uint32(len(g.clock)))
	le.PutUint16(g.clock[clockVersionAt:], clockVersion)
	g.clock[clockCounterAt] = clockNoCounter
	le.PutUint32(g.clock[clockSequenceAt:], uint32(2*g.count))
	le.PutUint64(g.clock[clockDisruptionAt:], g.count)
	le.PutUint64(g.clock[clockFlagsAt:], clockFlags)
	le.PutUint64(g.clock[clockGenerationAt:], g.count)
	return nil
}

// newGeneration tells the guest of a paused machine that it is a copy; it learns of that as soon as its vCPUs run again.
func (m *Machine) newGeneration() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.State() != config.Paused {
		return m.wrongState("a new generation")
	}
	m.generation.count++
	if err := m.generation.write(); err != nil {
		return err
	}
	m.generation.irq.Trigger()
	return nil
}
