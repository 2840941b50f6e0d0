package shim

import (
	"context"
	"time"

	"github.com/containerd/log"

	"github.com/fcshim/containerd-shim-fc-v2/pkg/agent/agentpb"
)

const (
	// clockInterval is the time between two looks at a guest's clock.
	clockInterval = time.Minute
	// clockTries is how often a clock is read in one look; the reading that took least time counts.
	clockTries = 10
	// clockFast is how quick a reading must be for no further one to be made.
	clockFast = 4 * time.Millisecond
	// clockTimeout bounds an answer: nothing waits long for the time.
	clockTimeout = 5 * time.Second
)

// keepClock keeps the guest's clock with this host's until the VM ends, or leaves it to the guest if that can do so itself.
func (v *vm) keepClock(ctx context.Context) {
	failed := false
	for first := true; ; first = false {
		self, err := v.syncClock(ctx)
		if first {
			close(v.clockSet)
		}
		if self || v.dead() {
			return
		}
		if err != nil && !failed {
			log.G(ctx).WithError(err).Warn("the guest's clock is not kept with the host's")
		}
		failed = err != nil
		timer := time.NewTimer(clockInterval)
		select {
		case <-v.ended:
			timer.Stop()
			return
		case <-timer.C:
		}
	}
}

// syncClock puts the guest's clock right, to within half the time that a call takes there and back; self says that the guest does so.
func (v *vm) syncClock(ctx context.Context) (self bool, err error) {
	var off, width time.Duration
	for i := range clockTries {
		sent := time.Now()
		resp, err := askWithin(ctx, clockTimeout, "Clock", v.agent.Clock, &agentpb.ClockRequest{})
		if err != nil || resp.GetSelfKept() {
			return err == nil, err
		}
		took := time.Since(sent)
		if i == 0 || took < width {
			width, off = took, clockOffset(sent, took, resp.GetNowNs())
		}
		if took < clockFast {
			break
		}
	}
	if off.Abs() <= width/2 {
		return false, nil // no better is known
	}
	_, err = askWithin(ctx, clockTimeout, "Clock", v.agent.Clock, &agentpb.ClockRequest{AdjustNs: int64(-off)})
	return false, err
}

// clockOffset is how far a clock that showed now, in the middle of a call, is ahead. What a guest says may be anything: the
// difference goes back to it and nowhere else.
func clockOffset(sent time.Time, took time.Duration, now int64) time.Duration {
	return time.Unix(0, now).Sub(sent.Round(0).Add(took / 2)) // Round leaves the monotonic clock out
}
