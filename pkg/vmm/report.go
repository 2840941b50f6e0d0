package vmm

import (
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fcshim/containerd-shim-fc-v2/pkg/timeline"
)

// report is what a machine tells in the log about its start.
type report struct {
	timeline *timeline.Timeline // nil if nobody wants it
	once     sync.Once          // for the timeline's line
	pending  sync.WaitGroup     // the boot timer's lines
}

// measureBoot starts the boot timer's clocks, of which begin is the first one's start, and gives what to do when the guest has
// booted: to log the times in Firecracker's words, which its clients look for.
func (m *Machine) measureBoot(begin time.Time) func() {
	cpuBegin := processCPUTime()
	return func() {
		wall, cpu := time.Since(begin), processCPUTime()-cpuBegin
		m.report.timeline.Mark("boot")
		// Not on the vCPU's thread: whoever reads the log may be slow.
		m.report.pending.Go(func() {
			m.log.Infof("Guest-boot-time = %6d us %d ms, %6d CPU us %d CPU ms", wall.Microseconds(), wall.Milliseconds(), cpu.Microseconds(), cpu.Milliseconds())
			m.logTimeline()
		})
	}
}

// logTimeline logs how long each phase of the start took, once a machine: as soon as the last phase is over.
func (m *Machine) logTimeline() {
	m.report.once.Do(func() {
		if fields := m.report.timeline.Fields(); fields != nil {
			m.log.WithFields(fields).Debug("microVM started")
		}
	})
}

// processCPUTime is the CPU time that this process has used, guests included.
func processCPUTime() time.Duration {
	var t unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_PROCESS_CPUTIME_ID, &t) // every process has this clock
	return time.Duration(t.Nano())
}
