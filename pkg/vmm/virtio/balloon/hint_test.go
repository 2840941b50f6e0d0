package balloon

import (
	"errors"
	"slices"
	"testing"

	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/config"
	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/virtio/queue"
	vt "github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/virtio/virtiotest"
)

// hinter is a driver with a device that hints.
type hinter struct {
	*testing.T
	d *Device
	m *vt.Machine
}

func newHinter(t *testing.T) *hinter {
	h := &hinter{t, device(t, all), nil}
	h.m = vt.Start(t, h.d, ramSize)
	touch(h.m, firstFree, ramSize-firstFree)
	return h
}

// hint gives the device a chain, which must be used when the notification returns.
func (h *hinter) hint(readable, writable []vt.Span) {
	h.Helper()
	r := h.m.Rings[hintQueue]
	head, _ := r.Add(readable, writable)
	if !r.ShouldKick() {
		h.Fatal("the device does not ask for a notification")
	}
	if !h.d.Notify(hintQueue) {
		h.Fatal("not served")
	}
	if got, n, ok := r.Used(); !ok || got != head || n != 0 {
		h.Fatalf("used %d with %d bytes, %v; want %d", got, n, ok, head)
	}
}

func (h *hinter) command(n uint32) {
	h.Helper()
	h.hint([]vt.Span{list(h.m, n)}, nil)
}

// page hints one page, and wants it to go, or not.
func (h *hinter) page(n uint32, goes bool) {
	h.Helper()
	h.hint(nil, []vt.Span{{Addr: firstFree + uint64(n)*pageSize, Len: pageSize}})
	if got := slices.Contains(gone(h.m), firstFree/pageSize+n); got != goes {
		h.Fatalf("page %d went: %v, want %v", n, got, goes)
	}
}

// want checks the state that the client sees, and what the driver does; guest is -1 for none.
func (h *hinter) want(host uint32, guest int64) {
	h.Helper()
	st, err := h.d.Hinting()
	if err != nil {
		h.Fatal(err)
	}
	got := int64(-1)
	if st.GuestCommand != nil {
		got = int64(*st.GuestCommand)
	}
	var c [4]byte
	h.d.ReadConfig(8, c[:])
	if st.HostCommand != host || got != guest || uint32(c[0]) != host {
		h.Fatalf("host %d, guest %d, the driver sees %d; want %d, %d", st.HostCommand, got, c[0], host, guest)
	}
}

func (h *hinter) start(acknowledge bool) {
	h.Helper()
	if err := h.d.StartHinting(config.BalloonHintingStart{AcknowledgeOnStop: acknowledge}); err != nil {
		h.Fatal(err)
	}
	<-h.m.Config
}

func (h *hinter) stop() {
	h.Helper()
	if err := h.d.StopHinting(); err != nil {
		h.Fatal(err)
	}
	<-h.m.Config
}

// A run ends by itself if that was asked for, and pages go only while it lasts.
func TestHinting(t *testing.T) {
	h := newHinter(t)
	h.want(0, -1)
	h.page(0, false) // nobody has asked
	h.start(true)
	h.want(2, -1)
	h.page(0, false) // before the guest has answered
	h.command(2)
	h.want(2, 2)
	h.page(0, true)
	h.hint(nil, []vt.Span{{Addr: firstFree + pageSize, Len: pageSize}, {Addr: firstFree + 2*pageSize, Len: 2 * pageSize}})
	if n := len(gone(h.m)); n != 4 {
		t.Fatalf("%d pages went", n)
	}
	h.command(0)
	<-h.m.Config
	h.want(1, 0)
	h.page(5, false)
	h.command(2) // a run that is over
	h.page(5, false)
	h.start(true)
	h.want(3, 2)
	h.page(5, false)
	h.command(0) // the end of another run than the host's
	h.want(3, 0)
	h.command(3)
	h.page(5, true)
}

// Without an acknowledgement the guest keeps away from its pages until the host ends the run.
func TestHintingUnacknowledged(t *testing.T) {
	h := newHinter(t)
	h.start(false)
	h.command(2)
	h.page(0, true)
	h.command(0)
	h.want(2, 0)
	h.page(1, false)
	h.stop()
	h.want(1, 0)
	h.start(false)
	h.command(3)
	h.page(1, true)
	h.stop()
	h.want(1, 3)
	h.page(2, false)
	h.start(false)
	h.want(4, 3)
	h.start(true) // takes the other's place
	h.command(4)
	h.page(2, false)
	h.command(5)
	h.page(2, true)
}

// Ids of runs are used again, but for those that are commands.
func TestHintingIDs(t *testing.T) {
	h := newHinter(t)
	h.d.hinting.lastRun = 1<<32 - 2
	for _, want := range []uint32{1<<32 - 1, 2, 3} {
		h.start(true)
		if st, _ := h.d.Hinting(); st.HostCommand != want {
			t.Errorf("run %d, want %d", st.HostCommand, want)
		}
	}
}

// What is no command changes nothing.
func TestHintingNonsense(t *testing.T) {
	h := newHinter(t)
	h.start(true)
	h.command(2)
	for _, n := range []uint32{0, 1, 3, 5, 8, 4096} {
		h.hint([]vt.Span{h.m.Arena.Alloc(n), h.m.Arena.Alloc(0)}, nil)
	}
	h.want(2, 2)
	s := list(h.m, 7)
	h.hint([]vt.Span{{Addr: s.Addr, Len: 1}, {Addr: s.Addr + 1, Len: 3}}, []vt.Span{{Addr: firstFree, Len: pageSize}})
	h.want(2, 7)
	if len(gone(h.m)) != 0 {
		t.Error("a page of another run went")
	}
	// A driver that never stops is cut off.
	r := h.m.Rings[hintQueue]
	r.SetAvail(1 << 15)
	if h.d.Notify(hintQueue); !errors.Is(<-h.m.Broken, queue.ErrBroken) {
		t.Error("not broken")
	}
	h.d.Notify(hintQueue)
	h.m.Do(h.m.Rings[reportQueue], nil, []vt.Span{{Addr: firstFree, Len: pageSize}})
}

func TestNoHinting(t *testing.T) {
	d := device(t, config.Balloon{})
	vt.Start(t, d, ramSize)
	_, err := d.Hinting()
	for _, err := range []error{err, d.StartHinting(config.BalloonHintingStart{}), d.StopHinting()} {
		if !errors.Is(err, ErrNoHinting) {
			t.Error(err)
		}
	}
}

// No page goes after the host has ended the run: the guest may use it again.
func TestHintingStopRaces(t *testing.T) {
	h := newHinter(t)
	ram := h.m.Mem.Regions()[0].Mem
	for i := range 200 {
		h.start(false)
		h.command(h.d.command.Load())
		ended := make(chan struct{})
		go func() {
			h.stop()
			ram[firstFree] = 0x5a // the guest's next use
			close(ended)
		}()
		for range i % 5 {
			h.hint(nil, []vt.Span{{Addr: firstFree, Len: pageSize}})
		}
		<-ended
		h.hint(nil, []vt.Span{{Addr: firstFree, Len: pageSize}})
		if ram[firstFree] != 0x5a {
			t.Fatal("the page went after the end of the run")
		}
	}
}
