// Package rng is a virtio entropy device (virtio 1.2 §5.4) fed by the host's random number generator.
package rng

import (
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/config"
	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/metrics"
	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/ratelimit"
	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/virtio"
	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/virtio/queue"
)

const (
	// MaxRequest bounds the bytes that one request gets; the driver sees how many there are.
	MaxRequest = 64 << 10
	// QueueSize is the size of the only virtqueue.
	QueueSize = 256
)

// Device is an entropy device.
type Device struct {
	worker  virtio.Worker
	limiter ratelimit.Limiter
	counts  metrics.Entropy
}

// New makes the device.
func New(cfg config.Entropy) (*Device, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	d := new(Device)
	d.worker.Fails = &d.counts.EventFails
	d.limiter.Throttled, d.limiter.Events = &d.counts.RateLimiterThrottled, &d.counts.RateLimiterEvents
	d.limiter.Update(cfg.RateLimiter)
	return d, nil
}

// Metrics is what the device has counted. The counters go on.
func (d *Device) Metrics() *metrics.Entropy { return &d.counts }

// Type is the device's type number.
func (*Device) Type() uint32 { return virtio.TypeEntropy }

// Features: there are none.
func (*Device) Features() uint64 { return 0 }

// QueueSizes is one queue of QueueSize.
func (*Device) QueueSizes() []uint16 { return []uint16{QueueSize} }

// ReadConfig reads zeros: the device has no configuration.
func (*Device) ReadConfig(_ uint64, p []byte) { clear(p) }

// WriteConfig does nothing.
func (*Device) WriteConfig(uint64, []byte) {}

// Activate serves the queue from one goroutine.
func (d *Device) Activate(a virtio.Activation) error {
	q := a.Queues[0]
	return d.worker.Start("entropy", q, a.Interrupt, func(c *queue.Chain) (uint32, error) {
		if err := d.limiter.Await(q, uint64(min(c.WritableLen(), MaxRequest))); err != nil {
			return 0, err
		}
		n, err := fill(c.Writable)
		d.counts.Events.Inc()
		d.counts.Bytes.Add(uint64(n))
		if err != nil {
			d.counts.HostRNGFails.Inc()
		}
		return uint32(n), err
	})
}

// Reset waits for the request in work, at most MaxRequest bytes.
func (d *Device) Reset() error { return d.worker.Stop() }

// fill puts up to MaxRequest random bytes into bufs. The host's generator is seeded long before a VM starts, so this
// does not block.
func fill(bufs [][]byte) (int, error) {
	n := 0
	for _, b := range bufs {
		for b = b[:min(len(b), MaxRequest-n)]; len(b) > 0; {
			m, err := unix.Getrandom(b, 0)
			if err == unix.EINTR {
				continue
			}
			if err != nil {
				return n, fmt.Errorf("getrandom: %w", err)
			}
			n, b = n+m, b[m:]
		}
	}
	return n, nil
}
