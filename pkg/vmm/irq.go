package vmm

import (
	"encoding/binary"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/kvm"
)

// irqLine is a GSI behind an eventfd: a write raises it as an edge, without an exit.
type irqLine struct {
	f   *os.File
	one [8]byte
}

func newIRQLine(vm *kvm.VM, gsi uint32) (*irqLine, error) {
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("GSI %d: eventfd: %w", gsi, err)
	}
	l := &irqLine{f: os.NewFile(uintptr(fd), "irqfd")}
	binary.NativeEndian.PutUint64(l.one[:], 1)
	if err := vm.Irqfd(l.f, gsi); err != nil {
		l.f.Close()
		return nil, fmt.Errorf("GSI %d: %w", gsi, err)
	}
	return l, nil
}

// Trigger raises the line. After Close it does nothing.
func (l *irqLine) Trigger() {
	// KVM empties the counter at every write, so it neither overflows nor blocks.
	_, _ = l.f.Write(l.one[:])
}

// Close detaches the line from the machine.
func (l *irqLine) Close() error { return l.f.Close() }
