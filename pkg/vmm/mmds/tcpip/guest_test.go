package tcpip

import (
	"bytes"
	"fmt"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/metrics"
)

// server answers a line with a number by so many bytes; "close" before it ends the connection.
type server struct{}

func (server) Request(b []byte) int { return bytes.IndexByte(b, '\n') + 1 }

func (server) Respond(request []byte) Answer {
	word, closes := strings.CutPrefix(strings.TrimSpace(string(request)), "close ")
	n, _ := strconv.Atoi(word)
	n = min(max(n, 0), 1<<20)
	text := pattern(n)
	return Answer{Head: []byte(text[:n/3]), Body: text[n/3:], Close: closes}
}

// pattern is the answer of n bytes, up to 1 MiB.
func pattern(n int) string { return numbers[:n] }

var numbers = func() string {
	var b []byte
	for i := 0; len(b) < 1<<20; i++ {
		b = append(strconv.AppendInt(b, int64(i), 10), ',')
	}
	return string(b)
}()

var (
	here  = ipv4{169, 254, 169, 254}
	there = ipv4{10, 0, 0, 2}
	guest = mac{2, 0, 0, 0, 0, 9}
)

// world is a stack with a clock of its own.
type world struct {
	testing.TB
	s     *Stack
	clock time.Duration
	p     [MaxFrame]byte
}

func newWorld(tb testing.TB) *world {
	w := &world{TB: tb, s: New(here, 80, server{}, new(metrics.MMDS)), clock: time.Hour}
	w.s.since = func() time.Duration { return w.clock }
	return w
}

// frame is a TCP segment to the stack, without checksums.
func frame(from peer, port uint16, seq, ackno uint32, flags byte, window uint16, options, data []byte) []byte {
	header := tcpLen + len(options)
	b := make([]byte, ethLen+ipLen+header+len(data))
	copy(b[ethDst:], serverMAC[:])
	copy(b[ethSrc:], guest[:])
	be.PutUint16(b[ethType:], typeIPv4)
	ip := b[ethLen:]
	ip[0] = 0x45
	be.PutUint16(ip[ipTotal:], uint16(len(ip)))
	ip[ipTTL], ip[ipProtocol] = 64, protocolTCP
	copy(ip[ipSrc:], from.addr[:])
	copy(ip[ipDst:], here[:])
	tcp := ip[ipLen:]
	be.PutUint16(tcp[tcpSrc:], from.port)
	be.PutUint16(tcp[tcpDst:], port)
	be.PutUint32(tcp[tcpSeq:], seq)
	be.PutUint32(tcp[tcpAck:], ackno)
	tcp[tcpOffset], tcp[tcpFlags] = byte(header/4)<<4, flags
	be.PutUint16(tcp[tcpWindow:], window)
	copy(tcp[tcpLen:], options)
	copy(tcp[header:], data)
	return b
}

// heard is a segment from the stack.
type heard struct {
	to       peer
	port     uint16
	seq, ack uint32
	flags    byte
	window   uint16
	mss      uint16
	data     string
}

// checkFrame takes apart what the stack sends, all of which must be right.
func checkFrame(tb testing.TB, b []byte) heard {
	tb.Helper()
	if len(b) < ethLen+ipLen+tcpLen || mac(b[ethSrc:]) != serverMAC || be.Uint16(b[ethType:]) != typeIPv4 {
		tb.Fatalf("no IPv4: % x", b)
	}
	ip := b[ethLen:]
	if ip[0] != 0x45 || int(be.Uint16(ip[ipTotal:])) != len(ip) || ipv4(ip[ipSrc:]) != here || fold(sum(0, ip[:ipLen])) != 0xffff {
		tb.Fatalf("bad IPv4 header: % x", ip[:ipLen])
	}
	tcp := ip[ipLen:]
	if fold(sum(sum(protocolTCP+uint32(len(tcp)), ip[ipSrc:ipLen]), tcp)) != 0xffff {
		tb.Fatalf("bad checksum: % x", tcp)
	}
	header := int(tcp[tcpOffset]>>4) * 4
	return heard{
		to: peer{ipv4(ip[ipDst:]), be.Uint16(tcp[tcpDst:])}, port: be.Uint16(tcp[tcpSrc:]),
		seq: be.Uint32(tcp[tcpSeq:]), ack: be.Uint32(tcp[tcpAck:]), flags: tcp[tcpFlags], window: be.Uint16(tcp[tcpWindow:]),
		mss: findMSS(tcp[tcpLen:header]), data: string(tcp[header:]),
	}
}

// next is the stack's next segment; ok is false if there is none.
func (w *world) next() (h heard, ok bool) {
	w.Helper()
	n, _ := w.s.Next(w.p[:])
	if n == 0 {
		return h, false
	}
	return checkFrame(w, w.p[:n]), true
}

// must is the next segment, which has to be there.
func (w *world) must() heard {
	w.Helper()
	h, ok := w.next()
	if !ok {
		w.Fatal("the stack says nothing")
	}
	return h
}

// silent wants nothing to come, and gives the time to wait.
func (w *world) silent() time.Duration {
	w.Helper()
	n, wait := w.s.Next(w.p[:])
	if n > 0 {
		w.Fatalf("unexpected: %+v", checkFrame(w, w.p[:n]))
	}
	return wait
}

// flow is a client's side of a connection.
type flow struct {
	*world
	me       peer
	seq, ack uint32
	window   uint16
}

// dial makes a connection.
func (w *world) dial(port uint16) *flow {
	w.Helper()
	f := &flow{world: w, me: peer{there, port}, seq: 0xfffffff0 + uint32(port), window: 65535}
	w.s.Receive(frame(f.me, 80, f.seq, 0, syn, f.window, []byte{optionNop, optionMSS, 4, 0x05, 0xb4, optionNop, optionNop, optionEnd}, nil))
	h := w.must()
	if f.seq++; h.flags != syn|ack || h.ack != f.seq || h.to != f.me || h.port != 80 || h.mss != 1460 {
		w.Fatalf("%+v", h)
	}
	f.ack = h.seq + 1
	f.send(ack, "")
	return f
}

// send sends a segment, which the flow does not take for lost.
func (f *flow) send(flags byte, data string) {
	f.s.Receive(frame(f.me, 80, f.seq, f.ack, flags, f.window, nil, []byte(data)))
	f.seq += uint32(len(data))
	if flags&fin != 0 {
		f.seq++
	}
}

// read takes segments until n bytes have come in order; each is acknowledged.
func (f *flow) read(n int) string {
	f.Helper()
	var b strings.Builder
	for b.Len() < n {
		h := f.must()
		if h.to != f.me || h.flags&rst != 0 {
			f.Fatalf("%+v", h)
		}
		if h.seq != f.ack {
			f.send(ack, "")
			continue
		}
		if b.WriteString(h.data); len(h.data) > 0 {
			f.ack += uint32(len(h.data))
			f.send(ack, "")
		}
	}
	return b.String()
}

// want has a request answered.
func (f *flow) want(n int) {
	f.Helper()
	f.send(ack|psh, fmt.Sprintf("%d\n", n))
	if got := f.read(n); got != pattern(n) {
		f.Fatalf("%d bytes of %d, or others", len(got), n)
	}
}
