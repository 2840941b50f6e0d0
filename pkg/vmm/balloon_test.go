package vmm

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/config"
	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/virtio/balloon"
	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/virtio/virtiotest"
	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/vmmtest"
)

const pagesPerMiB = 256

// balloonGuest is a guest with a balloon, which does step after step of a script as it is told to.
type balloonGuest struct {
	*testing.T
	m    *Machine
	out  *vmmtest.Console
	disk string
	step int64
}

// startBalloon boots a guest of mib MiB with the functions that scripts below use. `await N` waits until the host is at step N: it says
// so by the size of a drive.
func startBalloon(t *testing.T, mib int, b config.Balloon, script string) *balloonGuest {
	t.Helper()
	g := &balloonGuest{T: t, disk: filepath.Join(t.TempDir(), "disk"), step: 1}
	if err := os.WriteFile(g.disk, make([]byte, 512), 0o600); err != nil {
		t.Fatal(err)
	}
	const functions = `dmesg -n 1; exec >/dev/console 2>&1
mount -t tmpfs -o size=100% tmpfs /mnt
echo 1024 >/proc/sys/vm/percpu_pagelist_high_fraction # as the agent does
await() { while read s </sys/block/vda/size; [ $s != $1 ]; do usleep ${pause-20000}; done; }
fill() { dd if=/dev/zero of=/mnt/$1 bs=1M count=$2 2>/dev/null; }
killed() { dmesg | grep -c 'Out of memory'; }
cp /bin/busybox /mnt/kept; sum=$(md5sum </mnt/kept)
kept() { [ "$(md5sum </mnt/kept)" = "$sum" ] && echo "kept"; }
churn() { # files: fills memory with them, and looks whether they stay as they were
	bad=0
	for i in $(seq $1); do cp /mnt/kept /mnt/z$i; done
	for i in $(seq $1); do cmp -s /mnt/kept /mnt/z$i || bad=$((bad+1)); done
	rm /mnt/z*; echo "churned: $bad bad"
}
`
	g.m, g.out = startKernel(t, config.VM{
		Machine:    config.Machine{VCPUCount: 1, MemSizeMiB: mib},
		BootSource: bootSource(vmmtest.Kernel(t), vmmtest.Busybox(t, functions+script)),
		Drives:     []config.Drive{{DriveID: "steps", PathOnHost: g.disk}},
		Balloon:    &b,
	})
	return g
}

func (g *balloonGuest) must(err error) {
	g.Helper()
	if err != nil {
		g.Fatal(err)
	}
}

// await waits until f is true.
func (g *balloonGuest) await(what string, f func() bool) {
	g.Helper()
	for begin := time.Now(); ; time.Sleep(10 * time.Millisecond) {
		over := g.m.State() == config.Ended || time.Since(begin) > bootTimeout // before f: its last words may be what is waited for
		if f() {
			return
		}
		if over {
			st, err := g.m.BalloonStatistics()
			all, _ := json.Marshal(st)
			g.Fatalf("not within %v: %s; %d MiB are resident, statistics %s, %v", bootTimeout, what, g.resident(), all, err)
		}
	}
}

// says waits for a line of the guest's.
func (g *balloonGuest) says(line string) {
	g.Helper()
	g.await("the guest says "+line, func() bool { return strings.Contains(g.out.String(), "\n"+line+"\r\n") })
}

// next has the guest do its next step.
func (g *balloonGuest) next() {
	g.Helper()
	g.step++
	g.must(os.Truncate(g.disk, g.step*512))
	g.must(g.m.UpdateDrive(context.Background(), config.DriveUpdate{DriveID: "steps", PathOnHost: g.disk}))
}

// resident is how much of the guest's RAM takes memory of the host, in MiB.
func (g *balloonGuest) resident() int { return virtiotest.Resident(g, g.m.mem) / pagesPerMiB }

// size is the balloon's, as the guest says.
func (g *balloonGuest) size() int {
	st, err := g.m.BalloonStatistics()
	if err != nil {
		return -1
	}
	return int(st.ActualMiB)
}

// updates is how often the guest has told its statistics.
func (g *balloonGuest) updates() uint64 { return g.m.Metrics().Balloon.StatsUpdates.Count() }

// free is how much memory the guest says it does not use, in MiB, after it has told its statistics more than so many times.
func (g *balloonGuest) free(updates uint64) int {
	g.Helper()
	g.await("statistics", func() bool { return g.updates() > updates })
	st, err := g.m.BalloonStatistics()
	g.must(err)
	return int(*st.FreeMemory >> 20)
}

// resize asks for a balloon.
func (g *balloonGuest) resize(mib int) {
	g.Helper()
	g.must(g.m.UpdateBalloon(context.Background(), config.BalloonUpdate{AmountMiB: mib}))
}

