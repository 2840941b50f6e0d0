package vmm

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/config"
	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/vmmtest"
)

// TestOversubscription has 20 machines of 1 GiB on a host of less, each of which touches 64 MiB and frees them again. One half report their
// free pages, the other half is asked for them by a balloon: the host has what was touched back from either.
func TestOversubscription(t *testing.T) {
	vmmtest.NeedKVM(t)
	if os.Getenv("FC_OVERSUBSCRIBE") != "1" {
		t.Skip("takes minutes where KVM is emulated: FC_OVERSUBSCRIBE=1 runs it")
	}
	const machines, mib, touched, inflated = 20, 1024, 64, 256
	begin := time.Now()
	guests := make([]*balloonGuest, machines)
	// What is resident of each guest, in MiB: when it has booted, and when it has freed memory that the host has not got back.
	booted, peak := make([]int, machines), make([]int, machines)
	for i := range guests {
		g := startBalloon(t, mib, config.Balloon{StatsPollingIntervalS: 10, FreePageReporting: i%2 == 0},
			fmt.Sprintf(`echo "ready"; await 2; fill x %d; echo "filled"; await 3; rm /mnt/x; echo "freed"; sleep 1000000`, touched))
		guests[i] = g
		g.says("ready")
		booted[i] = g.resident()
		g.next()
		g.says("filled")
		if peak[i] = g.resident(); peak[i] < booted[i]+touched/2 {
			t.Fatalf("%d MiB are resident after the guest has touched %d, %d were before", peak[i], touched, booted[i])
		}
		g.next()
		g.says("freed")
		if i%2 == 1 {
			g.resize(inflated)
		}
	}
	t.Logf("%d machines of %d MiB have run after %v", machines, mib, time.Since(begin))
	// Pieces that are too small to be reported stay, and a balloon has other free pages, too.
	total, most := 0, 0
	for i, g := range guests {
		back := touched * 3 / 4
		if i%2 == 1 {
			back = touched / 4
		}
		g.await("the host has the memory back", func() bool { return g.resident() <= peak[i]-back })
	}
	for i, g := range guests {
		total, most = total+g.resident(), most+peak[i]
	}
	t.Logf("of %d MiB in %d machines %d are resident in the end, of %d that were touched: %d and %d of the first two", machines*mib, machines, total, most,
		guests[0].resident(), guests[1].resident())
	if info, err := os.ReadFile("/proc/meminfo"); err == nil {
		t.Logf("the host: %.120s", strings.ReplaceAll(string(info), "\n", ", "))
	}
	for _, g := range guests {
		if err := g.m.Close(); err != nil {
			t.Error(err)
		}
	}
}
