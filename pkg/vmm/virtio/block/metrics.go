package block

import (
	"encoding/binary"

	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/metrics"
)

// Metrics is what the drive has counted. The counters go on.
func (d *Device) Metrics() *metrics.Block { return &d.counts }

// MeasureLatency has the requests timed. It comes before the first Activate.
func (d *Device) MeasureLatency() { d.timed = true }

// stopwatch starts to time the request in work, if it moves data and somebody wants to know.
func (s *server) stopwatch() metrics.Timer {
	switch binary.LittleEndian.Uint32(s.header[:]) {
	case typeIn:
		return s.counts.ReadAgg.Start(s.timed)
	case typeOut:
		return s.counts.WriteAgg.Start(s.timed)
	}
	return metrics.Timer{}
}

// count counts a request of this kind, which has ended with status: so many bytes came with it, and so many were read.
func (d *Device) count(kind uint32, status byte, came, read int) {
	switch status {
	case statusUnsup:
		d.counts.InvalidReqs.Inc()
		return
	case statusIOErr:
		d.counts.ExecuteFails.Inc()
		return
	}
	switch kind {
	case typeIn:
		d.counts.Reads.Inc()
		d.counts.ReadBytes.Add(uint64(read))
	case typeOut:
		d.counts.Writes.Inc()
		d.counts.WriteBytes.Add(uint64(max(came, 0)))
	case typeFlush:
		d.counts.Flush.Inc()
	}
}