// touched has the guest fill memory and free it again, and returns what is resident then: without reporting all of it. It calls filled
// in between.
func (g *balloonGuest) touched(mib int, filled func()) int {
	g.Helper()
	before := g.resident()
	g.next()
	g.says(fmt.Sprintf("filled %d", g.step))
	if r := g.resident(); r < mib || r < before {
		g.Fatalf("%d MiB are resident after the guest has filled %d MiB; %d were before", r, mib, before)
	}
	filled()
	g.next()
	g.says(fmt.Sprintf("freed %d", g.step))
	return g.resident()
}

// The host gets memory back by inflation, and the guest by deflation. Statistics come, and the interval can be changed. The driver can
// go and come back.
func TestKernelBalloon(t *testing.T) {
	vmmtest.NeedKVM(t)
	g := startBalloon(t, 256, config.Balloon{StatsPollingIntervalS: 3600}, `
echo 3 >/proc/sys/vm/nr_hugepages; echo 0 >/proc/sys/vm/nr_hugepages
echo "ready"
await 2; fill x 96; echo "filled 2"; await 3; rm /mnt/x; echo "freed 3"
await 4; kept
cd /sys/bus/virtio/drivers/virtio_balloon; d=$(echo virtio*); echo $d >unbind; echo "unbound"
await 5; echo $d >bind; echo "bound"
await 6; kept; fill y 96 && echo "filled again"`)
	ctx := context.Background()
	early, err := g.m.BalloonStatistics()
	if err != nil || early.TargetPages != 0 {
		t.Errorf("before there is a driver: %+v, %v", early, err)
	}
	g.says("ready")
	var first config.BalloonStatistics
	g.await("statistics", func() bool {
		first, err = g.m.BalloonStatistics()
		g.must(err)
		return first.TotalMemory != nil && first.FreeMemory != nil && *first.TotalMemory > 200<<20 && *first.FreeMemory > 100<<20 &&
			*first.FreeMemory < *first.TotalMemory && first.AvailableMemory != nil && first.DiskCaches != nil
	})
	g.must(g.m.UpdateBalloonStatistics(ctx, config.BalloonStatisticsUpdate{StatsPollingIntervalS: 1}))
	free := func() uint64 {
		st, err := g.m.BalloonStatistics()
		g.must(err)
		return *st.FreeMemory
	}
	// The other tags are of later kernels.
	g.await("all statistics", func() bool {
		st, err := g.m.BalloonStatistics()
		g.must(err)
		return st.SwapIn != nil && *st.SwapIn == 0 && st.SwapOut != nil && *st.SwapOut == 0 && st.MajorFaults != nil && st.MinorFaults != nil &&
			*st.MinorFaults > *st.MajorFaults && st.HugetlbAllocations != nil && *st.HugetlbAllocations == 3 && st.HugetlbFailures != nil && *st.HugetlbFailures == 0
	})
	full := g.touched(96, func() { g.await("less free memory", func() bool { return free() < *first.FreeMemory-64<<20 }) })
	g.await("more free memory", func() bool { return free() > *first.FreeMemory-32<<20 })
	if err := g.m.UpdateBalloonStatistics(ctx, config.BalloonStatisticsUpdate{}); !errors.Is(err, balloon.ErrStatisticsSwitch) {
		t.Errorf("switching statistics off: %v", err)
	}
	if err := g.m.StartBalloonHinting(ctx, config.BalloonHintingStart{}); !errors.Is(err, balloon.ErrNoHinting) {
		t.Errorf("hinting: %v", err)
	}

	// Inflate, while the guest stands still and then runs; deflate.
	g.must(g.m.Pause(ctx))
	g.resize(150)
	if n := g.size(); n != 0 {
		t.Errorf("a guest that stands still has a balloon of %d MiB", n)
	}
	g.must(g.m.Resume(ctx))
	g.await("a balloon of 150 MiB", func() bool { return g.size() == 150 })
	g.await("memory comes back from the balloon", func() bool { return g.resident() < full-64 && g.resident() <= 256-150 })
	t.Logf("%d MiB are resident, %d with the balloon", full, g.resident())
	g.resize(0)
	g.await("no balloon", func() bool { return g.size() == 0 })

	// The driver goes, with the balloon it has, and comes back to find what the host wants.
	g.next()
	g.says("kept")
	g.says("unbound")
	if err := g.m.UpdateBalloon(ctx, config.BalloonUpdate{AmountMiB: 10}); !errors.Is(err, balloon.ErrInactive) {
		t.Errorf("without a driver: %v", err)
	}
	g.next()
	g.says("bound")
	g.resize(100)
	g.await("a balloon of the new driver", func() bool { return g.size() == 100 })
	g.next()
	g.says("filled again")
	if n := strings.Count(g.out.String(), "kept"); n != 2 {
		t.Errorf("the guest's data was right %d times, want 2", n)
	}
	if e := waitKernel(t, g.m); e.Reason != PoweredOff || e.Err != nil {
		t.Errorf("ended with %v, %v", e.Reason, e.Err)
	}
	for _, err := range []error{
		g.m.UpdateBalloon(ctx, config.BalloonUpdate{}), g.m.UpdateBalloonStatistics(ctx, config.BalloonStatisticsUpdate{}),
		g.m.StartBalloonHinting(ctx, config.BalloonHintingStart{}), g.m.StopBalloonHinting(ctx),
	} {
		if !errors.Is(err, ErrState) {
			t.Errorf("after the end: %v", err)
		}
	}
}

