// Package net is a virtio network device (virtio 1.2 §5.1) on a TAP interface of the host. Frames move straight between
// the TAP and guest memory, checksums and segmentation are left to whoever is last to need them. It must never look into a
// frame, but for the address of those that a Responder may answer, nor hand the host's kernel a header that it has not checked.
package net

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/config"
	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/metrics"
	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/ratelimit"
	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/virtio"
)

const (
	// QueueSize is the size of each virtqueue.
	QueueSize = 256
	// MaxFrame bounds a frame, in bytes: the largest payload of IPv6 behind its header and Ethernet's with a VLAN tag.
	MaxFrame = 14 + 4 + 40 + 65535

	rxQueue = 0
	txQueue = 1
)

// Feature bits (virtio 1.2 §5.1.3).
const (
	featureCSUM      = 1 << 0
	featureGuestCSUM = 1 << 1
	featureMTU       = 1 << 3
	featureMAC       = 1 << 5
	featureGuestTSO4 = 1 << 7
	featureGuestTSO6 = 1 << 8
	featureGuestECN  = 1 << 9
	featureGuestUFO  = 1 << 10
	featureHostTSO4  = 1 << 11
	featureHostTSO6  = 1 << 12
	featureHostECN   = 1 << 13
	featureHostUFO   = 1 << 14
	featureMrgRxbuf  = 1 << 15
	featureStatus    = 1 << 16

	features = featureCSUM | featureGuestCSUM | featureGuestTSO4 | featureGuestTSO6 | featureGuestECN | featureGuestUFO |
		featureHostTSO4 | featureHostTSO6 | featureHostECN | featureHostUFO | featureMrgRxbuf | featureStatus
	featuresGuestGSO = featureGuestTSO4 | featureGuestTSO6 | featureGuestUFO
)

// struct virtio_net_config (virtio 1.2 §5.1.4): offsets, and its length up to the fields that this device has not.
const (
	configStatus = 6
	configPairs  = 8
	configMTU    = 10
	configLen    = 12

	statusLinkUp = 1
)

// Device is a network interface. Its methods must not be called at the same time; the transport sees to that.
type Device struct {
	id       string
	features uint64
	mtu      int
	config   [configLen]byte

	file *os.File
	raw  syscall.RawConn
	// offload tells the TAP what it may leave to the guest: TUN_F_ flags.
	offload func(flags int) error
	// scratch is memory outside the Go heap, for the kernel's vectored calls.
	scratch []byte
	// Limits of the two directions. They count frames, and their bytes without the header that no network has.
	rxLimiter, txLimiter ratelimit.Limiter
	counts               metrics.Net
	timed                bool // writes to the TAP
	// local is nil in a device that has all frames go through the TAP.
	local *local
	// dead says that the TAP has gone; session goroutines set it.
	dead atomic.Bool

	session *session
	ending  virtio.Ending
}

// New attaches to the TAP that cfg names, or makes it, in the network namespace of the calling thread. A TAP that New has
// made goes away with the device; it is down and has no address until somebody on the host sees to that.
func New(cfg config.NetworkInterface) (*Device, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	f, err := openTAP(cfg.HostDevName)
	if err != nil {
		return nil, fmt.Errorf("network-interfaces/%s/host_dev_name %q: %w", cfg.IfaceID, cfg.HostDevName, err)
	}
	d, err := newDevice(cfg, f, func(flags int) error { return setOffload(f, flags) })
	if err != nil {
		f.Close()
		return nil, err
	}
	return d, nil
}

// newDevice makes a device of a file whose reads and writes carry one frame each, with a header before it. It owns f, unless
// it fails.
func newDevice(cfg config.NetworkInterface, f *os.File, offload func(flags int) error) (*Device, error) {
	d := &Device{id: cfg.IfaceID, mtu: cfg.MTU, features: features, file: f, offload: offload}
	if cfg.GuestMAC != "" {
		mac, err := config.ParseMAC(cfg.GuestMAC)
		if err != nil {
			return nil, fmt.Errorf("network-interfaces/%s/guest_mac: %w", cfg.IfaceID, err)
		}
		d.features |= featureMAC
		copy(d.config[:], mac[:])
	}
	if cfg.MTU != 0 {
		d.features |= featureMTU
		binary.LittleEndian.PutUint16(d.config[configMTU:], uint16(cfg.MTU))
	}
	binary.LittleEndian.PutUint16(d.config[configPairs:], 1)
	d.rxLimiter.Throttled, d.rxLimiter.Events = &d.counts.RxRateLimiterThrottled, &d.counts.RxRateLimiterEvents
	d.txLimiter.Throttled, d.txLimiter.Events = &d.counts.TxRateLimiterThrottled, &d.counts.TxRateLimiterEvents
	d.Limit(cfg.RxRateLimiter, cfg.TxRateLimiter)
	if err := f.SetDeadline(time.Time{}); err != nil {
		return nil, fmt.Errorf("network interface %q: cannot be waited for: %w", cfg.IfaceID, err)
	}
	var err error
	if d.raw, err = f.SyscallConn(); err != nil {
		return nil, fmt.Errorf("network interface %q: %w", cfg.IfaceID, err)
	}
	if d.scratch, err = unix.Mmap(-1, 0, scratchSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON); err != nil {
		return nil, fmt.Errorf("network interface %q: %d bytes of memory: %w", cfg.IfaceID, scratchSize, err)
	}
	return d, nil
}

