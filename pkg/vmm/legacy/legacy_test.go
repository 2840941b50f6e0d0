package legacy

import (
	"bytes"
	"errors"
	"io"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"

	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/config"
)

type countIRQ int

func (c *countIRQ) Trigger() { *c++ }

func TestSerialTransmits(t *testing.T) {
	var out bytes.Buffer
	con := NewConsole(&out)
	var irq countIRQ
	s := NewSerial(con, &irq)
	for _, b := range []byte("hello, world") {
		if s.Read(regLSR)&(lsrTHRE|lsrTEMT) != lsrTHRE|lsrTEMT {
			t.Fatal("transmitter not ready")
		}
		s.Write(regTHR, b)
	}
	if irq != 0 {
		t.Errorf("%d interrupts while they were disabled", irq)
	}
	if err := con.Close(5 * time.Second); err != nil {
		t.Fatal(err)
	}
	if got := out.String(); got != "hello, world" {
		t.Errorf("output %q", got)
	}
}

func TestSerialTransmitterInterrupt(t *testing.T) {
	con := NewConsole(io.Discard)
	defer con.Close(time.Second)
	var irq countIRQ
	s := NewSerial(con, &irq)
	s.Write(regIIR, fcrEnable)
	s.Write(regIER, ierTHRI)
	if irq != 1 {
		t.Fatalf("%d interrupts after enabling THRI, want 1", irq)
	}
	if v := s.Read(regIIR); v != iirFIFO|iirTHRI {
		t.Errorf("IIR = %#x, want THRI", v)
	}
	if v := s.Read(regIIR); v != iirFIFO|iirNone {
		t.Errorf("IIR = %#x after it was read, want none", v)
	}
	s.Write(regTHR, 'x')
	if v := s.Read(regIIR); irq != 2 || v != iirFIFO|iirTHRI {
		t.Errorf("after a byte: %d interrupts, IIR %#x", irq, v)
	}
}

// What Linux' autoconfig does to find out what the port is.
func TestSerialProbe(t *testing.T) {
	con := NewConsole(io.Discard)
	defer con.Close(time.Second)
	var irq countIRQ
	s := NewSerial(con, &irq)
	s.Write(regIER, 0xff)
	if v := s.Read(regIER); v != 0x0f {
		t.Errorf("IER = %#x, want 0x0f", v)
	}
	s.Write(regMCR, mcrLoop|mcrOut2|mcrRTS)
	if v := s.Read(regMSR); v != msrDCD|msrCTS {
		t.Errorf("MSR in loopback = %#x, want %#x", v, msrDCD|msrCTS)
	}
	s.Write(regTHR, 'L')
	if v := s.Read(regTHR); v != 'L' {
		t.Errorf("loopback gave %q", v)
	}
	s.Write(regLCR, lcrDLAB)
	s.Write(regTHR, 1)
	s.Write(regIER, 2)
	if s.Read(regTHR) != 1 || s.Read(regIER) != 2 {
		t.Error("the divisor is not kept")
	}
	s.Write(regSCR, 0x5a)
	if v := s.Read(regSCR); v != 0x5a {
		t.Errorf("SCR = %#x", v)
	}
}

type stuckWriter struct {
	release chan struct{}
	bytes.Buffer
}

func (w *stuckWriter) Write(p []byte) (int, error) { <-w.release; return w.Buffer.Write(p) }

func TestConsoleNeverBlocksTheGuest(t *testing.T) {
	w := &stuckWriter{release: make(chan struct{})}
	con := NewConsole(w)
	for range 3 * consoleBuffer {
		con.put('x')
	}
	if err := con.Close(10 * time.Millisecond); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("Close with a stuck writer: %v", err)
	}
	close(w.release)
	if err := con.Close(5 * time.Second); err != nil {
		t.Error(err)
	}
	if got := w.String(); !strings.HasSuffix(got, overrun) {
		t.Errorf("nothing says that output was dropped: %.20q at the end", got[max(0, len(got)-20):])
	}
}

// Only a file has a bound.
func TestConsoleWritesAll(t *testing.T) {
	n := 0
	con := NewConsole(writer(func(p []byte) { n += len(p) }))
	const all = 3 << 20
	for i := range all {
		con.put('x')
		if i%(consoleBuffer/2) == 0 {
			for con.queued() > 0 {
				time.Sleep(100 * time.Microsecond)
			}
		}
	}
	if err := con.Close(5 * time.Second); err != nil || n != all {
		t.Errorf("%d bytes written, want %d; %v", n, all, err)
	}
}

type writer func(p []byte)

func (w writer) Write(p []byte) (int, error) { w(p); return len(p), nil }

func (c *Console) queued() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.buf)
}

