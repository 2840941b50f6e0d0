package main

import (
	"time"

	"github.com/containerd/log"
	"golang.org/x/sys/unix"

	"github.com/fcshim/containerd-shim-fc-v2/pkg/timeline"
)

// startup is what whoever started this process says of when that began, in microseconds and in Firecracker's terms: its
// --start-time-us is of CLOCK_MONOTONIC, its --start-time-cpu-us of the CPU time of this process, which a jailer that executes
// fc-vmm in its own place has used some of, and its --parent-cpu-time-us what was used before there was this process.
type startup struct {
	wall, cpu                  bool // whether wallUS and cpuUS were given
	wallUS, cpuUS, parentCPUUS uint64
}

// log tells how long the start took until the API could be served. Firecracker has it among its metrics, by the same names.
func (s *startup) log() {
	if !s.wall && !s.cpu {
		return
	}
	fields := log.Fields{}
	if s.wall {
		fields["process_startup_time_us"] = since(unix.CLOCK_MONOTONIC, s.wallUS)
	}
	if s.cpu {
		fields["process_startup_time_cpu_us"] = since(unix.CLOCK_PROCESS_CPUTIME_ID, s.cpuUS) + s.parentCPUUS
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
