package net

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"os"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/config"
	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/virtio"
	vt "github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/virtio/virtiotest"
)

const allFeatures = features | virtio.FeatureVersion1 | virtio.FeatureEventIdx | virtio.FeatureIndirectDesc

// guest is a driver, with the other end of a socket pair in place of a TAP: both carry a frame a call.
type guest struct {
	*vt.Machine
	dev    *Device
	wire   *os.File
	rx, tx *vt.Ring

	mu       sync.Mutex
	offloads []int
}

func newGuest(tb testing.TB, cfg config.NetworkInterface, prepare ...func(*Device)) *guest {
	tb.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		tb.Fatal(err)
	}
	g := &guest{wire: os.NewFile(uintptr(fds[1]), "wire")}
	tb.Cleanup(func() { g.wire.Close() })
	g.dev, err = newDevice(cfg, os.NewFile(uintptr(fds[0]), "tap"), func(flags int) error {
		g.mu.Lock()
		defer g.mu.Unlock()
		g.offloads = append(g.offloads, flags)
		return nil
	})
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { g.dev.Close() })
	for _, f := range prepare {
		f(g.dev)
	}
	g.Machine = vt.Start(tb, g.dev, 32<<20)
	g.rx, g.tx = g.Rings[rxQueue], g.Rings[txQueue]
	return g
}

// restart gives the device to another driver.
func (g *guest) restart(features uint64) {
	g.TB.Helper()
	begin := time.Now()
	if err := g.dev.Reset(); err != nil {
		g.TB.Fatal(err)
	}
	if d := time.Since(begin); d > virtio.ResetTimeout {
		g.TB.Fatalf("reset took %v", d)
	}
	g.Activate(features)
	g.rx, g.tx = g.Rings[rxQueue], g.Rings[txQueue]
}

// frame is a header and n bytes of noise.
func frame(n int, h ...byte) []byte {
	b := make([]byte, headerSize+n)
	rand.NewChaCha8([32]byte{byte(n), byte(n >> 8)}).Read(b[headerSize:])
	copy(b, h)
	return b
}

// put writes p to guest memory, in pieces of the given sizes; the last one takes the rest.
func (g *guest) put(p []byte, cut ...int) (spans []vt.Span) {
	for _, n := range append(cut, len(p)) {
		n = min(n, len(p))
		s := g.Arena.Alloc(uint32(n))
		copy(g.Bytes(s), p[:n])
		if p = p[n:]; n > 0 || len(p) > 0 {
			spans = append(spans, s)
		}
	}
	return spans
}

// hear takes the next frame off the wire.
func (g *guest) hear() []byte {
	g.TB.Helper()
	if err := g.wire.SetReadDeadline(time.Now().Add(vt.Timeout)); err != nil {
		g.TB.Fatal(err)
	}
	b := make([]byte, 128<<10)
	n, err := g.wire.Read(b)
	if err != nil {
		g.TB.Fatal(err)
	}
	return b[:n]
}

// say puts a frame on the wire.
func (g *guest) say(p []byte) {
	g.TB.Helper()
	if err := g.wire.SetWriteDeadline(time.Now().Add(vt.Timeout)); err != nil {
		g.TB.Fatal(err)
	}
	if _, err := g.wire.Write(p); err != nil {
		g.TB.Fatal(err)
	}
}

func (g *guest) post(sizes ...uint32) (spans []vt.Span) {
	g.TB.Helper()
	for _, n := range sizes {
		s := g.Arena.Alloc(n)
		if _, ok := g.rx.Add(nil, []vt.Span{s}); !ok {
			g.TB.Fatal("no free descriptors")
		}
		spans = append(spans, s)
	}
	g.rx.Kick()
	return spans
}