func TestI8042(t *testing.T) {
	resets := 0
	var irq countIRQ
	k := NewI8042(&irq, func() { resets++ })
	ask := func(cmd byte) byte {
		k.Write(I8042Command, cmd)
		if k.Read(I8042Command)&statusOutFull == 0 {
			t.Fatalf("command %#x: no answer", cmd)
		}
		return k.Read(I8042Data)
	}
	if v := ask(cmdSelfTest); v != selfTestPassed {
		t.Errorf("self test: %#x", v)
	}
	k.Write(I8042Command, cmdWriteCTR)
	k.Write(I8042Data, 0x65)
	if v := ask(cmdReadCTR); v != 0x65 {
		t.Errorf("CTR = %#x, want 0x65", v)
	}
	k.Write(I8042Data, kbdGetID)
	for _, want := range []byte{kbdAck, 0xab, 0x83} {
		if v := k.Read(I8042Data); v != want {
			t.Errorf("keyboard id: %#x, want %#x", v, want)
		}
	}
	for range 100 {
		k.Write(I8042Data, kbdGetID)
	}
	if len(k.out) > i8042Queue {
		t.Errorf("%d bytes queued", len(k.out))
	}
	k.Write(I8042Command, I8042Reset)
	if resets != 1 {
		t.Errorf("%d resets, want 1", resets)
	}
}

// Either all codes of the keys arrive or none.
func TestCtrlAltDel(t *testing.T) {
	for _, tc := range []struct {
		name      string
		translate bool
		codes     int
	}{{"set 1", true, 8}, {"set 2", false, 11}} {
		t.Run(tc.name, func(t *testing.T) {
			for left := range i8042Queue + 1 {
				var irq countIRQ
				k := NewI8042(&irq, nil)
				if !tc.translate {
					k.Write(I8042Command, cmdWriteCTR)
					k.Write(I8042Data, ctrKeyboardIRQ)
				}
				for range left {
					k.Write(I8042Command, cmdTestPort)
				}
				err := k.CtrlAltDel()
				n := 0
				for ; k.Read(I8042Command)&statusOutFull != 0; n++ {
					k.Read(I8042Data)
				}
				if fits := left+tc.codes <= i8042Queue; fits && (err != nil || n != left+tc.codes) {
					t.Errorf("%d bytes before: %d after, %v", left, n, err)
				} else if !fits && (!errdefs.IsUnavailable(err) || n != left) {
					t.Errorf("%d bytes before: %d after, want none more, and %v", left, n, err)
				}
			}
		})
	}
}

func TestPower(t *testing.T) {
	off, panics := 0, 0
	s := SleepControl{TypeS5: 5, Off: func() { off++ }}
	s.Write(5 << 2)
	s.Write(3<<2 | 1<<5)
	if off != 0 {
		t.Error("powered off without SLP_EN or with another sleep type")
	}
	s.Write(5<<2 | 1<<5)
	p := PVPanic{Panicked: func() { panics++ }}
	p.Write(2)
	p.Write(1)
	if off != 1 || panics != 1 || p.Read() != 3 {
		t.Errorf("off %d, panics %d, events %#x", off, panics, p.Read())
	}
}

// What the limit does not let through is dropped and counted, as is what the other end does not take; a guest is held up by neither.
func TestSerialLimit(t *testing.T) {
	var out bytes.Buffer
	con := NewConsole(&out)
	var irq countIRQ
	s := NewSerial(con, &irq)
	s.Limiter.Update(&config.RateLimiter{Bandwidth: &config.TokenBucket{Size: 5, OneTimeBurst: 3, RefillTime: 1e12}})
	for _, b := range []byte("hello, world") {
		s.Write(regTHR, b)
		if s.Read(regLSR)&lsrTHRE == 0 {
			t.Fatal("transmitter not ready")
		}
	}
	s.Limiter.Update(&config.RateLimiter{Bandwidth: &config.TokenBucket{}})
	s.Write(regTHR, '!')
	if err := con.Close(5 * time.Second); err != nil {
		t.Fatal(err)
	}
	s.Write(regTHR, '?') // nobody takes it any more
	s.Write(regMCR, mcrLoop)
	s.Write(regTHR, 'x')
	s.Read(regTHR)
	s.Read(regTHR) // nothing there
	if got := out.String(); got != "hello, w!" {
		t.Errorf("output %q", got)
	}
	m := s.Metrics()
	if m.Writes.Count() != 9 || m.RateLimiterDroppedBytes.Count() != 4 || m.MissedWrites.Count() != 1 || m.Reads.Count() != 1 {
		t.Errorf("%d bytes out, %d dropped by the limit, %d missed, %d in", m.Writes.Count(), m.RateLimiterDroppedBytes.Count(), m.MissedWrites.Count(), m.Reads.Count())
	}
}

func TestI8042Metrics(t *testing.T) {
	var irq countIRQ
	k := NewI8042(&irq, func() {})
	k.Read(I8042Command)
	k.Write(I8042Command, cmdSelfTest)
	k.Read(I8042Data)
	k.Write(I8042Command, I8042Reset)
	for range 3 {
		_ = k.CtrlAltDel() // the third is too much for the queue
	}
	m := k.Metrics()
	if m.Reads.Count() != 2 || m.Writes.Count() != 1 || m.Resets.Count() != 1 || m.Errors.Count() != 1 {
		t.Errorf("%d reads, %d writes, %d resets, %d errors", m.Reads.Count(), m.Writes.Count(), m.Resets.Count(), m.Errors.Count())
	}
}
