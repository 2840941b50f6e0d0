package mmio

import (
	"errors"
	"testing"

	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/metrics"
)

// Interrupts are counted, those for a changed configuration among them, and drivers that the device could not serve.
func TestMetrics(t *testing.T) {
	d := newDriver(t, &echo{fail: errors.New("no")})
	var fails metrics.Counter
	d.ActivateFails = &fails
	d.negotiate(wanted)
	d.set(regStatus, running)
	if fails.Count() != 1 {
		t.Errorf("%d failures to activate, want 1", fails.Count())
	}
	triggers, updates := d.Counts.Triggers.Count(), d.Counts.ConfigUpdates.Count()
	if triggers != 1 || updates != 1 { // it told the driver to reset it
		t.Errorf("%d interrupts, %d of them for the configuration, want 1 and 1", triggers, updates)
	}
	d.interruptHandler.Queue()
	d.interruptHandler.Queue()
	if n := d.Counts.Triggers.Count() - triggers; n != 2 || d.Counts.ConfigUpdates.Count() != updates {
		t.Errorf("%d interrupts for buffers, want 2", n)
	}
	if n := d.irq.n.Load(); n != int32(triggers)+2 {
		t.Errorf("the line was raised %d times", n)
	}
}
