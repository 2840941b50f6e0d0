// Package virtio is where devices and their transport meet (virtio 1.2). A device knows no transport, and a transport
// knows no device: both know only the types of this package and the queue.
package virtio

import (
	"os"

	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/memory"
	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/virtio/queue"
)

// Device types (virtio 1.2 §5).
const (
	TypeNet     = 1
	TypeBlock   = 2
	TypeEntropy = 4
	TypeBalloon = 5
	TypeVsock   = 19
	TypeFS      = 26
)

// Feature bits that belong to the transport and the ring, not to a device (virtio 1.2 §6).
const (
	FeatureIndirectDesc = 1 << 28
	FeatureEventIdx     = 1 << 29
	FeatureVersion1     = 1 << 32
)

// Device is a virtio device, blind to its transport. The transport serialises all calls.
type Device interface {
	// Type is the device's type number.
	Type() uint32
	// Features are the device's own feature bits; the transport adds the ring's.
	Features() uint64
	// QueueSizes gives the largest size of each virtqueue, each a power of two.
	QueueSizes() []uint16
	// ReadConfig fills p from offset off of the device's configuration space. Bytes beyond its end read as zero.
	ReadConfig(off uint64, p []byte)
	// WriteConfig stores p at offset off of the configuration space; a device ignores what a driver may not write.
	WriteConfig(off uint64, p []byte)
	// Activate starts the device: the driver has set DRIVER_OK. The device serves the queues from its own goroutines until
	// Reset. On an error the transport sets DEVICE_NEEDS_RESET.
	Activate(a Activation) error
	// Reset stops the device, waits until none of its goroutines touches guest memory, and forgets the driver's state.
	// It must be quick: in-flight requests end or are abandoned without being completed. It waits for what the host
	// holds up for at most ResetTimeout; then its error wraps ErrBusy, guest memory must stay mapped, and until the last
	// request has ended Activate refuses, and Reset returns that error at once. Reset of an inactive device does nothing.
	Reset() error
}

// Prompt is a Device with queues that must be served before the driver goes on, as a driver may rely on what it should not:
// that the device is quicker than itself.
type Prompt interface {
	Device
	// Prompt says whether queue i may be such a queue. The transport is then told of its notifications by the driver's own thread, and
	// not by an ioeventfd.
	Prompt(i int) bool
	// Notify serves queue i to its end on the driver's thread, which waits: it must be quick. The transport serialises it like the
	// methods of Device. It returns false for a queue that is notified like others.
	Notify(i int) bool
}

// External is a Device whose queues another process serves.
type External interface {
	Device
	// RingFeatures are FeatureIndirectDesc and FeatureEventIdx, as far as the other process has them.
	RingFeatures() uint64
	// NotifyFDs are the eventfds that the other process waits for, one a queue. They stay the device's; the queues of its Activation have none.
	NotifyFDs() []*os.File
}

// Activation is what a device gets when its driver is ready.
type Activation struct {
	// Features that the driver accepted.
	Features uint64
	// Memory is guest RAM.
	Memory *memory.Memory
	// Queues in the device's order; nil for a queue that the driver left disabled.
	Queues []*queue.Queue
	// Interrupt tells the driver of used buffers or of a changed configuration. It never blocks.
	Interrupt Interrupt
}

// Interrupt is a device's way to its driver.
type Interrupt interface {
	// Queue says that buffers were used. Call it only when the queue asked for it (queue.Queue.NeedsInterrupt).
	Queue()
	// Config says that the configuration space changed.
	Config()
	// Broken says why the device has stopped to serve a queue: the driver broke it, or who served it is gone. It is logged once a device,
	// as a guest could do that again and again; the driver is told by DEVICE_NEEDS_RESET.
	Broken(err error)
}
