package shim

import (
	"time"

	"github.com/containerd/log"
)

// timeline takes down how long each phase of a pod's start takes.
type timeline struct {
	begin, last time.Time
	fields      log.Fields
}

func newTimeline() *timeline {
	now := time.Now()
	return &timeline{begin: now, last: now, fields: log.Fields{}}
}

// mark ends the phase of that name, which began at the last mark.
func (t *timeline) mark(phase string) {
	now := time.Now()
	t.fields[phase] = now.Sub(t.last).Round(time.Microsecond).String()
	t.last = now
}

// result has every phase and the whole.
func (t *timeline) result() log.Fields {
	t.fields["total"] = t.last.Sub(t.begin).Round(time.Microsecond).String()
	return t.fields
}
