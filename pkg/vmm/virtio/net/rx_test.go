package net

import (
	"bytes"
	"encoding/binary"
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/config"
	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/virtio/queue"
	vt "github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/virtio/virtiotest"
)

func times(n int, size uint32) []uint32 { return slices.Repeat([]uint32{size}, n) }

// take collects the next frame, which the driver must see whole as soon as it sees the first of its buffers.
func (g *guest) take(posted *[]vt.Span) (p []byte, buffers int) {
	g.TB.Helper()
	_, n := g.WaitUsed(g.rx)
	for {
		s := (*posted)[0]
		*posted = (*posted)[1:]
		if n == 0 {
			// A buffer of no use.
			_, n = g.WaitUsed(g.rx)
			continue
		}
		p = append(p, g.Bytes(s)[:n]...)
		buffers++
		if buffers == int(binary.LittleEndian.Uint16(p[hdrBuffers:])) {
			clear(p[hdrBuffers:headerSize])
			return p, buffers
		}
		ok := false
		if _, n, ok = g.rx.Used(); !ok {
			g.TB.Fatalf("%d buffers of a frame of %d", buffers, binary.LittleEndian.Uint16(p[hdrBuffers:]))
		}
	}
}

func TestReceive(t *testing.T) {
	const merge = featureMrgRxbuf | featureGuestCSUM | featureGuestTSO4
	for _, tt := range []struct {
		name     string
		features uint64
		post     []uint32
		frame    []byte
		buffers  int // 0: dropped
	}{
		{"one buffer", merge, times(4, 1536), frame(1514), 1},
		{"fits exactly", merge, times(4, 1526), frame(1514), 1},
		{"one byte more", merge, times(4, 1526), frame(1515), 2},
		{"sizes mixed", merge, []uint32{12, 13, 100, 3000}, frame(1514), 4},
		{"largest", merge, times(64, 1536), frame(MaxFrame), 43},
		{"largest in one", merge, times(2, 70000), frame(MaxFrame), 1},
		{"largest, small features", featureMrgRxbuf, times(64, 1536), frame(MaxFrame), 43},
		{"of no use first", merge, []uint32{1, 11, 1536}, frame(1514), 1},
		{"checksum to be made", merge, times(2, 1536), frame(100, 1, 1, 54, 0, 0xa0, 5), 1},
		{"not mergeable", featureGuestTSO4, times(2, 65562), frame(65550), 1},
		{"not mergeable, fits exactly", 0, times(2, 1526), frame(1514), 1},
		{"not mergeable, one byte more", 0, times(4, 1526), frame(1515), 0},
		{"not mergeable, one byte more, large", featureGuestTSO4, times(4, 65562), frame(65551), 0},
		{"not mergeable, of no use first", 0, []uint32{1, 1536}, frame(100), 1},
		{"longer than any frame", merge, times(64, 1536), frame(MaxFrame + 1 + 64*1536), 0},
		{"no header", merge, times(4, 1536), frame(0)[:11], 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			g := newGuest(t, config.NetworkInterface{IfaceID: "eth0"})
			g.restart(tt.features)
			posted := g.post(tt.post...)
			g.say(tt.frame)
			for _, want := range [][]byte{tt.frame, frame(50)} {
				if len(want) == len(tt.frame) && tt.buffers == 0 {
					g.say(frame(50)) // the one before is lost
					continue
				}
				got, n := g.take(&posted)
				if !bytes.Equal(got, want) || (n != tt.buffers && len(want) == len(tt.frame)) {
					t.Fatalf("%d bytes in %d buffers: % .40x; want %d in %d", len(got), n, got, len(want), tt.buffers)
				}
				if tt.buffers > 0 {
					return
				}
			}
		})
	}
	t.Run("flags without GUEST_CSUM", func(t *testing.T) {
		g := newGuest(t, config.NetworkInterface{IfaceID: "eth0"})
		g.restart(featureMrgRxbuf)
		posted := g.post(1536)
		g.say(frame(100, 2))
		if got, _ := g.take(&posted); !bytes.Equal(got, frame(100)) {
			t.Fatalf("% .40x", got)
		}
	})
	t.Run("header in pieces", func(t *testing.T) {
		g := newGuest(t, config.NetworkInterface{IfaceID: "eth0"})
		var bufs []vt.Span
		for range 20 {
			bufs = append(bufs, g.Arena.Alloc(1))
		}
		bufs = append(bufs, g.Arena.Alloc(100))
		g.rx.Add(nil, bufs)
		g.rx.Kick()
		g.say(frame(50))
		_, n := g.WaitUsed(g.rx)
		var got []byte
		for _, s := range bufs {
			got = append(got, g.Bytes(s)...)
		}
		want := frame(50)
		want[hdrBuffers] = 1
		if !bytes.Equal(got[:n], want) {
			t.Fatalf("%d bytes: % x", n, got[:n])
		}
	})
}

