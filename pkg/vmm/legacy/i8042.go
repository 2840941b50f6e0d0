package legacy

import (
	"fmt"
	"sync"

	"github.com/containerd/errdefs"

	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/metrics"
)

// Ports of the keyboard controller.
const (
	I8042Data    = 0x60
	I8042Command = 0x64
	// I8042Reset, written to I8042Command, pulses the CPU's reset line.
	I8042Reset = 0xfe
)

const (
	statusOutFull = 1 << 0
	statusSystem  = 1 << 2
	statusUnlock  = 1 << 4

	ctrKeyboardIRQ = 1 << 0
	ctrSystem      = 1 << 2
	ctrKeyboardOff = 1 << 4
	ctrMouseOff    = 1 << 5
	ctrTranslate   = 1 << 6

	cmdReadCTR     = 0x20
	cmdWriteCTR    = 0x60
	cmdMouseOff    = 0xa7
	cmdMouseOn     = 0xa8
	cmdMouseTest   = 0xa9
	cmdSelfTest    = 0xaa
	cmdTestPort    = 0xab
	cmdKeyboardOff = 0xad
	cmdKeyboardOn  = 0xae
	cmdReadOutput  = 0xd0
	cmdWriteOutput = 0xd1

	selfTestPassed = 0x55
	noMouse        = 0xff

	// The keyboard behind the controller.
	kbdSetLEDs     = 0xed
	kbdSetScancode = 0xf0
	kbdGetID       = 0xf2
	kbdSetRate     = 0xf3
	kbdReset       = 0xff
	kbdAck         = 0xfa
	kbdTestPassed  = 0xaa

	i8042Queue = 16
)

// I8042 is a keyboard controller with a keyboard that has no keys pressed and no mouse: enough for a kernel to find it,
// and to reset the machine with it. It is safe for concurrent use.
type I8042 struct {
	irq    IRQ
	reset  func()
	counts metrics.I8042

	mu  sync.Mutex
	ctr byte
	// out is what data port reads give, in order.
	out []byte
	// expect is the command whose parameter the next write to the data port is.
	expect byte
	// kbdParam: the next byte to the keyboard is a parameter.
	kbdParam bool
}

// NewI8042 makes a controller. reset is called, once for every time, when the guest resets the machine; it must not block.
func NewI8042(irq IRQ, reset func()) *I8042 {
	return &I8042{irq: irq, reset: reset, ctr: ctrKeyboardIRQ | ctrSystem | ctrMouseOff | ctrTranslate, out: make([]byte, 0, i8042Queue)}
}

// Metrics is what the controller has counted. The counters go on.
func (k *I8042) Metrics() *metrics.I8042 { return &k.counts }

// Read answers a read of I8042Data or I8042Command.
func (k *I8042) Read(port uint16) byte {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.counts.Reads.Inc()
	if port == I8042Command {
		s := byte(statusSystem | statusUnlock)
		if len(k.out) > 0 {
			s |= statusOutFull
		}
		return s
	}
	if len(k.out) == 0 {
		return 0
	}
	v := k.out[0]
	k.out = append(k.out[:0], k.out[1:]...)
	if len(k.out) > 0 {
		k.interrupt()
	}
	return v
}

// Write carries out a write to I8042Data or I8042Command.
func (k *I8042) Write(port uint16, v byte) {
	if port == I8042Command && v == I8042Reset {
		k.counts.Resets.Inc()
		k.reset()
		return
	}
	k.counts.Writes.Inc()
	k.mu.Lock()
	defer k.mu.Unlock()
	if port == I8042Command {
		k.command(v)
		return
	}
	cmd := k.expect
	k.expect = 0
	switch cmd {
	case cmdWriteCTR:
		k.ctr = v
	case cmdWriteOutput:
	default:
		k.keyboard(v)
	}
}

func (k *I8042) command(v byte) {
	k.expect = 0
	switch v {
	case cmdReadCTR:
		k.answer(k.ctr)
	case cmdWriteCTR, cmdWriteOutput:
		k.expect = v
	case cmdSelfTest:
		k.out = k.out[:0]
		k.answer(selfTestPassed)
	case cmdTestPort:
		k.answer(0)
	case cmdMouseTest:
		k.answer(noMouse)
	case cmdMouseOff:
		k.ctr |= ctrMouseOff
	case cmdMouseOn:
		k.ctr &^= ctrMouseOff
	case cmdKeyboardOff:
		k.ctr |= ctrKeyboardOff
	case cmdKeyboardOn:
		k.ctr &^= ctrKeyboardOff
	case cmdReadOutput:
		k.answer(1) // not in reset
	}
}

// keyboard is a byte for the keyboard.
func (k *I8042) keyboard(v byte) {
	if k.kbdParam {
		k.kbdParam = false
		k.answer(kbdAck)
		k.interrupt()
		return
	}
	k.answer(kbdAck)
	switch v {
	case kbdGetID:
		k.answer(0xab)
		k.answer(0x83)
	case kbdReset:
		k.answer(kbdTestPassed)
	case kbdSetLEDs, kbdSetRate, kbdSetScancode:
		k.kbdParam = true
	}
	k.interrupt()
}

func (k *I8042) answer(v byte) {
	if len(k.out) < i8042Queue {
		k.out = append(k.out, v)
	}
}

func (k *I8042) interrupt() {
	if k.ctr&ctrKeyboardIRQ != 0 {
		k.irq.Trigger()
	}
}

// CtrlAltDel presses and lets go of the three keys. It fails, with an error of the class errdefs.ErrUnavailable, if the guest
// has not read what it was given before: half of the codes would leave keys pressed.
func (k *I8042) CtrlAltDel() error {
	k.mu.Lock()
	defer k.mu.Unlock()
	codes := []byte{0x14, 0x11, 0xe0, 0x71, 0xe0, 0xf0, 0x71, 0xf0, 0x11, 0xf0, 0x14} // set 2
	if k.ctr&ctrTranslate != 0 {
		codes = []byte{0x1d, 0x38, 0xe0, 0x53, 0xe0, 0xd3, 0xb8, 0x9d} // set 1
	}
	if n := len(k.out); n+len(codes) > i8042Queue {
		k.counts.Errors.Inc()
		return fmt.Errorf("keyboard: the guest has not read %d bytes: %w", n, errdefs.ErrUnavailable)
	}
	k.out = append(k.out, codes...)
	k.interrupt()
	return nil
}
