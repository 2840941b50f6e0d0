package mmio

import (
	"testing"

	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/virtio/queue"
	vt "github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/virtio/virtiotest"
)

// hasty serves queue 1 before a notification returns, and queue 0 like everybody.
type hasty struct {
	echo
	told, served int
}

func (*hasty) Prompt(i int) bool { return i == 1 }

func (h *hasty) Notify(i int) bool {
	h.told++
	if i != 1 || h.served < 0 {
		return false
	}
	h.served++
	var c queue.Chain
	q := h.active.Queues[1]
	for ok, _ := q.Pop(&c); ok; ok, _ = q.Pop(&c) {
		q.Push(c.Head, 0)
	}
	q.Ask()
	return true
}

func TestPrompt(t *testing.T) {
	dev := &hasty{}
	d := newDriver(t, dev)
	if d.NeedsExit(0) || !d.NeedsExit(1) || (&Transport{dev: &dev.echo}).NeedsExit(1) {
		t.Error("the wrong queue needs an exit")
	}
	counts := func(i int) bool {
		var n [8]byte
		k, err := d.NotifyFDs()[i].Read(n[:])
		return err == nil && k == 8 && n[0] == 1
	}
	if d.set(regQueueNotify, 1); dev.told != 0 || !counts(1) {
		t.Error("an inactive device was told")
	}
	d.negotiate(wanted)
	var rings [2]*vt.Ring
	for i := range rings {
		rings[i] = vt.NewRing(d.mem, 4096+uint64(i)*8192, 8, true, d.NotifyFDs()[i])
		d.setQueue(uint32(i), rings[i].Cfg)
	}
	d.set(regStatus, running)
	dev.active.Queues[1].Stop() // the echo's own server of it, not the notification's
	dev.active.Queues[0].Stop()
	dev.wg.Wait()
	var err error
	if dev.active.Queues[1], err = queue.New(d.mem, rings[1].Cfg); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		head, _ := rings[1].Add([]vt.Span{{Addr: 0x20000, Len: 1}}, nil)
		d.set(regQueueNotify, 1)
		if got, _, ok := rings[1].Used(); !ok || got != head {
			t.Fatal("not served when the notification has returned")
		}
	}
	// What the device does not serve at once goes to the eventfd, as do other queues' notifications.
	dev.served = -1
	if _, err := queue.New(d.mem, rings[0].Cfg); err != nil { // clears the deadline that Stop has set
		t.Fatal(err)
	}
	for i := range uint32(2) {
		d.set(regQueueNotify, i)
		if !counts(int(i)) {
			t.Errorf("queue %d: no notification", i)
		}
	}
	if dev.told != 4 {
		t.Errorf("told %d times, want 4", dev.told)
	}
	d.set(regQueueNotify, 2)
	d.Close()
	if d.set(regQueueNotify, 1); dev.told != 4 {
		t.Error("told after its end")
	}
}
