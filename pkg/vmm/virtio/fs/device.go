// Package fs is the virtio file system device (virtio 1.2 §5.11): one host folder, shared with the guest by FUSE requests
// on virtqueues. What the requests do is package passthrough's business; this package moves them between the rings and a
// bounded pool of goroutines. It must never hold up one request for another, nor touch guest memory after Reset.
package fs

import (
	"encoding/binary"
	"fmt"

	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/config"
	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/metrics"
	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/virtio"
	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/virtio/fs/passthrough"
)

const (
	// Queues of the device: the one for requests that must not wait (FORGET), then the request queue.
	hiprioQueue  = 0
	requestQueue = 1

	hiprioSize = 128
	// requestSize leaves room for a request of passthrough.MaxIO bytes in single pages, which needs 260 descriptors, and
	// for some of them at once.
	requestSize = 1024

	// maxWorkers bounds the requests in service, those included that a reset has abandoned and the host holds up.
	maxWorkers = 64

	tagLen    = 36
	configLen = tagLen + 4
)

// Device is the file system device.
type Device struct {
	id, tag string
	space   [configLen]byte
	srv     *passthrough.Server
	session *session
	ending  virtio.Ending
	counts  metrics.Filesystem
	// Taken by each request in service.
	hiprioSlots, requestSlots chan struct{}
}

var _ virtio.Device = (*Device)(nil)

// New opens the folder and makes the device, one of so many shares of the process, which divide its descriptors among
// them. Close it after its last Reset.
func New(cfg config.Filesystem, shares int) (*Device, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	srv, err := passthrough.New(passthrough.Config{Root: cfg.PathOnHost, ReadOnly: cfg.IsReadOnly, Shares: shares})
	if err != nil {
		return nil, err
	}
	d := &Device{id: cfg.FSID, tag: cfg.Tag, srv: srv, hiprioSlots: make(chan struct{}, 1), requestSlots: make(chan struct{}, maxWorkers)}
	copy(d.space[:], ConfigSpace(cfg.Tag))
	return d, nil
}

// ConfigSpace is the configuration space (virtio 1.2 §5.11.4) of a device with a tag and one request queue.
func ConfigSpace(tag string) []byte {
	space := make([]byte, configLen)
	copy(space[:tagLen], tag)
	binary.LittleEndian.PutUint32(space[tagLen:], 1) // num_request_queues
	return space
}

// QueueSizes are those of the high-priority queue and of the request queue.
func QueueSizes() []uint16 { return []uint16{hiprioSize, requestSize} }

// Close resets the device and lets the folder go, unless it is still in use.
func (d *Device) Close() error {
	if err := d.Reset(); err != nil {
		return err
	}
	return d.srv.Close()
}

// ID is the file system's.
func (d *Device) ID() string { return d.id }

// Metrics is what the device has counted. The counters go on.
func (d *Device) Metrics() *metrics.Filesystem { return &d.counts }

// Type is virtio.TypeFS.
func (d *Device) Type() uint32 { return virtio.TypeFS }

// Features are none: no notification queue.
func (d *Device) Features() uint64 { return 0 }

// QueueSizes gives the high-priority queue and one request queue.
func (d *Device) QueueSizes() []uint16 { return QueueSizes() }

// ReadConfig gives the tag and the number of request queues (virtio 1.2 §5.11.4).
func (d *Device) ReadConfig(off uint64, p []byte) {
	clear(p)
	if off < configLen {
		copy(p, d.space[off:])
	}
}

// WriteConfig does nothing: a driver may write no field.
func (d *Device) WriteConfig(uint64, []byte) {}

// Activate starts to serve the queues.
func (d *Device) Activate(a virtio.Activation) error {
	if len(a.Queues) <= requestQueue || a.Queues[requestQueue] == nil {
		return fmt.Errorf("virtio-fs %q: driver left the request queue disabled", d.tag)
	}
	if err := d.ending.Err(); err != nil {
		return fmt.Errorf("virtio-fs %q: %w", d.tag, err)
	}
	d.session = newSession(d.tag, d.srv, a.Interrupt)
	d.session.counts = &d.counts
	d.session.start(a.Queues[requestQueue], d.requestSlots)
	if q := a.Queues[hiprioQueue]; q != nil {
		d.session.start(q, d.hiprioSlots)
	}
	return nil
}

// Reset abandons what is in service and forgets all that the guest knew. It waits for reads and writes of file data that
// are under way, and for the guest's files to be closed; what else runs ends on its own and touches nothing of the guest's
// any more.
func (d *Device) Reset() error {
	s := d.session
	if s == nil {
		return d.ending.Err()
	}
	d.session = nil
	return d.ending.Await(func() {
		s.stop()
		d.srv.Forget()
	})
}
