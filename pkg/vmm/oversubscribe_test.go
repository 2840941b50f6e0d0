package vmm

import (
	"fmt"
	"os"
	"regexp"
	"strconv"
	"testing"
	"time"

	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/config"
	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/vmmtest"
)

const (
	// touched is what each guest fills and frees again, in MiB.
	touched = 64
	// reserve is what a balloon leaves of a guest's free memory, in MiB: Linux does not let it have the last 28.
	reserve = 40
)

// TestOversubscription has machines with more memory between them than the host has, each of which touches 64 MiB and frees them again.
// One half report their free pages, the other half is asked for all they have by a balloon: the host has what was touched back from either, by
// its own count, and no guest has lost anything. FC_OVERSUBSCRIBE=N has it be N machines of 1 GiB.
func TestOversubscription(t *testing.T) {
	vmmtest.NeedKVM(t)
	machines, mib := 4, 2048
	if s := os.Getenv("FC_OVERSUBSCRIBE"); s != "" {
		n, err := strconv.Atoi(s)
		if err != nil || n < 2 {
			t.Fatalf("FC_OVERSUBSCRIBE=%s: want a number of machines, at least 2", s)
		}
		machines, mib = n, 1024
	}
	reports := func(i int) bool { return i%2 == 0 }
	before := available(t)
	if total := meminfo(t, "MemTotal"); machines*mib < total {
		t.Logf("%d MiB in %d machines are less than the %d of this host", machines*mib, machines, total)
	}
	begin := time.Now()
	guests := make([]*balloonGuest, machines)
	// What is resident of each guest, in MiB: when it has booted, when it has filled memory, and when it has given it back.
	booted, peak, end := make([]int, machines), make([]int, machines), make([]int, machines)
	for i := range guests {
		g := startBalloon(t, mib, config.Balloon{StatsPollingIntervalS: 1, FreePageReporting: reports(i)},
			// A pause of a second: so many guests must not keep the host busy by waiting.
			fmt.Sprintf(`pause=1000000; echo "ready"; await 2; fill x %d; echo "filled"; await 3; rm /mnt/x; echo "freed"; await 4; kept; sleep 1000000`, touched))
		guests[i] = g
		g.says("ready")
		booted[i] = g.resident()
	}
	t.Logf("%d machines of %d MiB have booted after %v", machines, mib, time.Since(begin))
	for _, g := range guests {
		g.next()
	}
	for i, g := range guests {
		g.says("filled")
		if peak[i] = g.resident(); peak[i] < booted[i]+touched/2 {
			t.Fatalf("%d MiB are resident after the guest has touched %d, %d were before", peak[i], touched, booted[i])
		}
	}
	full := available(t)
	if used := before - full; used < sum(peak)*3/4 {
		t.Errorf("the host says that %d MiB are in use, and of the guests %d are resident", used, sum(peak))
	}

	for _, g := range guests {
		g.next()
	}
	updates := make([]uint64, machines)
	for i, g := range guests {
		g.says("freed")
		updates[i] = g.updates()
	}
	target := make([]int, machines)
	for i, g := range guests {
		if !reports(i) {
			target[i] = g.free(updates[i]+1) - reserve // one update may have been under way
			g.resize(target[i])
		}
	}
	// The balloon leaves `reserve` of what is free, all of which may have been touched. Reports are of blocks of 2 MiB that are free as a
	// whole: a CPU's list of free pages, and pages that are in use since, keep some of them.
	for i, g := range guests {
		back := touched * 3 / 4
		if !reports(i) {
			back = touched / 4
			g.await("the whole balloon", func() bool { return g.size() == target[i] })
		}
		g.await(fmt.Sprintf("machine %d of %d MiB that were resident, %d of them before it touched memory, has given %d back", i, peak[i], booted[i], back),
			func() bool { return g.resident() <= peak[i]-back })
	}
	for i, g := range guests {
		end[i] = g.resident()
	}
	t.Logf("guests: %d MiB were resident after the boot, %d when all had touched %d, %d when they had given them back after %v; of one that reports %d, %d, %d, of one with a balloon %d, %d, %d",
		sum(booted), sum(peak), touched, sum(end), time.Since(begin), booted[0], peak[0], end[0], booted[1], peak[1], end[1])
	// What else there is on the host has some of it meanwhile.
	given := sum(peak) - sum(end)
	guests[0].await(fmt.Sprintf("of %d MiB that the guests have given back the host has most", given), func() bool {
		return available(t)-full >= given*3/4
	})
	t.Logf("host: %d MiB in use when all had touched %d, %d in the end, of %d", before-full, touched, before-available(t), meminfo(t, "MemTotal"))
	for _, g := range guests {
		g.next()
	}
	for _, g := range guests {
		g.says("kept")
		g.must(g.m.Close())
	}
}

func sum(all []int) (n int) {
	for _, v := range all {
		n += v
	}
	return n
}

// available is how much memory the host could give, in MiB: what it says itself, and the lists of free pages of its CPUs, which it
// leaves out and which are the first to get what a guest has given back.
func available(t *testing.T) int {
	t.Helper()
	b, err := os.ReadFile("/proc/zoneinfo")
	if err != nil {
		t.Fatal(err)
	}
	pages := 0
	for _, m := range regexp.MustCompile(`(?m)^ +count: +(\d+)$`).FindAllSubmatch(b, -1) {
		n, _ := strconv.Atoi(string(m[1]))
		pages += n
	}
	return meminfo(t, "MemAvailable") + pages/pagesPerMiB
}

// meminfo is what the host says of its memory, in MiB.
func meminfo(t *testing.T, key string) int {
	t.Helper()
	b, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		t.Fatal(err)
	}
	m := regexp.MustCompile(`(?m)^` + key + `: +(\d+) kB$`).FindSubmatch(b)
	if m == nil {
		t.Fatalf("no %s in %s", key, b)
	}
	kib, _ := strconv.Atoi(string(m[1]))
	return kib >> 10
}