// Frames wait for buffers, also a frame of which only a part has room.
func TestReceiveWaits(t *testing.T) {
	g := newGuest(t, config.NetworkInterface{IfaceID: "eth0"})
	for i := range 10 {
		g.say(frame(100 + i))
	}
	posted := g.post(times(3, 1536)...)
	for i := range 3 {
		if got, _ := g.take(&posted); !bytes.Equal(got, frame(100+i)) {
			t.Fatalf("frame %d: %d bytes", i, len(got))
		}
	}
	g.idle()
	posted = g.post(times(7, 1536)...)
	for i := range 7 {
		if got, _ := g.take(&posted); !bytes.Equal(got, frame(103+i)) {
			t.Fatalf("frame %d: %d bytes", 3+i, len(got))
		}
	}
	for range 20 {
		posted = g.post(1536, 13)
		g.say(frame(30000))
		g.idle()
		posted = append(posted, g.post(times(10, 1536)...)...)
		g.idle()
		posted = append(posted, g.post(times(20, 1536)...)...)
		if got, n := g.take(&posted); !bytes.Equal(got, frame(30000)) || n != 21 {
			t.Fatalf("%d bytes in %d buffers", len(got), n)
		}
		// What is left over serves the next frame.
		g.say(frame(1000))
		if got, _ := g.take(&posted); !bytes.Equal(got, frame(1000)) {
			t.Fatalf("%d bytes", len(got))
		}
		g.restart(allFeatures)
	}
}

func (g *guest) idle() {
	g.TB.Helper()
	time.Sleep(2 * time.Millisecond)
	if _, _, ok := g.rx.Used(); ok {
		g.TB.Fatal("unexpected frame")
	}
}

// A ring that is too small as a whole for a frame loses it, and goes on.
func TestReceiveSmallRing(t *testing.T) {
	g := newGuest(t, config.NetworkInterface{IfaceID: "eth0"})
	posted := g.post(times(QueueSize, 12)...)
	g.say(frame(QueueSize*12 - 11))
	g.say(frame(QueueSize*12 - 12))
	if got, n := g.take(&posted); !bytes.Equal(got, frame(QueueSize*12-12)) || n != QueueSize {
		t.Fatalf("%d bytes in %d buffers", len(got), n)
	}
}

// More pieces of memory than one system call takes.
func TestReceiveManyPieces(t *testing.T) {
	g := newGuest(t, config.NetworkInterface{IfaceID: "eth0"})
	table := g.Arena.Alloc(16 * QueueSize)
	for range 6 {
		var bufs []vt.Span
		for range QueueSize {
			bufs = append(bufs, g.Arena.Alloc(10))
		}
		table = g.Arena.Alloc(16 * QueueSize)
		if _, ok := g.rx.AddIndirect(table.Addr, nil, bufs); !ok {
			t.Fatal("ring full")
		}
	}
	g.rx.Kick()
	g.say(frame(14000))
	for i, want := range []uint32{2560, 2560, 2560, 2560, 2560, 14012 - 5*2560} {
		if _, n := g.WaitUsed(g.rx); n != want {
			t.Fatalf("buffer %d: %d bytes, want %d", i, n, want)
		}
	}
}

func TestHostileRings(t *testing.T) {
	for _, q := range []int{rxQueue, txQueue} {
		g := newGuest(t, config.NetworkInterface{IfaceID: "eth0"})
		out := []vt.Span{{Addr: 1 << 40, Len: 100}}
		if q == rxQueue {
			g.rx.Add(nil, out)
		} else {
			g.tx.Add(out, nil)
		}
		g.Rings[q].Kick()
		select {
		case err := <-g.Broken:
			if !errors.Is(err, queue.ErrBroken) {
				t.Error(err)
			}
		case <-time.After(vt.Timeout):
			t.Fatal("nobody was told of the broken queue")
		}
		// The other direction goes on, and a new driver has both.
		for range 2 {
			if q == rxQueue {
				g.Do(g.tx, g.put(frame(60)), nil)
				g.hear()
			} else {
				posted := g.post(1536)
				g.say(frame(60))
				g.take(&posted)
			}
			g.restart(allFeatures)
		}
	}
}

// A driver that leaves in the middle of everything gets the device back in time, without frames of before.
func TestReset(t *testing.T) {
	g := newGuest(t, config.NetworkInterface{IfaceID: "eth0"})
	for i := range 20 {
		for range i % 4 {
			g.post(1536)
		}
		for range i % 3 {
			g.tx.Add(g.put(frame(60)), nil)
			g.tx.Kick()
		}
		for range i % 5 {
			g.say(frame(20000))
		}
		g.restart(allFeatures)
		posted := g.post(times(4, 1536)...)
		g.say(frame(333))
		if got, _ := g.take(&posted); !bytes.Equal(got, frame(333)) {
			t.Fatalf("%d bytes", len(got))
		}
	}
}

// The TAP goes away: the driver is told, what it sends is lost, nothing hangs, and nothing is logged twice.
func TestLost(t *testing.T) {
	g := newGuest(t, config.NetworkInterface{IfaceID: "eth0"})
	posted := g.post(1536, 1536)
	g.say(frame(60))
	g.take(&posted)
	g.wire.Close()
	for range 2 {
		select {
		case err := <-g.Broken:
			t.Log(err)
		case <-g.Config:
			var status [2]byte
			if g.dev.ReadConfig(configStatus, status[:]); status != [2]byte{} {
				t.Errorf("link status % x", status)
			}
		case <-time.After(vt.Timeout):
			t.Fatal("nobody was told")
		}
	}
	for range 2 * QueueSize {
		g.Do(g.tx, g.put(frame(60)), nil)
	}
	g.restart(allFeatures)
	g.Do(g.tx, g.put(frame(60)), nil)
	g.post(1536)
	g.idle()
	select {
	case err := <-g.Broken:
		t.Error(err)
	default:
	}
}