// ID is the interface's.
func (d *Device) ID() string { return d.id }

// Limit changes the buckets that rx, for frames to the guest, and tx have. It may be called from any goroutine.
func (d *Device) Limit(rx, tx *config.RateLimiter) {
	d.rxLimiter.Update(rx)
	d.txLimiter.Update(tx)
}

// Metrics is what the interface has counted. The counters go on.
func (d *Device) Metrics() *metrics.Net { return &d.counts }

// MeasureLatency has the writes to the TAP timed. It comes before the first Activate.
func (d *Device) MeasureLatency() { d.timed = true }

// Type is the device's type number.
func (*Device) Type() uint32 { return virtio.TypeNet }

// Features offers a MAC address and an MTU only where they are configured: a guest without picks its own.
func (d *Device) Features() uint64 { return d.features }

// QueueSizes are those for frames to the guest and frames from the guest.
func (*Device) QueueSizes() []uint16 { return []uint16{QueueSize, QueueSize} }

// ReadConfig reads struct virtio_net_config. The link is up as long as there is a TAP.
func (d *Device) ReadConfig(off uint64, p []byte) {
	clear(p)
	c := d.config
	if !d.dead.Load() {
		c[configStatus] = statusLinkUp
	}
	if off < uint64(len(c)) {
		copy(p, c[off:])
	}
}

// WriteConfig does nothing: a modern driver may write no field.
func (*Device) WriteConfig(uint64, []byte) {}

// Activate serves each queue from a goroutine.
func (d *Device) Activate(a virtio.Activation) error {
	if a.Queues[rxQueue] == nil || a.Queues[txQueue] == nil {
		return fmt.Errorf("network interface %q: driver left a queue disabled", d.id)
	}
	if err := d.ending.Err(); err != nil {
		return fmt.Errorf("network interface %q: %w", d.id, err)
	}
	if err := d.file.SetDeadline(time.Time{}); err != nil {
		return fmt.Errorf("network interface %q: %w", d.id, err)
	}
	// A TAP that has gone must not keep the guest from having the interface: it learns that the link is down.
	if err := d.offload(offloads(a.Features)); err != nil && !errors.Is(err, unix.EBADFD) {
		return fmt.Errorf("network interface %q: offloads of the TAP: %w", d.id, err)
	}
	if d.local != nil {
		d.local.begin()
	}
	d.session = newSession(d, a)
	d.session.start()
	return nil
}

// Reset ends the session. Frames that the driver has not taken are lost.
func (d *Device) Reset() error {
	s := d.session
	if s == nil {
		return d.ending.Err()
	}
	d.session = nil
	return d.ending.Await(func() {
		s.stop()
		d.drain()
	})
}

// Dup gives another descriptor of the TAP, which the caller closes. A TAP that New has made stays as long as it is open.
func (d *Device) Dup() (fd int, err error) {
	cerr := d.raw.Control(func(tap uintptr) { fd, err = unix.FcntlInt(tap, unix.F_DUPFD_CLOEXEC, 0) })
	return fd, errors.Join(cerr, err)
}

// Close resets the device and lets the TAP go, unless it is still in use.
func (d *Device) Close() error {
	if err := d.Reset(); err != nil {
		return err
	}
	if d.scratch == nil {
		return nil
	}
	err := unix.Munmap(d.scratch)
	d.scratch = nil
	return errors.Join(err, d.file.Close())
}

// drainMax bounds the frames that are thrown away at a reset: more than a TAP's queue has by default.
const drainMax = 4096

// drain throws away what is queued for the guest: the next driver may not have the features for it.
func (d *Device) drain() {
	_ = d.offload(0) // fails only where the TAP has gone
	_ = d.raw.Control(func(fd uintptr) {
		for range drainMax {
			if n, err := unix.Read(int(fd), d.scratch[:headerSize]); n <= 0 || err != nil {
				return
			}
		}
	})
}
