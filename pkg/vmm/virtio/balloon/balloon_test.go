package balloon

import (
	"encoding/binary"
	"errors"
	"math"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/config"
	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/virtio"
	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/virtio/queue"
	vt "github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/virtio/virtiotest"
)

// all is a balloon with everything.
var all = config.Balloon{AmountMiB: 3, DeflateOnOOM: true, StatsPollingIntervalS: 60, FreePageHinting: true, FreePageReporting: true}

// Queues of a driver that has accepted everything.
const (
	inflateQueue, deflateQueue, statsQueue, hintQueue, reportQueue = 0, 1, 2, 3, 4

	ramSize = 8 << 20
	// firstFree is behind the driver's rings and buffers: pages from there on are the test's.
	firstFree = 2 << 20
)

func device(tb testing.TB, cfg config.Balloon) *Device {
	tb.Helper()
	d, err := New(cfg)
	if err != nil {
		tb.Fatal(err)
	}
	return d
}

// list puts page numbers into guest memory.
func list(m *vt.Machine, pages ...uint32) vt.Span {
	s := m.Arena.Alloc(uint32(4 * len(pages)))
	for i, p := range pages {
		binary.LittleEndian.PutUint32(m.Bytes(s)[4*i:], p)
	}
	return s
}

// touch fills a piece of guest RAM.
func touch(m *vt.Machine, addr, n uint64) {
	for i := range m.Mem.Regions()[0].Mem[addr : addr+n] {
		m.Mem.Regions()[0].Mem[addr+uint64(i)] = 0xa5
	}
}

// gone lists the pages from firstFree on that read as zero.
func gone(m *vt.Machine) (pages []uint32) {
	ram := m.Mem.Regions()[0].Mem
	for at := firstFree; at < len(ram); at += pageSize {
		if !slices.ContainsFunc(ram[at:at+pageSize], func(b byte) bool { return b != 0 }) {
			pages = append(pages, uint32(at/pageSize))
		}
	}
	return pages
}

func TestFeatures(t *testing.T) {
	for _, tt := range []struct {
		cfg      config.Balloon
		features uint64
		queues   int
	}{
		{config.Balloon{}, 0, 2},
		{config.Balloon{DeflateOnOOM: true}, 4, 2},
		{config.Balloon{StatsPollingIntervalS: 1}, 2, 3},
		{config.Balloon{FreePageHinting: true}, 8, 3},
		{config.Balloon{FreePageReporting: true}, 32, 3},
		{all, 2 | 4 | 8 | 32, 5},
	} {
		d := device(t, tt.cfg)
		if d.Features() != tt.features || len(d.QueueSizes()) != tt.queues || d.Type() != 5 {
			t.Errorf("%+v: features %#x, %d queues, type %d", tt.cfg, d.Features(), len(d.QueueSizes()), d.Type())
		}
		for i := range 6 {
			if !d.Prompt(i) {
				t.Errorf("%+v: queue %d: prompt is %v", tt.cfg, i, d.Prompt(i))
			}
		}
	}
	for _, cfg := range []config.Balloon{{AmountMiB: -1}, {AmountMiB: config.MaxMemMiB + 1}, {StatsPollingIntervalS: -1}, {StatsPollingIntervalS: 65536}} {
		if _, err := New(cfg); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%+v: %v", cfg, err)
		}
	}
}

func TestConfigSpace(t *testing.T) {
	d := device(t, all)
	read := func(off uint64, n int) []byte {
		p := make([]byte, n)
		for i := range p {
			p[i] = 0xff
		}
		d.ReadConfig(off, p)
		return p
	}
	if got := read(0, 16); !slices.Equal(got, []byte{0, 3, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}) {
		t.Errorf("configuration %v", got)
	}
	d.WriteConfig(4, []byte{1, 2, 3, 4})
	for _, off := range []uint64{0, 3, 5, 8, 12, math.MaxUint64} { // what a driver may not write
		d.WriteConfig(off, []byte{9, 9, 9, 9})
	}
	d.WriteConfig(4, []byte{7})
	d.WriteConfig(4, []byte{7, 7, 7, 7, 7, 7, 7, 7})
	if got := read(0, 12); !slices.Equal(got, []byte{0, 3, 0, 0, 1, 2, 3, 4, 0, 0, 0, 0}) {
		t.Errorf("configuration %v", got)
	}
	if got := read(6, 4); !slices.Equal(got, []byte{3, 4, 0, 0}) {
		t.Errorf("at 6: %v", got)
	}
	for _, off := range []uint64{12, 13, math.MaxUint64 - 1} {
		if got := read(off, 4); !slices.Equal(got, make([]byte, 4)) {
			t.Errorf("at %d: %v", off, got)
		}
	}
}

