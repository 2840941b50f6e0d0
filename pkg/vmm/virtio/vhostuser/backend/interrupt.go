package backend

import (
	"sync"

	"golang.org/x/sys/unix"

	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/virtio"
	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/virtio/vhostuser/wire"
)

// interrupt is the device's way to the front-end, and so to the driver.
type interrupt struct {
	s *Session

	// calls are the eventfds of the queues' interrupts, each once: a front-end may have one for all queues, as there is one interrupt for all
	// here. Who changes them, or closes one, holds raising.
	calls   []int
	raising sync.RWMutex

	mu      sync.Mutex
	channel int   // the front-end's ear for the back-end's own messages; -1 for none
	broken  error // the first reason of Broken
}

var _ virtio.Interrupt = (*interrupt)(nil)

// Queue raises the queues' interrupt. They are raw descriptors: in Go's poller each event would wake this process, too.
func (i *interrupt) Queue() {
	i.raising.RLock()
	defer i.raising.RUnlock()
	one := [8]byte{1}
	for _, fd := range i.calls {
		_, _ = unix.Write(fd, one[:]) // full, or closed at the other end: nobody looks there
	}
}

// Config tells the front-end to ask for the configuration space again.
func (i *interrupt) Config() {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.channel >= 0 {
		_ = unix.Sendto(i.channel, wire.Message(wire.BackendConfigChange, 0, nil), unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL, nil)
	}
}

// Broken ends the session, which is how a front-end learns of it when the device has been reset.
func (i *interrupt) Broken(err error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.broken == nil {
		i.broken = err
	}
	_ = i.s.conn.SetReadDeadline(past())
}

// failure is why the device has stopped, if it has.
func (i *interrupt) failure() error {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.broken
}

// setChannel takes a descriptor, in the place of the one before; -1 for none.
func (i *interrupt) setChannel(fd int) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.channel >= 0 {
		_ = unix.Close(i.channel)
	}
	i.channel = fd
}
