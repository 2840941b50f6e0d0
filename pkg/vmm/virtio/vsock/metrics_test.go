package vsock

import (
	"io"
	"testing"
)

// Bytes and packets are counted as the guest sees them, and connections from beginning to end.
func TestMetrics(t *testing.T) {
	g, s, c := pair(t)
	if _, err := c.Write([]byte("hello guest")); err != nil {
		t.Fatal(err)
	}
	s.until("data", func() bool { return s.in.Len() == 11 })
	s.write([]byte("hello host"), 4)
	var b [10]byte
	if _, err := io.ReadFull(c, b[:]); err != nil {
		t.Fatal(err)
	}
	m := g.dev.Metrics()
	for name, v := range map[string][2]uint64{
		"rx_bytes_count": {m.RxBytes.Count(), 11}, "tx_bytes_count": {m.TxBytes.Count(), 10},
		"conns_added": {m.ConnectionsAdded.Count(), 1}, "conns_removed": {m.ConnectionsRemoved.Count(), 0}, "conns_killed": {m.ConnectionsKilled.Count(), 0},
	} {
		if v[0] != v[1] {
			t.Errorf("%s is %d, want %d", name, v[0], v[1])
		}
	}
	// A request and three packets of data; an answer and one packet of data at least.
	if tx, rx := m.TxPackets.Count(), m.RxPackets.Count(); tx < 4 || rx < 2 {
		t.Errorf("%d packets from the guest, %d to it", tx, rx)
	}
	if err := g.dev.Reset(); err != nil {
		t.Fatal(err)
	}
	if n := m.ConnectionsRemoved.Count(); n != 1 {
		t.Errorf("%d connections removed after a reset, want 1", n)
	}
}
