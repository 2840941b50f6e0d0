package backend

import (
	"errors"
	"fmt"
	"os"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/virtio"
	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/virtio/queue"
	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/virtio/vhostuser/wire"
)

// vring is what the front-end has said of a queue.
type vring struct {
	size    uint32
	addr    wire.VringAddr
	kick    *os.File // nil unless the queue is in use
	call    int      // the descriptor; -1 for none
	enabled bool
	q       *queue.Queue // while the device is active
	next    uint16       // entry of the available ring, once it has been
}

func (v *vring) close() {
	v.setKick(nil)
	v.setCall(-1)
}

func (v *vring) setKick(f *os.File) {
	if v.kick != nil {
		v.kick.Close()
	}
	v.kick = f
}

func (v *vring) setCall(fd int) {
	if v.call >= 0 {
		_ = unix.Close(v.call)
	}
	v.call = fd
}

// obeyVring is obey for messages about one queue.
func (s *Session) obeyVring(r wire.Request, payload []byte, files []*file) (reply []byte, err error) {
	var (
		state wire.VringState
		addr  wire.VringAddr
		fd    *file // nil for none
	)
	switch r {
	case wire.SetVringNum, wire.SetVringBase, wire.SetVringEnable, wire.GetVringBase:
		state, err = wire.ParseVringState(payload)
	case wire.SetVringAddr:
		addr, err = wire.ParseVringAddr(payload)
		state.Index = addr.Index
	case wire.SetVringKick, wire.SetVringCall, wire.SetVringErr:
		var n uint64
		if n, err = wire.ParseU64(payload); err == nil && n&wire.NoFD == 0 {
			fd, err = one(files)
		}
		state.Index = uint32(n & (wire.NoFD - 1))
	default:
		err = fmt.Errorf("%w: it is unknown here", errRefused)
	}
	if err == nil && state.Index >= uint32(len(s.vrings)) {
		err = fmt.Errorf("%w: queue %d of %d", errRefused, state.Index, len(s.vrings))
	}
	if err == nil && s.active && !whileServed(r) {
		err = fmt.Errorf("%w: queue %d is being served", errRefused, state.Index)
	}
	if err != nil {
		return nil, err
	}
	v := &s.vrings[state.Index]
	switch r {
	case wire.SetVringNum:
		v.size = state.Num
	case wire.SetVringBase:
		if state.Num != 0 {
			// A device knows no more of its driver after a Reset.
			err = fmt.Errorf("%w: queue %d from entry %d on: want 0", errRefused, state.Index, state.Num)
		}
	case wire.SetVringAddr:
		v.addr = addr
	case wire.SetVringKick:
		err = s.setKick(v, fd)
	case wire.SetVringCall:
		err = s.setCall(v, fd)
	case wire.SetVringEnable:
		return nil, s.enable(v, state.Num)
	case wire.GetVringBase:
		if err = s.deactivate(); err == nil {
			reply = wire.VringState{Index: state.Index, Num: uint32(v.next)}.Bytes()
		}
	}
	return reply, err
}

// whileServed says whether a message may come while its queue is served.
func whileServed(r wire.Request) bool {
	switch r {
	case wire.SetVringEnable, wire.GetVringBase, wire.SetVringCall, wire.SetVringErr:
		return true
	}
	return false
}

// setKick takes the eventfd of a queue's notifications, which marks it as used. Without VHOST_USER_F_PROTOCOL_FEATURES it would have to start the
// queue, and no message would stop it again.
func (s *Session) setKick(v *vring, f *file) error {
	switch {
	case s.accepted&wire.FeatureProtocol == 0:
		return fmt.Errorf("%w: want VHOST_USER_F_PROTOCOL_FEATURES (bit 30) to be accepted before", errRefused)
	case f == nil:
		return fmt.Errorf("%w: a queue without a descriptor for its notifications", errRefused)
	}
	if err := unix.SetNonblock(f.fd, true); err != nil {
		return fmt.Errorf("notifications: %w", err)
	}
	v.setKick(os.NewFile(uintptr(f.take()), "vhost-user-kick"))
	return nil
}