func TestInflate(t *testing.T) {
	const first = firstFree / pageSize
	order := make([]uint32, 0, 1200) // more than fit at once, in no order
	for i := range uint32(1200) {
		order = append(order, first+i*7%1200)
	}
	sorted := slices.Sorted(slices.Values(order))
	for _, tt := range []struct {
		name  string
		pages []uint32
		want  []uint32
	}{
		{"none", nil, nil},
		{"one", []uint32{first}, []uint32{first}},
		{"neighbours in disorder", []uint32{first + 2, first, first + 1, first + 9}, []uint32{first, first + 1, first + 2, first + 9}},
		{"twice", []uint32{first + 3, first + 3, first + 4, first + 3}, []uint32{first + 3, first + 4}},
		{"the last page", []uint32{ramSize/pageSize - 1}, []uint32{ramSize/pageSize - 1}},
		{"outside", []uint32{ramSize / pageSize, math.MaxUint32, first + 20, 1 << 20}, []uint32{first + 20}},
		{"many", order, sorted},
	} {
		t.Run(tt.name, func(t *testing.T) {
			m := vt.Start(t, device(t, all), ramSize)
			// Each page for itself, whatever the host does by default. A kernel without huge pages refuses.
			_ = unix.Madvise(m.Mem.Regions()[0].Mem, unix.MADV_NOHUGEPAGE)
			touch(m, firstFree, ramSize-firstFree)
			s := list(m, tt.pages...)
			// In pieces that split a number; a byte at the end is none.
			spans := []vt.Span{{Addr: s.Addr, Len: s.Len}}
			if s.Len > 5 {
				spans = []vt.Span{{Addr: s.Addr, Len: 3}, {Addr: s.Addr + 3, Len: s.Len - 3}, m.Arena.Alloc(1)}
			}
			if len(tt.pages) == 0 {
				spans = []vt.Span{m.Arena.Alloc(3)}
				clear(m.Bytes(spans[0]))
			}
			before := vt.Resident(t, m.Mem)
			if n := m.Do(m.Rings[inflateQueue], spans, nil); n != 0 {
				t.Errorf("%d bytes written", n)
			}
			if freed := before - vt.Resident(t, m.Mem); freed != len(tt.want) {
				t.Errorf("%d pages went back, want %d", freed, len(tt.want))
			}
			if got := gone(m); !slices.Equal(got, tt.want) {
				t.Errorf("pages %v went, want %v", got, tt.want)
			}
			// Deflation changes nothing: what the guest uses again is there again.
			if n := m.Do(m.Rings[deflateQueue], []vt.Span{s}, nil); n != 0 {
				t.Errorf("%d bytes written", n)
			}
			if touch(m, firstFree, ramSize-firstFree); vt.Resident(t, m.Mem) < before {
				t.Error("pages do not come back")
			}
		})
	}
}

func TestReporting(t *testing.T) {
	m := vt.Start(t, device(t, all), ramSize)
	touch(m, firstFree, ramSize-firstFree)
	page := func(n uint64) uint64 { return firstFree + n*pageSize }
	m.Do(m.Rings[reportQueue], []vt.Span{list(m, uint32(page(30)/pageSize))}, []vt.Span{
		{Addr: page(0), Len: 2 * pageSize}, {Addr: page(8) + 1, Len: 3 * pageSize}, {Addr: page(20), Len: pageSize - 1}})
	base := uint32(firstFree / pageSize)
	if got, want := gone(m), []uint32{base, base + 1, base + 9, base + 10}; !slices.Equal(got, want) {
		t.Errorf("pages %v went, want %v", got, want)
	}
}

