package vmm

import (
	"sync"

	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/kvm"
)

// irqLine is a GSI that is raised as an edge.
//
// It is no irqfd: for a line into the IOAPIC, KVM hands an irqfd's event to a kernel worker, where an ioctl acts at once; and it waits
// for a grace period of SRCU for each irqfd before a VM is gone.
type irqLine struct {
	mu       sync.Mutex // an edge is two calls; and the VM's descriptor must not be used once it is closed
	vm       *kvm.VM    // nil after Close
	up, down kvm.IRQLevel
}

func newIRQLine(vm *kvm.VM, gsi uint32) *irqLine {
	return &irqLine{vm: vm, up: kvm.IRQLevel{GSI: gsi, Level: 1}, down: kvm.IRQLevel{GSI: gsi}}
}

// Trigger raises the line. After Close it does nothing.
func (l *irqLine) Trigger() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.vm == nil {
		return
	}
	// These fail for a GSI or a VM that there is not, neither of which can be.
	_ = l.vm.SetIRQLine(&l.up)
	_ = l.vm.SetIRQLine(&l.down)
}

// Close detaches the line from the machine.
func (l *irqLine) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.vm = nil
	return nil
}
