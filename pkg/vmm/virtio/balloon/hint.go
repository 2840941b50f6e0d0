package balloon

import (
	"encoding/binary"
	"fmt"
	"sync"

	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/config"
	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/virtio/queue"
)

// Commands of free page hinting (virtio 1.2 §5.5.6.6). All others are the id of a run.
const (
	commandStop = 0 // the guest: no more hints; the host: nothing is wanted
	commandDone = 1 // the host: the guest may use the pages again
	firstRun    = 2
)

// hinting is the state of free page hinting: at most one run, which is the host's command from its start to its end.
//
// In a run the guest takes free pages away from itself, tells of them, and has them back when it sees the run end, be they still
// in the queue. So pages are discarded with mu held, and only while the run goes on; it ends under mu before the guest can see
// that. Device.mu comes before mu.
type hinting struct {
	mu          sync.Mutex
	host        uint32
	guest       uint32
	answered    bool // guest is a command of the guest's
	acknowledge bool
	lastRun     uint32
}

// set changes the host's command, and what the driver sees of it. The caller tells the driver.
func (h *hinting) set(d *Device, command uint32) {
	h.host = command
	d.command.Store(command)
}

// running says that the guest's hints belong to the run that goes on.
func (h *hinting) running() bool { return h.host >= firstRun && h.answered && h.guest == h.host }

// forget is for a new driver, which must find no run.
func (h *hinting) forget(d *Device) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.set(d, commandStop)
	h.guest, h.answered = 0, false
}

// StartHinting asks the guest once for all its free pages, in place of what it was asked before.
func (d *Device) StartHinting(c config.BalloonHintingStart) error {
	if d.features&featureHinting == 0 {
		return ErrNoHinting
	}
	return d.tell(func() {
		h := &d.hinting
		h.mu.Lock()
		defer h.mu.Unlock()
		h.lastRun = max(h.lastRun+1, firstRun)
		h.acknowledge = c.AcknowledgeOnStop
		h.set(d, h.lastRun)
	})
}

// StopHinting ends the run, if there is one: the guest has its pages back.
func (d *Device) StopHinting() error {
	if d.features&featureHinting == 0 {
		return ErrNoHinting
	}
	return d.tell(func() {
		d.hinting.mu.Lock()
		defer d.hinting.mu.Unlock()
		d.hinting.set(d, commandDone)
	})
}

// Hinting is where free page hinting is.
func (d *Device) Hinting() (config.BalloonHinting, error) {
	if d.features&featureHinting == 0 {
		return config.BalloonHinting{}, ErrNoHinting
	}
	h := &d.hinting
	h.mu.Lock()
	defer h.mu.Unlock()
	status := config.BalloonHinting{HostCommand: h.host}
	if h.answered {
		guest := h.guest
		status.GuestCommand = &guest
	}
	return status, nil
}

// Prompt has the driver's thread bring all notifications: those of the hinting queue, whose index is the driver's choice, must come
// that way, and the others are so few that an ioeventfd would cost a machine's start more than it ever saves.
//
// Linux puts a page into the queue, notifies the device, and then puts it onto a list from which memory pressure may take it back at
// any time, whatever has become of it in the queue. A device that discarded the page later would destroy what is in use. So it is
// discarded before the notification returns (get_free_page_and_send and the shrinker in Linux's virtio_balloon.c).
func (*Device) Prompt(int) bool { return true }

// Notify serves the hinting queue, if that is i.
func (d *Device) Notify(i int) bool {
	s := d.session // which the transport alone changes
	if s == nil || s.hint == nil || s.hintIndex != i {
		return false
	}
	s.serveHints()
	return true
}

// maxHints bounds the chains that a notification is served; Linux makes one at a time.
const maxHints = 2 * QueueSize

// serveHints works off the hinting queue until it is empty.
func (s *session) serveHints() {
	err := s.eachHint()
	if err != nil {
		s.hint.Stop() // it is served no more
		s.end("hinting", err)
	}
}

func (s *session) eachHint() error {
	c := &s.hints
	left := s.mem.Size()
	for range maxHints {
		ok, err := s.hint.Pop(c)
		switch {
		case err != nil:
			return err
		case ok:
		case s.hint.Ask():
			continue
		default:
			return nil
		}
		if err := s.takeHint(c, &left); err != nil {
			return err
		}
		if err := s.hint.Push(c.Head, 0); err != nil {
			return err
		}
		if s.hint.NeedsInterrupt() {
			s.irq.Queue()
		}
	}
	return fmt.Errorf("%w: more than %d chains in one notification", queue.ErrBroken, maxHints)
}

// takeHint takes a chain of the hinting queue: a command of four bytes in readable buffers, or free pages as writable ones.
// left is how many bytes of free pages this notification may still bring, which serves them on the vCPU's thread.
func (s *session) takeHint(c *queue.Chain, left *uint64) error {
	if command, ok := commandOf(c.Readable); ok {
		s.takeCommand(command)
	}
	n := uint64(c.WritableLen())
	if n > *left {
		return fmt.Errorf("%w: more free pages in one notification than the machine has", queue.ErrBroken)
	}
	*left -= n
	h := &s.d.hinting
	return eachPiece(c.Writable, s.hint, func(p []byte) {
		h.mu.Lock()
		defer h.mu.Unlock()
		if h.running() {
			s.d.counts.FreePageHints.Inc()
			s.d.gave(s.mem.DiscardSlice(p), len(p), &s.d.counts.FreePageHintingFreed, &s.d.counts.FreePageHintFails)
		}
	})
}

// takeCommand notes the guest's command. The end of its hints is that of the run, if that was asked for.
func (s *session) takeCommand(command uint32) {
	h := &s.d.hinting
	h.mu.Lock()
	done := command == commandStop && h.acknowledge && h.running()
	h.guest, h.answered = command, true
	if done {
		h.set(s.d, commandDone)
	}
	h.mu.Unlock()
	if done {
		s.irq.Config()
	}
}

// commandOf copies a command out of guest memory; what has another length is none.
func commandOf(bufs [][]byte) (command uint32, ok bool) {
	var raw [4]byte
	n := 0
	for _, b := range bufs {
		if n+len(b) > len(raw) {
			return 0, false
		}
		n += copy(raw[n:], b)
	}
	return binary.LittleEndian.Uint32(raw[:]), n == len(raw)
}
