package tcpip

import (
	"maps"
	"strings"
	"testing"
	"time"
)

// counted gives the counters that are not 0, by Firecracker's names, but for those that only the interface and the server know of.
func (w *world) counted() map[string]uint64 {
	c := w.s.counts
	all := map[string]uint64{
		"rx_accepted_err": c.RxAcceptedErr.Count(), "rx_accepted_unusual": c.RxAcceptedUnusual.Count(), "rx_bad_eth": c.RxBadEth.Count(),
		"rx_count": c.Rx.Count(), "tx_count": c.Tx.Count(), "tx_errors": c.TxErrors.Count(),
		"connections_created": c.ConnectionsCreated.Count(), "connections_destroyed": c.ConnectionsDestroyed.Count(),
	}
	maps.DeleteFunc(all, func(_ string, n uint64) bool { return n == 0 })
	return all
}

func TestCounts(t *testing.T) {
	type counts = map[string]uint64
	me := peer{there, 1000}
	synFrame := frame(me, 80, 0, 0, syn, 1000, nil, nil)
	receive := func(frames ...[]byte) func(w *world) {
		return func(w *world) {
			for _, f := range frames {
				w.s.Receive(f)
			}
		}
	}
	// talk has a connection; its handshake is two segments in and one out.
	talk := func(do func(f *flow)) func(w *world) { return func(w *world) { do(w.dial(1000)) } }
	for _, tt := range []struct {
		name string
		do   func(w *world)
		want counts
	}{
		{"nothing", receive(nil), counts{"rx_bad_eth": 1}},
		{"IPv6", receive(at(at(synFrame, ethType, 0x86), ethType+1, 0xdd)), counts{"rx_bad_eth": 1}},
		{"bad IPv4", receive(at(synFrame, ethLen, 0x44)), counts{"rx_accepted_err": 1}},
		{"bad TCP", receive(at(synFrame, ethLen+ipLen+tcpOffset, 0xf0)), counts{"rx_accepted_err": 1}},
		{"cut", receive(synFrame[:ethLen+4]), counts{"rx_accepted_err": 1}},
		{"bad ARP", receive(at(arp(here), ethLen+5, 16)), counts{"rx_accepted_err": 1}},
		{"UDP", receive(at(synFrame, ethLen+ipProtocol, 17)), counts{"rx_accepted_unusual": 1}},
		{"ARP reply", receive(at(arp(here), ethLen+arpOp+1, 2)), counts{"rx_accepted_unusual": 1}},
		{"ARP", func(w *world) { w.s.Receive(arp(here)); w.s.Next(w.p[:]) }, counts{"tx_count": 1}},
		{"many ARPs", func(w *world) {
			for range maxARPs + 3 {
				w.s.Receive(arp(here))
			}
		}, counts{"tx_errors": 3}},
		{"wrong port", func(w *world) { w.s.Receive(frame(me, 81, 0, 0, syn, 0, nil, nil)); w.must() }, counts{"rx_accepted_err": 1, "tx_count": 1}},
		{"no connection", func(w *world) { w.s.Receive(frame(me, 80, 0, 0, ack, 0, nil, nil)); w.must() }, counts{"rx_count": 1, "tx_count": 1}},
		{"many resets", func(w *world) {
			for range maxResets + 2 {
				w.s.Receive(frame(me, 80, 0, 0, ack, 0, nil, nil))
			}
		}, counts{"rx_count": maxResets + 2, "tx_errors": 2}},
		{"conversation", talk(func(f *flow) {
			f.want(10)
			f.send(fin|ack, "")
			f.must()
			f.ack++
			f.send(ack, "")
			f.silent()
		}), counts{"rx_count": 6, "tx_count": 3, "connections_created": 1, "connections_destroyed": 1}},
		{"reset by the guest", talk(func(f *flow) { f.send(rst, "") }),
			counts{"rx_count": 3, "rx_accepted_unusual": 1, "tx_count": 1, "connections_created": 1, "connections_destroyed": 1}},
		{"too long", talk(func(f *flow) { f.send(ack, strings.Repeat("x", MaxRequest)); f.must() }),
			counts{"rx_count": 3, "tx_count": 2, "connections_created": 1, "connections_destroyed": 1}},
		{"beyond the window", talk(func(f *flow) { f.send(ack, "1\n"+strings.Repeat("x", MaxRequest)) }),
			counts{"rx_count": 3, "rx_accepted_unusual": 1, "tx_count": 1, "connections_created": 1}},
		{"out of order", talk(func(f *flow) { f.seq++; f.send(ack, "1\n") }),
			counts{"rx_count": 3, "rx_accepted_unusual": 1, "tx_count": 1, "connections_created": 1}},
		{"old acknowledgement", talk(func(f *flow) { f.ack--; f.send(ack, "") }),
			counts{"rx_count": 3, "rx_accepted_unusual": 1, "tx_count": 1, "connections_created": 1}},
		{"acknowledgement from the future", talk(func(f *flow) { f.ack++; f.send(ack, "") }),
			counts{"rx_count": 3, "rx_accepted_unusual": 1, "tx_count": 1, "connections_created": 1}},
		{"again", talk(func(f *flow) { f.dial(1000) }),
			counts{"rx_count": 4, "tx_count": 2, "connections_created": 2, "connections_destroyed": 1}},
		{"new driver", talk(func(f *flow) { f.dial(1001); f.s.Reset() }),
			counts{"rx_count": 4, "tx_count": 2, "connections_created": 2, "connections_destroyed": 2}},
		{"never answers", talk(func(f *flow) {
			f.send(ack, "1\n")
			for len(f.s.conns) > 0 {
				if n, wait := f.s.Next(f.p[:]); n == 0 {
					f.clock += max(wait, time.Millisecond)
				}
			}
		}), counts{"rx_count": 3, "tx_count": 3 + maxTries, "tx_errors": 1, "connections_created": 1, "connections_destroyed": 1}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := newWorld(t)
			tt.do(w)
			if got := w.counted(); !maps.Equal(got, tt.want) {
				t.Errorf("%v, want %v", got, tt.want)
			}
		})
	}
}
