package vmm

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/config"
	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/vmmtest"
)

const (
	// limitsWindow is over how much of the guest's clock a limit must hold, and limitsError how far from it the rate may be.
	limitsWindow = 10 * time.Second
	limitsError  = 0.05
	// limitsPeriod is what a bucket holds, as the time that fills it. A guest that does not run for a while gets so much more afterwards: well
	// within limitsError of a window.
	limitsPeriod = limitsWindow / 25
)

// limitKind is the one of a limiter's buckets that is in use.
type limitKind string

const (
	byBytes    limitKind = "bytes"
	byRequests limitKind = "requests"
)

func (k limitKind) other() limitKind {
	if k == byBytes {
		return byRequests
	}
	return byBytes
}

// limiter lets perSecond requests of size bytes through, and has no other limit.
func (k limitKind) limiter(perSecond, size uint64) *config.RateLimiter {
	const period = uint64(limitsPeriod / time.Millisecond)
	b := &config.TokenBucket{Size: perSecond * period / 1000, RefillTime: period}
	if k == byRequests {
		return &config.RateLimiter{Bandwidth: &config.TokenBucket{}, Ops: b}
	}
	b.Size *= size
	return &config.RateLimiter{Bandwidth: b, Ops: &config.TokenBucket{}}
}

// sample is what a guest has counted until a moment between two times of its clock: see limitsGuest.
type sample struct {
	before, after                                          time.Duration
	reads, randoms, rxPackets, txPackets, rxBytes, txBytes int64
}

// limitedGuest is a guest whose devices are all limited.
type limitedGuest struct {
	*testing.T
	m    *Machine
	out  *vmmtest.Console
	kind limitKind
	from int // the first sample that counts
	// perSecond is the limit of drive and interface, in requests.
	perSecond uint64
}

// entropyPerSecond is the limit of the entropy device, which cannot be changed, in requests. A guest
// has one of these at a time.
const entropyPerSecond = 20

func startLimited(t *testing.T, kind limitKind) *limitedGuest {
	t.Helper()
	g := &limitedGuest{T: t, kind: kind, perSecond: 40, from: 3}
	disk := filepath.Join(t.TempDir(), "disk")
	if err := os.WriteFile(disk, make([]byte, limitsDrive), 0o600); err != nil {
		t.Fatal(err)
	}
	tap := "fc" + string(kind)
	net := kind.limiter(g.perSecond, limitsFrame)
	g.m, g.out = startKernel(t, config.VM{
		Machine:    config.Machine{VCPUCount: 1, MemSizeMiB: 256},
		BootSource: bootSource(vmmtest.Kernel(t), vmmtest.Self(t)),
		Drives:     []config.Drive{{DriveID: "data", PathOnHost: disk, RateLimiter: kind.limiter(g.perSecond, limitsRead)}},
		NetworkInterfaces: []config.NetworkInterface{{IfaceID: "eth0", HostDevName: tap, RxRateLimiter: net,
			TxRateLimiter: net}},
		Entropy: &config.Entropy{RateLimiter: kind.limiter(entropyPerSecond, limitsRandom)},
	})
	s, err := packetSocket(tap)
	if err != nil {
		t.Fatal(err)
	}
	// More frames than the guest may have; what there is no room for is dropped.
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer s.Close()
		for b := experimentalFrame(); ; {
			select {
			case <-g.m.Done():
				return
			case <-time.After(100 * time.Millisecond):
			}
			for range 20 {
				s.Write(b)
			}
		}
	}()
	t.Cleanup(func() {
		g.m.Close()
		<-done
	})
	return g
}

var sampleLine = regexp.MustCompile(`(?m)^sample (\d+) (\d+) \[(.*)\]\r?$`)

// samples are those until now.
func (g *limitedGuest) samples() (all []sample) {
	g.Helper()
	for _, line := range sampleLine.FindAllStringSubmatch(g.out.String(), -1) {
		var s sample
		if _, err := fmt.Sscan(strings.Join(line[1:], " "), &s.before, &s.after, &s.reads, &s.randoms, &s.rxPackets, &s.txPackets, &s.rxBytes, &s.txBytes); err != nil {
			g.Fatalf("%q: %v", line[0], err)
		}
		s.before, s.after = s.before*time.Microsecond, s.after*time.Microsecond
		all = append(all, s)
	}
	return all
}