func TestConfiguration(t *testing.T) {
	read := func(d *Device) (c [configLen]byte) {
		d.ReadConfig(0, c[:])
		return c
	}
	plain := newGuest(t, config.NetworkInterface{IfaceID: "eth0"})
	if f := plain.dev.Features(); f != features || plain.dev.Type() != 1 {
		t.Errorf("features %#x", f)
	}
	if c := read(plain.dev); c != [configLen]byte{configStatus: statusLinkUp, configPairs: 1} {
		t.Errorf("configuration % x", c)
	}
	full := newGuest(t, config.NetworkInterface{IfaceID: "eth0", GuestMAC: "02:34:56:78:9A:bc", MTU: 9000})
	if f := full.dev.Features(); f != features|featureMAC|featureMTU {
		t.Errorf("features %#x", f)
	}
	if c := read(full.dev); c != [configLen]byte{2, 0x34, 0x56, 0x78, 0x9a, 0xbc, statusLinkUp, 0, 1, 0, 9000 & 0xff, 9000 >> 8} {
		t.Errorf("configuration % x", c)
	}
	for _, off := range []uint64{5, 11, 12, 1 << 63} {
		p := []byte{0xee, 0xee}
		full.dev.WriteConfig(off, p)
		full.dev.ReadConfig(off, p)
		want := map[uint64][2]byte{5: {0xbc, 1}, 11: {9000 >> 8, 0}}[off]
		if [2]byte(p) != want {
			t.Errorf("at %#x: % x, want % x", off, p, want)
		}
	}
}

func TestOffloads(t *testing.T) {
	const all = unix.TUN_F_CSUM | unix.TUN_F_TSO4 | unix.TUN_F_TSO6 | unix.TUN_F_TSO_ECN | unix.TUN_F_UFO
	g := newGuest(t, config.NetworkInterface{IfaceID: "eth0"})
	for _, tc := range []struct {
		features uint64
		want     int
	}{
		{featureGuestTSO4 | featureGuestECN, 0},
		{featureGuestCSUM, unix.TUN_F_CSUM},
		{featureGuestCSUM | featureGuestECN, unix.TUN_F_CSUM},
		{featureGuestCSUM | featureGuestTSO6 | featureGuestECN, unix.TUN_F_CSUM | unix.TUN_F_TSO6 | unix.TUN_F_TSO_ECN},
		{featureGuestCSUM | featureGuestUFO, unix.TUN_F_CSUM | unix.TUN_F_UFO},
	} {
		g.offloads = nil
		if g.restart(tc.features); len(g.offloads) != 2 || g.offloads[0] != 0 || g.offloads[1] != tc.want {
			t.Errorf("%#x: %#x, want 0 and %#x", tc.features, g.offloads, tc.want)
		}
	}
	if got := offloads(allFeatures); got != all {
		t.Errorf("%#x, want %#x", got, all)
	}
}

