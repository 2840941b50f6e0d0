package clock

import (
	"context"
	"errors"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestTimex(t *testing.T) {
	for d, want := range map[time.Duration]unix.Timex{
		9 * time.Millisecond:     {Modes: unix.ADJ_OFFSET_SINGLESHOT, Offset: 9000},
		-9999 * time.Microsecond: {Modes: unix.ADJ_OFFSET_SINGLESHOT, Offset: -9999},
		10 * time.Millisecond:    {Modes: unix.ADJ_SETOFFSET, Time: unix.Timeval{Usec: 10_000}},
		-10 * time.Millisecond:   {Modes: unix.ADJ_SETOFFSET, Time: unix.Timeval{Sec: -1, Usec: 990_000}},
		90 * time.Second:         {Modes: unix.ADJ_SETOFFSET, Time: unix.Timeval{Sec: 90}},
		-2*time.Second - 1000:    {Modes: unix.ADJ_SETOFFSET, Time: unix.Timeval{Sec: -3, Usec: 999_999}},
		-1 << 63:                 {Modes: unix.ADJ_SETOFFSET, Time: unix.Timeval{Sec: -9223372037, Usec: 145_225}},
	} {
		if got := timex(d); got != want {
			t.Errorf("%v: %+v, want %+v", d, got, want)
		}
	}
}

func TestKeeper(t *testing.T) {
	moved := make(chan time.Duration, 1)
	bad := errors.New("no clock")
	for _, tt := range []struct {
		off time.Duration
		err error
	}{{5 * time.Second, nil}, {-time.Microsecond, nil}, {0, bad}} {
		k := &Keeper{
			offset: func() (time.Duration, error) { return tt.off, tt.err },
			adjust: func(d time.Duration) error { moved <- d; return nil },
		}
		err := k.Sync()
		if !errors.Is(err, tt.err) {
			t.Errorf("%v: %v", tt.off, err)
		}
		if tt.err == nil {
			if d := <-moved; d != -tt.off {
				t.Errorf("%v ahead: moved by %v", tt.off, d)
			}
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	k := &Keeper{
		offset: func() (time.Duration, error) { return time.Second, nil },
		adjust: func(d time.Duration) error { moved <- d; cancel(); return nil },
	}
	k.Run(ctx) // ends
	if d := <-moved; d != -time.Second {
		t.Errorf("at the start: moved by %v", d)
	}
}

func TestOpen(t *testing.T) {
	k, err := Open()
	if err != nil {
		if !errors.Is(err, ErrNoDevice) {
			t.Error(err)
		}
		return
	}
	if off, err := k.offset(); err != nil {
		t.Error(err)
	} else {
		t.Logf("%v ahead of the host", off)
	}
}
