package balloon

import (
	"encoding/binary"
	"sync"
	"sync/atomic"
	"time"

	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/config"
	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/metrics"
	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/virtio"
	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/virtio/queue"
)

const (
	// entrySize is that of struct virtio_balloon_stat: a tag of 16 bits and a value of 64 (virtio 1.2 §5.5.6.4).
	entrySize = 10
	// maxEntries bounds what is read of a buffer. There are 16 tags.
	maxEntries = 64
	tags       = 16
)

// statistics are what the guest has said of its memory. The driver gives the device one buffer, filled; the device keeps it for
// the interval and gives it back, which asks the driver to fill it again.
type statistics struct {
	// interval in ns; 0 if there are no statistics.
	interval atomic.Int64

	mu     sync.Mutex
	values [tags]uint64
	known  [tags]bool
	asleep *queue.Queue // while serve waits for the interval's end

	raw [maxEntries * entrySize]byte // of the goroutine in serve
}

func (s *statistics) setInterval(seconds int) { s.interval.Store(int64(seconds) * int64(time.Second)) }

// forget is for a new driver.
func (s *statistics) forget() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.known = [tags]bool{}
}

// serve works off the queue of statistics until it is stopped or broken. However many buffers the driver gives, one is looked at
// each interval.
func (s *statistics) serve(q *queue.Queue, irq virtio.Interrupt, updates *metrics.Counter) error {
	var c queue.Chain
	for {
		if err := q.Wait(); err != nil {
			return err
		}
		ok, err := q.Pop(&c)
		if err != nil {
			return err
		}
		if !ok {
			continue
		}
		s.read(c.Readable)
		updates.Inc()
		if err := s.sleep(q, time.Now()); err != nil {
			return err
		}
		if err := q.Push(c.Head, 0); err != nil {
			return err
		}
		if q.NeedsInterrupt() {
			irq.Queue()
		}
	}
}

// sleep returns an interval after since, whatever the interval is changed to meanwhile.
func (s *statistics) sleep(q *queue.Queue, since time.Time) error {
	s.setAsleep(q)
	defer s.setAsleep(nil)
	for {
		left := time.Until(since.Add(time.Duration(s.interval.Load())))
		if left <= 0 {
			return nil
		}
		if err := q.Sleep(left); err != nil {
			return err
		}
	}
}

func (s *statistics) setAsleep(q *queue.Queue) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.asleep = q
}

// read copies a buffer of statistics out of guest memory. Tags that it does not know are left out, and those that the driver does
// not send keep their value.
func (s *statistics) read(bufs [][]byte) {
	n := 0
	for _, b := range bufs {
		n += copy(s.raw[n:], b)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for e := s.raw[:n]; len(e) >= entrySize; e = e[entrySize:] {
		if tag := binary.LittleEndian.Uint16(e); tag < tags {
			s.values[tag], s.known[tag] = binary.LittleEndian.Uint64(e[2:]), true
		}
	}
}

// SetStatisticsInterval changes how often the guest is asked, from the last time on: 1 to config.MaxStatsInterval seconds, or 0 for a device
// without statistics.
func (d *Device) SetStatisticsInterval(seconds int) error {
	u := config.BalloonStatisticsUpdate{StatsPollingIntervalS: seconds}
	if err := u.Validate(); err != nil {
		return err
	}
	if (seconds != 0) != (d.features&featureStats != 0) {
		return ErrStatisticsSwitch
	}
	s := &d.statistics
	s.setInterval(seconds)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.asleep != nil {
		s.asleep.Wake()
	}
	return nil
}

// Statistics are the latest. They are the guest's word for it.
func (d *Device) Statistics() (config.BalloonStatistics, error) {
	if d.features&featureStats == 0 {
		return config.BalloonStatistics{}, ErrNoStatistics
	}
	target, actual := d.target.Load(), d.actual.Load()
	st := config.BalloonStatistics{TargetPages: target, ActualPages: actual, TargetMiB: target / pagesPerMiB, ActualMiB: actual / pagesPerMiB}
	s := &d.statistics
	s.mu.Lock()
	defer s.mu.Unlock()
	// By tag (virtio 1.2 §5.5.6.4; those from 10 on are of Linux 6.12).
	for tag, field := range [tags]**uint64{
		&st.SwapIn, &st.SwapOut, &st.MajorFaults, &st.MinorFaults, &st.FreeMemory, &st.TotalMemory, &st.AvailableMemory, &st.DiskCaches,
		&st.HugetlbAllocations, &st.HugetlbFailures,
		&st.OOMKill, &st.AllocStall, &st.AsyncScan, &st.DirectScan, &st.AsyncReclaim, &st.DirectReclaim,
	} {
		if s.known[tag] {
			v := s.values[tag]
			*field = &v
		}
	}
	return st, nil
}
