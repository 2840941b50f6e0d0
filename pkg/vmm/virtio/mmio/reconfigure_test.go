package mmio

import (
	"encoding/binary"
	"runtime"
	"sync"
	"testing"
	"time"

	vt "github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/virtio/virtiotest"
)

// A change without a driver is silent, one with a driver an interrupt; either is a new generation.
func TestReconfigure(t *testing.T) {
	dev := &echo{}
	d := newDriver(t, dev)
	change := func(want int32) {
		t.Helper()
		generation, n := d.get(regConfigGeneration), d.irq.n.Load()
		d.Reconfigure(func() { dev.conf[0]++ })
		d.want(regConfigGeneration, generation+1)
		if got := d.irq.n.Load() - n; got != want {
			t.Fatalf("%d interrupts, want %d", got, want)
		}
	}
	change(0)
	d.negotiate(wanted)
	change(0)
	r := vt.NewRing(d.mem, 4096, 16, true, d.NotifyFDs()[0])
	d.setQueue(0, r.Cfg)
	d.set(regStatus, running)
	change(1)
	d.want(regInterruptStatus, interruptConfig)
	d.set(regStatus, 0)
	change(0)
	if d.want(regInterruptStatus, 0); dev.conf[0] != 4 {
		t.Errorf("changed %d times", dev.conf[0])
	}
	d.Close()
	change(0)
}

// A driver that reads in two halves, and looks at the generation before and after, never takes a half of one value and of
// another.
func TestReconfigureIsNotTorn(t *testing.T) {
	dev := &echo{}
	d := newDriver(t, dev)
	stop := make(chan struct{})
	var wg sync.WaitGroup
	defer wg.Wait()
	defer close(stop)
	wg.Go(func() {
		for v := uint32(0); ; v++ {
			select {
			case <-stop:
				return
			default:
			}
			d.Reconfigure(func() {
				binary.LittleEndian.PutUint32(dev.conf[0:], v)
				runtime.Gosched()
				binary.LittleEndian.PutUint32(dev.conf[4:], v)
			})
		}
	})
	n := 0
	// On a slow machine it may take long until a read comes between two changes.
	for begin := time.Now(); n < 2000 && (n == 0 && time.Since(begin) < 5*vt.Timeout || time.Since(begin) < vt.Timeout); {
		before := d.get(regConfigGeneration)
		low := d.get(regConfig)
		runtime.Gosched()
		high := d.get(regConfig + 4)
		if d.get(regConfigGeneration) != before {
			continue
		}
		if n++; low != high {
			t.Fatalf("halves of %d and %d", low, high)
		}
	}
	if n == 0 {
		t.Error("no read came between two changes")
	}
}
