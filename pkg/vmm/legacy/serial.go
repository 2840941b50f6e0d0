package legacy

import (
	"sync"

	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/metrics"
	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/ratelimit"
)

// SerialPorts is how many I/O ports a Serial takes.
const SerialPorts = 8

// Registers of a 16550A by offset; which one is meant depends on LCR's DLAB bit and on the direction (PC16550D data sheet).
const (
	regTHR = 0 // write; read: RBR; with DLAB: the divisor's low byte
	regIER = 1 // with DLAB: the divisor's high byte
	regIIR = 2 // read; write: FCR
	regLCR = 3
	regMCR = 4
	regLSR = 5
	regMSR = 6
	regSCR = 7

	ierRDI  = 1 << 0
	ierTHRI = 1 << 1
	ierMask = 0x0f

	iirNone = 0x01
	iirTHRI = 0x02
	iirRDI  = 0x04
	iirFIFO = 0xc0

	fcrEnable  = 1 << 0
	fcrClearRx = 1 << 1

	lcrDLAB = 1 << 7

	mcrDTR  = 1 << 0
	mcrRTS  = 1 << 1
	mcrOut1 = 1 << 2
	mcrOut2 = 1 << 3
	mcrLoop = 1 << 4
	mcrMask = 0x1f

	lsrDR   = 1 << 0
	lsrTHRE = 1 << 5
	lsrTEMT = 1 << 6

	msrCTS = 1 << 4
	msrDSR = 1 << 5
	msrRI  = 1 << 6
	msrDCD = 1 << 7
)

// Serial is a 16550A whose transmitter is always ready and whose line brings no input, loopback apart. It is safe for
// concurrent use.
type Serial struct {
	// Limiter bounds the output, in bytes; what is beyond is dropped. At first there is no limit.
	Limiter ratelimit.Limiter

	out    *Console
	irq    IRQ
	counts metrics.UART

	mu                           sync.Mutex
	ier, lcr, mcr, scr, dll, dlm byte
	fifo                         bool
	// thri: the transmitter-empty interrupt is pending. It goes when IIR shows it or THR is written.
	thri bool
	// rbr holds one byte that came back by loopback, if full.
	rbr  byte
	full bool
}

// NewSerial makes a serial port that writes to out.
func NewSerial(out *Console, irq IRQ) *Serial {
	return &Serial{out: out, irq: irq, dll: 12}
}

// Read answers a read of the port at offset off.
func (s *Serial) Read(off uint16) byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch off {
	case regTHR:
		if s.lcr&lcrDLAB != 0 {
			return s.dll
		}
		if s.full {
			s.counts.Reads.Inc()
		}
		s.full = false
		return s.rbr
	case regIER:
		if s.lcr&lcrDLAB != 0 {
			return s.dlm
		}
		return s.ier
	case regIIR:
		v := s.pending()
		if v == iirTHRI {
			s.thri = false
		}
		if s.fifo {
			v |= iirFIFO
		}
		return v
	case regLCR:
		return s.lcr
	case regMCR:
		return s.mcr
	case regLSR:
		v := byte(lsrTHRE | lsrTEMT)
		if s.full {
			v |= lsrDR
		}
		return v
	case regMSR:
		return s.modemStatus()
	case regSCR:
		return s.scr
	}
	return NoData
}

// Write carries out a write to the port at offset off.
func (s *Serial) Write(off uint16, v byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch off {
	case regTHR:
		switch {
		case s.lcr&lcrDLAB != 0:
			s.dll = v
			return
		case s.mcr&mcrLoop != 0:
			s.rbr, s.full = v, true
		default:
			s.send(v)
		}
		s.thri = true // the byte has left at once
		s.interrupt()
	case regIER:
		if s.lcr&lcrDLAB != 0 {
			s.dlm = v
			return
		}
		// An enabled interrupt whose condition holds already is raised now.
		if v&ierTHRI != 0 && s.ier&ierTHRI == 0 {
			s.thri = true
		}
		s.ier = v & ierMask
		s.interrupt()
	case regIIR:
		s.fifo = v&fcrEnable != 0
		if v&fcrClearRx != 0 {
			s.full = false
		}
	case regLCR:
		s.lcr = v
	case regMCR:
		s.mcr = v & mcrMask
	case regSCR:
		s.scr = v
	}
}

// send puts a byte on the line. It does not wait: what the limit or the other end does not take is lost.
func (s *Serial) send(v byte) {
	switch {
	case !s.Limiter.Allow(1):
		s.counts.RateLimiterDroppedBytes.Inc()
	case s.out.put(v):
		s.counts.Writes.Inc()
	default:
		s.counts.MissedWrites.Inc()
	}
}

// Metrics is what the port has counted. The counters go on.
func (s *Serial) Metrics() *metrics.UART { return &s.counts }

// pending is the interrupt of the highest priority, as IIR shows it.
func (s *Serial) pending() byte {
	switch {
	case s.full && s.ier&ierRDI != 0:
		return iirRDI
	case s.thri && s.ier&ierTHRI != 0:
		return iirTHRI
	}
	return iirNone
}

func (s *Serial) interrupt() {
	if s.pending() != iirNone {
		s.irq.Trigger()
	}
}

// modemStatus is a connected peer, or in loopback the port's own outputs.
func (s *Serial) modemStatus() byte {
	if s.mcr&mcrLoop == 0 {
		return msrCTS | msrDSR | msrDCD
	}
	var v byte
	for _, w := range [...]struct{ out, in byte }{{mcrDTR, msrDSR}, {mcrRTS, msrCTS}, {mcrOut1, msrRI}, {mcrOut2, msrDCD}} {
		if s.mcr&w.out != 0 {
			v |= w.in
		}
	}
	return v
}
