// Package clock keeps the guest's CLOCK_REALTIME with the host's. KVM gives a guest its time at boot and then only the rate of
// the host's clock before anybody corrects it: what NTP or an operator does there, and what a container with CAP_SYS_TIME does
// here, is put right now and then.
//
// The host's time comes from KVM's PTP clock, /dev/ptp0, by a hypercall, where host and guest have it; else the shim tells how
// far the guest is off. It must never be asked more often than a person would notice: each look wakes an idle VM.
package clock

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/containerd/log"
	"golang.org/x/sys/unix"
)

const (
	// Interval is the time between two looks at the host's clock.
	Interval = time.Minute
	// StepFrom is the difference from which on the clock is set; a smaller one is made up for by 500 µs a second (adjtime(3)),
	// which no program notices.
	StepFrom = 10 * time.Millisecond
)

// ErrNoDevice says that there is no PTP clock of KVM's.
var ErrNoDevice = errors.New("no PTP clock of KVM's")

// kvmName is what the kernel's driver ptp_kvm calls its clock.
const kvmName = "KVM virtual PTP"

// Keeper knows the host's time and keeps the guest's with it.
type Keeper struct {
	offset func() (time.Duration, error)
	adjust func(time.Duration) error
}

// Open looks for KVM's PTP clock; ErrNoDevice says that there is none.
func Open() (*Keeper, error) {
	names, err := filepath.Glob("/sys/class/ptp/ptp*/clock_name")
	if err != nil {
		return nil, err
	}
	for _, name := range names {
		b, err := os.ReadFile(name)
		if err != nil || strings.TrimSpace(string(b)) != kvmName {
			continue
		}
		f, err := os.Open(filepath.Join("/dev", filepath.Base(filepath.Dir(name))))
		if err != nil {
			return nil, fmt.Errorf("%w: %w", ErrNoDevice, err)
		}
		return &Keeper{offset: func() (time.Duration, error) { return ptpOffset(f) }, adjust: Adjust}, nil
	}
	return nil, ErrNoDevice
}

// Sync puts the guest's clock right once.
func (k *Keeper) Sync() error {
	off, err := k.offset()
	if err != nil {
		return fmt.Errorf("read the host's clock: %w", err)
	}
	return k.adjust(-off)
}

// Run does so at once and then each Interval, until ctx ends.
func (k *Keeper) Run(ctx context.Context) {
	failed := false
	for {
		err := k.Sync()
		if err != nil && !failed { // once: nobody reads the rest
			log.G(ctx).WithError(err).Warn("the clock is not kept with the host's")
		}
		failed = err != nil
		select {
		case <-ctx.Done():
			return
		case <-time.After(Interval):
		}
	}
}

// ptpOffset is how far the guest's clock is ahead of the host's: by a reading of both at one instant, where the guest's clock
// source allows it, else by the narrowest of a few readings between two of the guest's.
func ptpOffset(f *os.File) (time.Duration, error) {
	fd := int(f.Fd())
	if p, err := unix.IoctlPtpSysOffsetPrecise(fd); err == nil {
		return ptpTime(p.Realtime).Sub(ptpTime(p.Device)), nil
	}
	// clock_gettime(2), "dynamic clocks": FD_TO_CLOCKID.
	id := int32(^fd<<3 | 3)
	var off time.Duration
	width := time.Duration(1<<63 - 1)
	for range 5 {
		var device unix.Timespec
		before := time.Now()
		if err := unix.ClockGettime(id, &device); err != nil {
			return 0, err
		}
		// Go's difference is that of the monotonic clock; an adjustment meanwhile would not show.
		if took := time.Since(before); took < width {
			width, off = took, before.Add(took/2).Sub(time.Unix(device.Unix()))
		}
	}
	return off, nil
}

func ptpTime(t unix.PtpClockTime) time.Time { return time.Unix(t.Sec, int64(t.Nsec)) }

// Adjust moves the guest's clock by d: at once from StepFrom on, else little by little.
func Adjust(d time.Duration) error {
	if d == 0 {
		return nil
	}
	t := timex(d)
	if _, err := unix.Adjtimex(&t); err != nil {
		return fmt.Errorf("adjust the clock by %v: %w", d, err)
	}
	return nil
}

// timex is the call of adjtimex(2) for a difference.
func timex(d time.Duration) unix.Timex {
	if d.Abs() < StepFrom {
		return unix.Timex{Modes: unix.ADJ_OFFSET_SINGLESHOT, Offset: d.Microseconds()}
	}
	// Less than 0 is the second before and the microseconds from there on. Not in nanoseconds: ADJ_NANO would stay, and change
	// what other programs' adjtimex(2) means.
	sec := int64(d / time.Second)
	usec := int64(d % time.Second / time.Microsecond)
	if usec < 0 {
		sec, usec = sec-1, usec+1_000_000
	}
	return unix.Timex{Modes: unix.ADJ_SETOFFSET, Time: unix.Timeval{Sec: sec, Usec: usec}}
}
