package balloon

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"testing"
	"time"

	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/config"
	vt "github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/virtio/virtiotest"
)

type entry struct {
	tag   uint16
	value uint64
}

func packed(entries ...entry) []byte {
	var b []byte
	for _, e := range entries {
		b = binary.LittleEndian.AppendUint64(binary.LittleEndian.AppendUint16(b, e.tag), e.value)
	}
	return b
}

// give makes a buffer of statistics available.
func give(m *vt.Machine, data []byte) {
	m.TB.Helper()
	s := m.Arena.Alloc(uint32(len(data)))
	copy(m.Bytes(s), data)
	if _, ok := m.Rings[statsQueue].Add([]vt.Span{s}, nil); !ok {
		m.TB.Fatal("no descriptor is free")
	}
	m.Rings[statsQueue].Kick()
}

// await waits until the statistics are as wanted.
func await(t *testing.T, d *Device, want string) {
	t.Helper()
	for begin := time.Now(); ; time.Sleep(time.Millisecond) {
		st, err := d.Statistics()
		if err != nil {
			t.Fatal(err)
		}
		got, err := json.Marshal(st)
		if err != nil {
			t.Fatal(err)
		}
		if string(got) == want {
			return
		}
		if time.Since(begin) > vt.Timeout {
			t.Fatalf("statistics %s, want %s", got, want)
		}
	}
}

const targets = `{"target_pages":768,"actual_pages":0,"target_mib":3,"actual_mib":0`

func TestStatistics(t *testing.T) {
	d := device(t, all)
	m := vt.Start(t, d, ramSize)
	await(t, d, targets+`}`)
	var full []entry
	for tag := range uint16(16) {
		full = append(full, entry{tag, uint64(tag) + 1<<63})
	}
	give(m, packed(full...))
	await(t, d, targets+`,"swap_in":9223372036854775808,"swap_out":9223372036854775809,"major_faults":9223372036854775810,"minor_faults":9223372036854775811,`+
		`"free_memory":9223372036854775812,"total_memory":9223372036854775813,"available_memory":9223372036854775814,"disk_caches":9223372036854775815,`+
		`"hugetlb_allocations":9223372036854775816,"hugetlb_failures":9223372036854775817,"oom_kill":9223372036854775818,"alloc_stall":9223372036854775819,`+
		`"async_scan":9223372036854775820,"direct_scan":9223372036854775821,"async_reclaim":9223372036854775822,"direct_reclaim":9223372036854775823}`)
	// The buffer stays with the device for the interval, and others wait behind it.
	give(m, packed(entry{4, 7}))
	m.WantBlocked(m.Rings[statsQueue])
	if err := d.SetStatisticsInterval(0); !errors.Is(err, ErrStatisticsSwitch) {
		t.Error(err)
	}
	if err := d.SetStatisticsInterval(65536); err == nil {
		t.Error("an interval that is too long was taken")
	}
	d.statistics.interval.Store(int64(time.Millisecond)) // shorter than a client can ask for
	for deadline := time.Now().Add(vt.Timeout); ; time.Sleep(time.Millisecond) {
		d.statistics.mu.Lock()
		asleep := d.statistics.asleep != nil
		if asleep {
			d.statistics.asleep.Wake()
		}
		d.statistics.mu.Unlock()
		if asleep {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("the device does not wait for its interval")
		}
	}
	for range 2 {
		m.WaitUsed(m.Rings[statsQueue])
	}
	if st, err := d.Statistics(); err != nil || *st.FreeMemory != 7 || *st.SwapIn != 1<<63 {
		t.Errorf("%+v, %v", st, err)
	}
	// A new driver's are its own.
	if err := d.Reset(); err != nil {
		t.Fatal(err)
	}
	await(t, d, targets+`}`)
	m.Activate(d.Features())
	give(m, packed(entry{0, 0}))
	await(t, d, targets+`,"swap_in":0}`)
}

// The interval counts from the last statistics, whatever it was before.
func TestStatisticsInterval(t *testing.T) {
	d := device(t, config.Balloon{StatsPollingIntervalS: 65535})
	m := vt.Start(t, d, ramSize)
	for range 3 {
		give(m, packed(entry{4, 1}))
		m.WantBlocked(m.Rings[statsQueue])
		if err := d.SetStatisticsInterval(1); err != nil {
			t.Fatal(err)
		}
		m.WaitUsed(m.Rings[statsQueue])
		if err := d.SetStatisticsInterval(65535); err != nil {
			t.Fatal(err)
		}
	}
	give(m, packed(entry{4, 1}))
	m.WantBlocked(m.Rings[statsQueue]) // and a reset ends the wait
}

func TestStatisticsNonsense(t *testing.T) {
	d := device(t, all)
	m := vt.Start(t, d, ramSize)
	d.statistics.interval.Store(int64(time.Millisecond))
	for _, data := range [][]byte{
		{}, {1}, packed(entry{1, 2})[:9], packed(entry{16, 1}, entry{65535, 1}), make([]byte, 100_000),
		append(packed(entry{5, 5}), 1, 2, 3),
	} {
		give(m, data)
		m.WaitUsed(m.Rings[statsQueue])
	}
	await(t, d, targets+`,"swap_in":0,"total_memory":5}`)
	m.Do(m.Rings[statsQueue], nil, []vt.Span{m.Arena.Alloc(100)})
}

func TestNoStatistics(t *testing.T) {
	d := device(t, config.Balloon{})
	if _, err := d.Statistics(); !errors.Is(err, ErrNoStatistics) {
		t.Error(err)
	}
	if err := d.SetStatisticsInterval(0); err != nil {
		t.Error(err)
	}
	if err := d.SetStatisticsInterval(1); !errors.Is(err, ErrStatisticsSwitch) {
		t.Error(err)
	}
}
