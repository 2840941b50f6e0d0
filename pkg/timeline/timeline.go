// Package timeline takes down how long the phases of a start take, for one line in the log at debug level.
//
// It must cost nothing when nobody reads it: every method of a nil *Timeline does nothing. A Timeline is no measurement of
// single calls, and has no locks: whoever marks the next phase comes after whoever marked the last one.
package timeline

import (
	"time"

	"github.com/containerd/log"
)

// Timeline is a list of phases, each of which begins where the one before ends.
type Timeline struct {
	begin, last time.Time
	fields      log.Fields
}

// New makes a timeline that begins at a time, which should have Go's monotonic reading.
func New(begin time.Time) *Timeline {
	return &Timeline{begin: begin, last: begin, fields: log.Fields{}}
}

// Mark ends the phase of that name, which began at the last mark. A phase that comes again takes the place of the earlier one.
func (t *Timeline) Mark(phase string) {
	if t == nil {
		return
	}
	now := time.Now()
	t.Set(phase, now.Sub(t.last))
	t.last = now
}

// Set adds a phase that was measured elsewhere, while others were under way.
func (t *Timeline) Set(phase string, d time.Duration) {
	if t == nil {
		return
	}
	t.fields[phase] = d.Round(time.Microsecond).String()
}

// Fields has every phase, and their total as far as the last mark; nil for a nil Timeline. They are the Timeline's own.
func (t *Timeline) Fields() log.Fields {
	if t == nil {
		return nil
	}
	t.fields["total"] = t.last.Sub(t.begin).Round(time.Microsecond).String()
	return t.fields
}