func TestTransmit(t *testing.T) {
	g := newGuest(t, config.NetworkInterface{IfaceID: "eth0"})
	// Flags, type, header length, segment size, start and offset of the checksum.
	hdr := func(flags, gso byte, hdrLen, size, start, off uint16) []byte {
		b := []byte{flags, gso}
		for _, v := range []uint16{hdrLen, size, start, off} {
			b = binary.LittleEndian.AppendUint16(b, v)
		}
		return b
	}
	tests := []struct {
		name string
		p    []byte
		cut  []int
		want []byte // nil: dropped
	}{
		{"one piece", frame(60), nil, frame(60)},
		{"header apart", frame(1514), []int{12}, frame(1514)},
		{"header cut", frame(1514), []int{1, 5, 30, 1}, frame(1514)},
		{"least", frame(14), nil, frame(14)},
		{"largest", frame(MaxFrame), []int{12, 4096, 60000}, frame(MaxFrame)},
		{"checksum", frame(60, hdr(1, 0, 0, 0, 34, 24)...), nil, frame(60, hdr(1, 0, 0, 0, 34, 24)...)},
		{"TSO", frame(9000, hdr(1, 0x81, 54, 1448, 34, 16)...), nil, frame(9000, hdr(1, 0x81, 54, 1448, 34, 16)...)},
		{"TSO of IPv6", frame(9000, hdr(1, 4, 74, 1428, 54, 16)...), nil, frame(9000, hdr(1, 4, 74, 1428, 54, 16)...)},
		{"flags and counts of the other way", frame(60, 0xfe, 0, 0, 0, 0, 0, 0, 0, 0, 0, 7, 7), nil, frame(60)},

		{"no header", frame(0)[:11], nil, nil},
		{"header only", frame(0), nil, nil},
		{"no frame", frame(13), nil, nil},
		{"too large", frame(MaxFrame + 1), nil, nil},
		{"checksum behind the end", frame(60, hdr(1, 0, 0, 0, 34, 25)...), nil, nil},
		{"checksum far behind the end", frame(60, hdr(1, 0, 0, 0, 0xffff, 0xffff)...), nil, nil},
		{"unknown type", frame(60, hdr(1, 2, 54, 1448, 34, 16)...), nil, nil},
		{"ECN of nothing", frame(60, hdr(1, 0x80, 54, 1448, 34, 16)...), nil, nil},
		{"ECN of UDP", frame(60, hdr(1, 0x83, 42, 1448, 34, 6)...), nil, nil},
		{"segments of no size", frame(9000, hdr(1, 1, 54, 0, 34, 16)...), nil, nil},
		{"segments without checksums", frame(9000, hdr(0, 1, 54, 1448, 34, 16)...), nil, nil},
		{"long header", frame(60, hdr(1, 1, 61, 1448, 34, 16)...), nil, nil},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if n := g.Do(g.tx, g.put(tt.p, tt.cut...), nil); n != 0 {
				t.Errorf("%d bytes written", n)
			}
			if tt.want != nil {
				if got := g.hear(); !bytes.Equal(got, tt.want) {
					t.Fatalf("%d bytes: % .40x; want %d: % .40x", len(got), got, len(tt.want), tt.want)
				}
			}
			// Nothing else was sent.
			g.Do(g.tx, g.put(frame(77)), nil)
			if got := g.hear(); !bytes.Equal(got, frame(77)) {
				t.Fatalf("%d bytes: % .40x", len(got), got)
			}
		})
	}
	t.Run("not negotiated", func(t *testing.T) {
		for _, f := range []struct {
			features uint64
			gso      byte
			sent     bool
		}{
			{0, 0, false}, {featureCSUM, 0, true},
			{featureCSUM, 1, false}, {featureCSUM | featureHostTSO4, 1, true},
			{featureCSUM | featureHostTSO4, 4, false}, {featureCSUM | featureHostTSO6, 4, true},
			{featureCSUM | featureHostTSO4, 0x81, false}, {featureCSUM | featureHostTSO4 | featureHostECN, 0x81, true},
			{featureCSUM | featureHostTSO4, 3, false}, {featureCSUM | featureHostUFO, 3, true},
		} {
			g.restart(f.features)
			p := frame(9000, hdr(1, f.gso, 54, 1448, 34, 16)...)
			g.Do(g.tx, g.put(p), nil)
			g.Do(g.tx, g.put(frame(77)), nil)
			if got := g.hear(); bytes.Equal(got, p) != f.sent {
				t.Errorf("%+v: % .20x", f, got)
			} else if f.sent {
				g.hear()
			}
		}
	})
}

// A host that does not take frames holds the guest back; none is lost, and a reset does not wait.
func TestTransmitWaits(t *testing.T) {
	g := newGuest(t, config.NetworkInterface{IfaceID: "eth0"})
	for i := range QueueSize {
		if _, ok := g.tx.Add(g.put(frame(8000+i)), nil); !ok {
			t.Fatal("ring full")
		}
	}
	g.tx.Kick()
	g.WaitUsed(g.tx)
	for i := range QueueSize {
		if got := g.hear(); !bytes.Equal(got, frame(8000+i)) {
			t.Fatalf("frame %d: %d bytes", i, len(got))
		}
	}
	for range QueueSize - 1 {
		g.WaitUsed(g.tx)
	}
	for range QueueSize {
		g.tx.Add(g.put(frame(8000)), nil)
	}
	g.tx.Kick()
	g.WaitUsed(g.tx)
	g.restart(allFeatures)
	for {
		g.wire.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
		if _, err := g.wire.Read(make([]byte, 16)); err != nil {
			break
		}
	}
	g.Do(g.tx, g.put(frame(99)), nil)
	if got := g.hear(); !bytes.Equal(got, frame(99)) {
		t.Fatalf("%d bytes", len(got))
	}
}