// A new driver finds no trace of the last one, but what the host wants; whichever features it takes, and wherever it puts their queues.
func TestResetAndQueues(t *testing.T) {
	d := device(t, all)
	m := vt.Start(t, d, ramSize)
	if err := d.Resize(5); err != nil {
		t.Fatal(err)
	}
	d.WriteConfig(4, []byte{1, 0, 0, 0})
	if err := d.StartHinting(config.BalloonHintingStart{}); err != nil {
		t.Fatal(err)
	}
	if err := d.Reset(); err != nil {
		t.Fatal(err)
	}
	var c [12]byte
	if d.ReadConfig(0, c[:]); !slices.Equal(c[:], []byte{0, 5, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}) {
		t.Errorf("configuration %v", c)
	}
	for _, err := range []error{d.Resize(1), d.StartHinting(config.BalloonHintingStart{}), d.StopHinting()} {
		if !errors.Is(err, ErrInactive) || !errdefs.IsFailedPrecondition(err) {
			t.Errorf("without a driver: %v", err)
		}
	}
	if h, err := d.Hinting(); err != nil || h.HostCommand != 0 || h.GuestCommand != nil {
		t.Errorf("%+v, %v", h, err)
	}
	rings := m.Rings
	for _, tt := range []struct {
		name     string
		features uint64
		enabled  []int
		report   int // index of the reporting queue, 0 for none
		hint     int
		fails    bool
	}{
		{"everything", d.Features(), []int{0, 1, 2, 3, 4}, 4, 3, false},
		{"reporting, moved up", featureReporting, []int{0, 1, 2}, 2, 0, false},
		{"reporting in its place", featureReporting, []int{0, 1, 4}, 4, 0, false},
		{"hinting and reporting, moved up", featureHinting | featureReporting, []int{0, 1, 2, 3}, 3, 2, false},
		{"hinting and reporting in their places", featureHinting | featureReporting, []int{0, 1, 3, 4}, 4, 3, false},
		{"nothing", 0, []int{0, 1}, 0, 0, false},
		{"a queue too few", featureReporting, []int{0, 1}, 0, 0, true},
		{"a queue too many", featureReporting, []int{0, 1, 2, 3}, 0, 0, true},
		{"no queue", d.Features(), nil, 0, 0, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			queues := make([]*queue.Queue, len(rings))
			for _, i := range tt.enabled {
				rings[i] = vt.NewRing(m.Mem, rings[i].Cfg.Desc, QueueSize, false, rings[i].Cfg.Notify)
				var err error
				if queues[i], err = queue.New(m.Mem, rings[i].Cfg); err != nil {
					t.Fatal(err)
				}
			}
			irq := &recorder{used: make(chan struct{}, 16)}
			err := d.Activate(virtio.Activation{Features: tt.features, Memory: m.Mem, Queues: queues, Interrupt: irq})
			if tt.fails {
				if err == nil || !strings.Contains(err.Error(), "queues") {
					t.Errorf("%v", err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			touch(m, firstFree, pageSize)
			if i := tt.report; i != 0 {
				rings[i].Add(nil, []vt.Span{{Addr: firstFree, Len: pageSize}})
				rings[i].Kick()
				<-irq.used
				if len(gone(m)) == 0 || m.Mem.Regions()[0].Mem[firstFree] != 0 {
					t.Error("the page was not taken")
				}
			}
			for i := range rings {
				if served := d.Notify(i); served != (i == tt.hint && i != 0) {
					t.Errorf("Notify(%d) is %v", i, served)
				}
			}
			if err := d.Reset(); err != nil {
				t.Fatal(err)
			}
			if d.Notify(tt.hint) {
				t.Error("an inactive device serves a queue")
			}
		})
	}
}

// recorder passes interrupts on.
type recorder struct {
	used   chan struct{}
	config int
}

func (r *recorder) Queue()     { r.used <- struct{}{} }
func (r *recorder) Config()    { r.config++ }
func (*recorder) Broken(error) {}

// The driver is told of a new target.
func TestResize(t *testing.T) {
	d := device(t, all)
	m := vt.Start(t, d, ramSize)
	if err := d.Resize(2); err != nil {
		t.Fatal(err)
	}
	<-m.Config
	var c [4]byte
	if d.ReadConfig(0, c[:]); binary.LittleEndian.Uint32(c[:]) != 512 {
		t.Errorf("target %v", c)
	}
	if err := d.Resize(-1); !errdefs.IsInvalidArgument(err) {
		t.Error(err)
	}
	if st, err := d.Statistics(); err != nil || st.TargetPages != 512 || st.TargetMiB != 2 || st.ActualPages != 0 {
		t.Errorf("%+v, %v", st, err)
	}
}

// A driver that breaks a queue loses that queue only.
func TestBrokenQueue(t *testing.T) {
	m := vt.Start(t, device(t, all), ramSize)
	m.Rings[inflateQueue].Publish(QueueSize)
	m.Rings[inflateQueue].Kick()
	if err := <-m.Broken; !errors.Is(err, queue.ErrBroken) || !strings.Contains(err.Error(), "balloon: inflate") {
		t.Error(err)
	}
	m.Do(m.Rings[reportQueue], nil, []vt.Span{{Addr: firstFree, Len: pageSize}})
	m.Do(m.Rings[deflateQueue], []vt.Span{list(m, 1)}, nil)
	c := m.Dev.(*Device).Metrics()
	if c.EventFails.Count() != 1 || c.FreePageReports.Count() != 1 || c.FreePageReportFreed.Count() != pageSize || c.Deflate.Count() != 1 || c.Inflate.Count() != 0 {
		t.Errorf("counted %+v", c)
	}
}

// A list without end is given up by a reset.
func TestResetAmidList(t *testing.T) {
	d := device(t, all)
	m := vt.Start(t, d, ramSize)
	spans := make([]vt.Span, 200)
	for i := range spans {
		spans[i] = vt.Span{Addr: 0, Len: 4 << 20} // whatever is there, as often as possible
	}
	m.Rings[inflateQueue].Add(spans, nil)
	m.Rings[inflateQueue].Kick()
	if err := d.Reset(); err != nil {
		t.Fatal(err)
	}
	m.Activate(d.Features())
}

func TestNoAllocations(t *testing.T) {
	d := device(t, all)
	m := vt.Start(t, d, ramSize)
	if err := d.StartHinting(config.BalloonHintingStart{AcknowledgeOnStop: true}); err != nil {
		t.Fatal(err)
	}
	d.Reset() // only the handlers are measured
	s, err := newSession(d, virtio.Activation{Features: 0, Memory: m.Mem, Queues: twoQueues(t, m), Interrupt: &recorder{}})
	if err != nil {
		t.Fatal(err)
	}
	s.report, s.hint = s.inflate, s.deflate // to ask whether they were stopped
	pages := m.Bytes(list(m, 700, 702, 701, 1<<30))
	command := m.Bytes(list(m, 2))
	inflate := queue.Chain{Readable: [][]byte{pages[:7], pages[7:]}}
	report := queue.Chain{Writable: [][]byte{m.Mem.Regions()[0].Mem[firstFree : firstFree+2*pageSize]}}
	d.hinting.host = 2
	if n := testing.AllocsPerRun(100, func() {
		s.takePages(&inflate)
		s.takeReport(&report)
		left := uint64(1 << 20)
		s.takeHint(&queue.Chain{Readable: [][]byte{command}}, &left)
		s.takeHint(&report, &left)
		d.statistics.read(inflate.Readable)
	}); n > 1 { // the chain and its list, of the test's
		t.Errorf("%v allocations", n)
	}
}

func twoQueues(t *testing.T, m *vt.Machine) []*queue.Queue {
	t.Helper()
	var qs []*queue.Queue
	for _, r := range m.Rings[:2] {
		q, err := queue.New(m.Mem, r.Cfg)
		if err != nil {
			t.Fatal(err)
		}
		qs = append(qs, q)
	}
	return qs
}