// setCall takes the eventfd of a queue's interrupts; without one there are none. A front-end may change it at any time.
func (s *Session) setCall(v *vring, f *file) error {
	fd := -1
	if f != nil {
		// A front-end that does not look must not hold up the device.
		if err := unix.SetNonblock(f.fd, true); err != nil {
			return fmt.Errorf("interrupts: %w", err)
		}
		fd = f.take()
	}
	s.irq.raising.Lock()
	defer s.irq.raising.Unlock()
	v.setCall(fd)
	s.listCalls()
	return nil
}

// listCalls has the interrupt know the eventfds of the queues in use. The caller holds s.irq.raising.
func (s *Session) listCalls() {
	s.irq.calls = s.irq.calls[:0]
	for i := range s.vrings {
		v := &s.vrings[i]
		known := func(fd int) bool { return same(fd, v.call) }
		if v.kick != nil && v.call >= 0 && !slices.ContainsFunc(s.irq.calls, known) {
			s.irq.calls = append(s.irq.calls, v.call)
		}
	}
}

// enable starts the device with the last of the queues in use, or stops it.
func (s *Session) enable(v *vring, on uint32) error {
	switch {
	case on > 1:
		return fmt.Errorf("%w: a queue enabled by %d: want 0 or 1", wire.ErrMalformed, on)
	case on == 0:
		v.enabled = false
		return s.deactivate()
	case v.kick == nil:
		return fmt.Errorf("%w: a queue enabled without a descriptor for its notifications", errRefused)
	}
	v.enabled = true
	if s.active || slices.ContainsFunc(s.vrings, func(v vring) bool { return v.kick != nil && !v.enabled }) {
		return nil
	}
	return s.activate()
}

// activate gives the device its queues.
func (s *Session) activate() error {
	if s.ram.mem == nil {
		return fmt.Errorf("%w: queues before guest RAM", errRefused)
	}
	a := virtio.Activation{Features: s.accepted &^ wire.FeatureProtocol, Memory: s.ram.mem, Interrupt: &s.irq}
	s.irq.raising.Lock()
	s.listCalls()
	s.irq.raising.Unlock()
	sizes := s.Dev.QueueSizes()
	for i := range s.vrings {
		v := &s.vrings[i]
		if v.kick == nil {
			a.Queues = append(a.Queues, nil)
			continue
		}
		q, err := s.queue(v, sizes[i])
		if err != nil {
			return fmt.Errorf("queue %d: %w", i, err)
		}
		a.Queues, v.q = append(a.Queues, q), q
	}
	if err := s.Dev.Activate(a); err != nil {
		return err
	}
	s.active = true
	return nil
}

// leastBound is how many entries each queue may have, whatever its device's own bound is: queues are the front-end's, and QEMU has its drivers
// choose up to that.
const leastBound = 1024

func (s *Session) queue(v *vring, most uint16) (*queue.Queue, error) {
	if most = max(most, leastBound); v.size > uint32(most) {
		return nil, fmt.Errorf("%w: %d entries: want at most %d", errRefused, v.size, most)
	}
	cfg := queue.Config{Size: uint16(v.size), EventIdx: s.accepted&virtio.FeatureEventIdx != 0, Notify: v.kick}
	for _, part := range []struct {
		user uint64
		to   *uint64
	}{{v.addr.Desc, &cfg.Desc}, {v.addr.Avail, &cfg.Avail}, {v.addr.Used, &cfg.Used}} {
		var err error
		if *part.to, err = s.ram.guest(part.user); err != nil {
			return nil, err
		}
	}
	return queue.New(s.ram.mem, cfg)
}

// deactivate resets the device, unless it has been, and with it all queues: each has to be described and enabled again. An error means that it still
// uses guest RAM.
func (s *Session) deactivate() error {
	if !s.active {
		return nil
	}
	if err := s.Dev.Reset(); err != nil {
		if !errors.Is(err, virtio.ErrBusy) {
			err = fmt.Errorf("%w: %w", virtio.ErrBusy, err)
		}
		return err
	}
	s.active = false
	for i := range s.vrings {
		v := &s.vrings[i]
		if v.q != nil {
			v.next, v.q = v.q.Next(), nil
		}
		v.enabled = false
		v.setKick(nil)
	}
	return nil
}
