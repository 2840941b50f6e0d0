package main

import (
	"time"

	"github.com/containerd/log"
	"golang.org/x/sys/unix"

	"github.com/fcshim/containerd-shim-fc-v2/pkg/timeline"
	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/metrics"
)

// startup is what whoever started this process says of when that began, in microseconds and in Firecracker's terms: its
// --start-time-us is of CLOCK_MONOTONIC, its --start-time-cpu-us of the CPU time of this process, which a jailer that executes
// fc-vmm in its own place has used some of, and its --parent-cpu-time-us what was used before there was this process.
type startup struct {
	wall, cpu                  bool // whether wallUS and cpuUS were given
	wallUS, cpuUS, parentCPUUS uint64
}

// report tells how long the start took until the API could be served: in the log and, as Firecracker does, among the metrics.
func (s *startup) report(m *metrics.APIServer) {
	if !s.wall && !s.cpu {
		return
	}
	fields := log.Fields{}
	if s.wall {
		us := since(unix.CLOCK_MONOTONIC, s.wallUS)
		m.ProcessStartupTime.Set(us)
		fields["process_startup_time_us"] = us
	}
	if s.cpu {
		us := since(unix.CLOCK_PROCESS_CPUTIME_ID, s.cpuUS) + s.parentCPUUS
		m.ProcessStartupTimeCPU.Set(us)
		fields["process_startup_time_cpu_us"] = us
	}
	log.L.WithFields(fields).Info("ready for the API's requests")
}

// timeline begins the log's line about the start: where --start-time-us says, or where this process's own code began. It is nil
// unless that line will be logged.
func (s *startup) timeline(began time.Time) *timeline.Timeline {
	if !log.L.Logger.IsLevelEnabled(log.DebugLevel) {
		return nil
	}
	if !s.wall {
		return timeline.New(began)
	}
	now := time.Now()
	t := timeline.New(now.Add(-time.Duration(since(unix.CLOCK_MONOTONIC, s.wallUS)) * time.Microsecond))
	t.Mark("exec")
	return t
}

// since is how much later than us a clock is, in microseconds; 0 if it is not. Not all 64 bits of us are a time: what is too much
// for one is in the future.
func since(clock int32, us uint64) uint64 {
	var now unix.Timespec
	_ = unix.ClockGettime(clock, &now) // which every kernel has
	n := uint64(now.Nano()) / 1000
	return max(n, us) - us
}