// change gives drive and interface another limit.
func (g *limitedGuest) change(kind limitKind, perSecond uint64) {
	g.Helper()
	ctx := context.Background()
	if err := g.m.UpdateDrive(ctx, config.DriveUpdate{DriveID: "data", RateLimiter: kind.limiter(perSecond, limitsRead)}); err != nil {
		g.Fatal(err)
	}
	net := kind.limiter(perSecond, limitsFrame)
	if err := g.m.UpdateNetworkInterface(ctx, config.NetworkInterfaceUpdate{IfaceID: "eth0", RxRateLimiter: net, TxRateLimiter: net}); err != nil {
		g.Fatal(err)
	}
	// The latest sample but one may have been begun before, and new buckets are full.
	g.kind, g.perSecond, g.from = kind, perSecond, len(g.samples())+3
}

// check waits until each device has kept within limitsError of its limit for a window, and wants none to have been above that in any. A guest
// on a busy host may not have enough requests at times, and so there may be many windows; it is never let have more than its limit.
func (g *limitedGuest) check(entropy limitKind) {
	g.Helper()
	for _, d := range []struct {
		name      string
		kind      limitKind
		perSecond uint64
		count     func(s sample) float64
	}{
		{"drive", g.kind, g.perSecond, func(s sample) float64 { return float64(s.reads) }},
		{"entropy", entropy, entropyPerSecond, func(s sample) float64 { return float64(s.randoms) }},
		{"net rx", byBytes, g.perSecond, func(s sample) float64 { return float64(s.rxBytes) / limitsFrame }},
		{"net tx", byBytes, g.perSecond, func(s sample) float64 { return float64(s.txBytes) / limitsFrame }},
		{"net rx", byRequests, g.perSecond, func(s sample) float64 { return float64(s.rxPackets) }},
		{"net tx", byRequests, g.perSecond, func(s sample) float64 { return float64(s.txPackets) }},
	} {
		if strings.HasPrefix(d.name, "net") && d.kind != g.kind {
			continue
		}
		what, want := d.name+" by "+string(d.kind), float64(d.perSecond)
		for begin := time.Now(); !g.within(what, want, d.count); time.Sleep(50 * time.Millisecond) {
			if g.m.State() == config.Ended || time.Since(begin) > bootTimeout {
				g.Fatalf("%s: not %.0f requests a second, within %.0f %%, in any %v within %v", what, want, 100*limitsError, limitsWindow, bootTimeout)
			}
		}
	}
}

// within reports whether there is a window in which a device has kept to its limit.
func (g *limitedGuest) within(what string, want float64, count func(sample) float64) bool {
	g.Helper()
	all := g.samples()
	for i, j := g.from, g.from; i < len(all); i++ {
		for j < len(all) && all[j].before-all[i].after < limitsWindow {
			j++
		}
		if j == len(all) {
			break
		}
		// When within a sample something was counted is not known.
		n, short, long := count(all[j])-count(all[i]), all[j].before-all[i].after, all[j].after-all[i].before
		least, most := n/long.Seconds(), n/short.Seconds()
		if least > want*(1+limitsError) {
			g.Fatalf("%s: %.2f requests a second for %v, want %.0f", what, least, long, want)
		}
		if least > want*(1-limitsError) && most < want*(1+limitsError) {
			g.Logf("%s: from %.2f to %.2f requests a second, want %.0f; window %d", what, least, most, want, i-g.from+1)
			return true
		}
	}
	return false
}

// TestKernelLimits has every limiter hold within 5 % over 10 s of the guest's clock, by bytes and by requests, with all devices busy at the
// same time, and hold to what it is changed to while they run. An entropy device has one limit for its life, so there are two guests.
func TestKernelLimits(t *testing.T) {
	vmmtest.NeedKVM(t)
	// A network namespace of the test's own. The thread never goes back to other goroutines.
	runtime.LockOSThread()
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		t.Skip("needs a network namespace of its own:", err)
	}
	guests := []*limitedGuest{startLimited(t, byBytes), startLimited(t, byRequests)}
	first := []limitKind{byBytes, byRequests}
	for i, g := range guests {
		g.check(first[i])
	}
	for _, g := range guests {
		g.change(g.kind.other(), 60)
	}
	for i, g := range guests {
		g.check(first[i])
	}
}