// The host gets free memory back by hints, with an acknowledgement and without, and not what the guest has in use, even if that takes
// back what it has hinted.
func TestKernelHinting(t *testing.T) {
	vmmtest.NeedKVM(t)
	g := startBalloon(t, 256, config.Balloon{FreePageHinting: true}, `
echo "ready"
await 2; fill x 96; echo "filled 2"; await 3; rm /mnt/x; echo "freed 3"
await 4; churn 30; kept`)
	ctx := context.Background()
	g.says("ready")
	full := g.touched(96, func() {})
	for _, acknowledge := range []bool{true, false} {
		g.must(g.m.StartBalloonHinting(ctx, config.BalloonHintingStart{AcknowledgeOnStop: acknowledge}))
		start, err := g.m.BalloonHinting()
		g.must(err)
		g.await("the end of the hints", func() bool {
			h, err := g.m.BalloonHinting()
			g.must(err)
			return h.GuestCommand != nil && *h.GuestCommand == 0 && (acknowledge && h.HostCommand == 1 || !acknowledge && h.HostCommand == start.HostCommand)
		})
		if n := g.resident(); n > full-48 {
			t.Errorf("%d MiB were resident, and %d are after a run of hints", full, n)
		}
		t.Logf("%d MiB were resident, %d are after a run of hints", full, g.resident())
	}
	g.must(g.m.StopBalloonHinting(ctx))

	// Hint again and again while the guest needs the memory itself.
	g.next()
	runs, began := 0, time.Now()
	g.await("the guest has what it wrote", func() bool {
		if h, err := g.m.BalloonHinting(); err == nil && h.HostCommand == 1 && time.Since(began) > 3*time.Second {
			g.must(g.m.StartBalloonHinting(ctx, config.BalloonHintingStart{AcknowledgeOnStop: true}))
			runs, began = runs+1, time.Now()
		}
		return strings.Contains(g.out.String(), "churned: ")
	})
	g.says("churned: 0 bad")
	g.says("kept")
	t.Logf("%d runs of hints while the guest used its memory", runs)
	if e := waitKernel(t, g.m); e.Reason != PoweredOff || e.Err != nil {
		t.Errorf("ended with %v, %v", e.Reason, e.Err)
	}
}

// Without anybody's asking the host gets back what the guest frees. A guest that runs out of memory takes it from the balloon, and nothing
// is killed.
func TestKernelReporting(t *testing.T) {
	vmmtest.NeedKVM(t)
	g := startBalloon(t, 256, config.Balloon{StatsPollingIntervalS: 1, DeflateOnOOM: true, FreePageReporting: true}, `
echo "ready"
for i in 2 4; do await $i; fill x 96; echo "filled $i"; await $((i+1)); rm /mnt/x; echo "freed $((i+1))"; done
await 6; dd if=/dev/zero of=/dev/null bs=90M count=1 2>/dev/null && echo "had 90 MiB"
echo "killed $(killed)"; kept`)
	g.says("ready")
	for range 2 {
		before := g.resident()
		g.touched(96, func() {})
		g.await("memory comes back by reports", func() bool { return g.resident() < before+24 })
		t.Logf("%d MiB were resident before, %d are after", before, g.resident())
	}
	g.resize(160)
	g.await("a balloon of 160 MiB", func() bool { return g.size() == 160 })
	g.next()
	g.says("had 90 MiB")
	g.await("a smaller balloon", func() bool { n := g.size(); return n >= 0 && n < 160 })
	g.says("killed 0")
	g.says("kept")
	if e := waitKernel(t, g.m); e.Reason != PoweredOff || e.Err != nil {
		t.Errorf("ended with %v, %v", e.Reason, e.Err)
	}
}

// A machine without a balloon says so, and has no device for it.
func TestNoBalloon(t *testing.T) {
	m := &Machine{}
	m.state.Store(config.Running)
	ctx := context.Background()
	_, stats := m.BalloonStatistics()
	_, hinting := m.BalloonHinting()
	for _, err := range []error{
		stats, hinting, m.UpdateBalloon(ctx, config.BalloonUpdate{}), m.UpdateBalloonStatistics(ctx, config.BalloonStatisticsUpdate{}),
		m.StartBalloonHinting(ctx, config.BalloonHintingStart{}), m.StopBalloonHinting(ctx),
	} {
		if !errors.Is(err, config.ErrNoBalloon) {
			t.Error(err)
		}
	}
}
