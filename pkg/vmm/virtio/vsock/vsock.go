// Package vsock is a virtio socket device (virtio 1.2 §5.10) whose host side is Unix sockets, in Firecracker's form: a
// host program connects to the device's socket, writes "CONNECT <port>\n" and gets "OK <port>\n" once the guest has
// accepted; a guest's connection to port N of CID 2 goes to the socket "<path>_N".
//
// Data moves straight between sockets and guest memory. What a slow host reader leaves is buffered, at most 64 KiB a
// connection, which is the credit that the guest gets; a slow guest holds back the host's writer. Bytes sent before a
// shutdown or a close arrive, in both directions. The device must never block one connection because of another, nor
// hold more than MaxConns of them, whatever the guest sends.
package vsock

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"golang.org/x/sys/unix"

	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/config"
	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/metrics"
	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/virtio"
)

const (
	// MaxConns is the largest number of connections, half-open and draining ones included.
	MaxConns = 1023
	// QueueSize is the size of each virtqueue.
	QueueSize = 256
	// acceptPause is how long a host without free descriptors is left alone.
	acceptPause = 100 * time.Millisecond
)

// Device is a virtio socket device.
type Device struct {
	cid      uint32
	path     string
	listener *net.UnixListener
	file     os.FileInfo
	accepter sync.WaitGroup
	counts   metrics.Vsock

	mu      sync.Mutex
	session *session  // nil when inactive
	closed  bool      // by Close
	changed sync.Cond // of session and closed

	ending virtio.Ending
}

// New listens on the host's side of the device.
func New(cfg config.Vsock) (*Device, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	d := &Device{cid: cfg.GuestCID, path: cfg.UDSPath}
	d.changed.L = &d.mu
	var err error
	if d.listener, err = net.ListenUnix("unix", &net.UnixAddr{Name: d.path, Net: "unix"}); err != nil {
		if errors.Is(err, unix.EADDRINUSE) {
			err = errdefs.ErrAlreadyExists
		}
		return nil, fmt.Errorf("vsock: uds_path %q: %w", cfg.UDSPath, err)
	}
	d.listener.SetUnlinkOnClose(false)
	if d.file, err = os.Lstat(d.path); err != nil {
		d.listener.Close()
		return nil, fmt.Errorf("vsock: uds_path %q: %w", cfg.UDSPath, err)
	}
	d.accepter.Go(d.accept)
	return d, nil
}

// Metrics is what the device has counted. The counters go on.
func (d *Device) Metrics() *metrics.Vsock { return &d.counts }

// Type is the device's type number.
func (*Device) Type() uint32 { return virtio.TypeVsock }

// Features: stream sockets need none.
func (*Device) Features() uint64 { return 0 }

// QueueSizes are those for packets to the guest, packets from the guest, and events.
func (*Device) QueueSizes() []uint16 { return []uint16{QueueSize, QueueSize, QueueSize} }

// ReadConfig reads struct virtio_vsock_config: the guest's CID.
func (d *Device) ReadConfig(off uint64, p []byte) {
	clear(p)
	var c [8]byte
	binary.LittleEndian.PutUint64(c[:], uint64(d.cid))
	if off < uint64(len(c)) {
		copy(p, c[off:])
	}
}

// WriteConfig does nothing: a driver may write no field.
func (*Device) WriteConfig(uint64, []byte) {}

// Activate serves the queues. Nothing is ever put on the event queue: its one event tells of a restored guest.
func (d *Device) Activate(a virtio.Activation) error {
	if a.Queues[0] == nil || a.Queues[1] == nil {
		return errors.New("vsock: driver left a queue for packets disabled")
	}
	if err := d.ending.Err(); err != nil {
		return fmt.Errorf("vsock: %w", err)
	}
	s := newSession(d.cid, d.path, a)
	s.counts = &d.counts
	d.mu.Lock()
	d.session = s
	d.changed.Signal()
	d.mu.Unlock()
	s.start()
	return nil
}

// Reset closes all connections. The host's socket stays, and those that come wait for the next driver.
func (d *Device) Reset() error {
	d.mu.Lock()
	s := d.session
	d.session = nil
	d.mu.Unlock()
	if s == nil {
		return d.ending.Err()
	}
	return d.ending.Await(s.stop)
}

// Close resets the device and removes its socket, if that is still the one that New made.
func (d *Device) Close() error {
	err := d.listener.Close()
	d.mu.Lock()
	d.closed = true
	d.changed.Signal()
	d.mu.Unlock()
	d.accepter.Wait()
	err = errors.Join(err, d.Reset())
	if fi, statErr := os.Lstat(d.path); statErr == nil && os.SameFile(fi, d.file) {
		err = errors.Join(err, os.Remove(d.path))
	}
	return err
}

func (d *Device) accept() {
	failing := false
	for {
		sock, err := d.listener.AcceptUnix()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			// The host is short of descriptors or memory, which only time cures.
			if !failing {
				failing = true // said once, until it is over
				log.G(context.Background()).WithField("uds_path", d.path).WithError(err).Warn("vsock device cannot accept a connection")
			}
			time.Sleep(acceptPause)
			continue
		}
		failing = false
		if s := d.active(); s == nil || !s.accept(sock) {
			sock.Close()
		}
	}
}

// active waits for a driver, and gives nil if Close comes first. Host programs that connect before the guest's driver is there wait
// meanwhile, in the listener's backlog, as with Firecracker: its clients take a connection that is closed at once for a lost cause.
func (d *Device) active() *session {
	d.mu.Lock()
	defer d.mu.Unlock()
	for d.session == nil && !d.closed {
		d.changed.Wait()
	}
	return d.session
}
