package vmm

import (
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/legacy"
)

// generation is the VM generation id: a random number in guest RAM that is another one whenever the machine goes on from a copy of its past,
// so that the guest does not use the same random numbers, leases or transaction ids twice. The VMM never reads it back.
// Microsoft's "Virtual Machine Generation ID" describes it; a guest finds it by ACPI (boot.ACPI).
type generation struct {
	// id is where the guest reads it.
	id  []byte
	irq legacy.IRQ
}

// renew writes a new id. The guest is to be told by its interrupt, unless it has not run yet.
func (g *generation) renew() error {
	id := make([]byte, len(g.id)) // not into guest RAM at once: a signal may cut it short
	for n := 0; n < len(id); {
		m, err := unix.Getrandom(id[n:], 0)
		if err != nil && err != unix.EINTR {
			return fmt.Errorf("generation id: getrandom: %w", err)
		}
		n += max(m, 0)
	}
	copy(g.id, id)
	return nil
}

// newGeneration tells the guest that it is a copy: to be called before its vCPUs go on from a snapshot.
func (m *Machine) newGeneration() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.canUpdate("a new generation"); err != nil {
		return err
	}
	if err := m.generation.renew(); err != nil {
		return err
	}
	m.generation.irq.Trigger()
	return nil
}
