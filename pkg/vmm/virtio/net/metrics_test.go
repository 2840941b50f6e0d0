package net

import (
	"bytes"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/config"
)

// Frames are counted when they have gone through, without virtio's header, and what went wrong as what it was.
func TestMetrics(t *testing.T) {
	g := newGuest(t, config.NetworkInterface{IfaceID: "eth0"})
	g.dev.MeasureLatency()
	g.restart(allFeatures) // so that nothing runs while it is set
	send := func(p []byte) {
		t.Helper()
		if _, ok := g.tx.Add(g.put(p), nil); !ok {
			t.Fatal("no descriptors")
		}
		g.tx.Kick()
		g.WaitUsed(g.tx)
	}
	send(frame(100))
	send(frame(60))
	g.hear()
	g.hear()
	send(frame(5)) // less than Ethernet's header
	posted := g.post(times(16, 1600)...)
	g.say(frame(200))
	if p, _ := g.take(&posted); !bytes.Equal(p, frame(200)) {
		t.Fatalf("%d bytes", len(p))
	}
	c := g.dev.Metrics()
	for name, v := range map[string][2]uint64{
		"tx_packets_count": {c.TxPackets.Count(), 2}, "tx_bytes_count": {c.TxBytes.Count(), 160}, "tx_count": {c.Tx.Count(), 2},
		"tx_malformed_frames": {c.TxMalformedFrames.Count(), 1}, "tx_fails": {c.TxFails.Count(), 0},
		"rx_packets_count": {c.RxPackets.Count(), 1}, "rx_bytes_count": {c.RxBytes.Count(), 200}, "rx_count": {c.Rx.Count(), 1},
		"rx_fails": {c.RxFails.Count(), 0}, "tap_read_fails": {c.TAPReadFails.Count(), 0},
	} {
		if v[0] != v[1] {
			t.Errorf("%s is %d, want %d", name, v[0], v[1])
		}
	}
	if n := c.TxQueueEvents.Count(); n < 1 || n > 3 {
		t.Errorf("%d notifications, want 1 to 3", n)
	}
	// The other end goes: the next frame cannot be sent.
	g.wire.Close()
	send(frame(100))
	if c.TxPackets.Count() != 2 || c.TxFails.Count() != 1 {
		t.Errorf("after the end %d frames and %d failures, want 2 and 1", c.TxPackets.Count(), c.TxFails.Count())
	}
}

// A session in which the driver breaks its queue ends with a failure.
func TestEndIsCounted(t *testing.T) {
	d := &Device{id: "eth0"}
	s := &session{d: d, irq: noInterrupt{}}
	s.end("rx", unix.EIO)
	if n := d.Metrics().EventFails.Count(); n != 1 {
		t.Errorf("%d failures", n)
	}
}
