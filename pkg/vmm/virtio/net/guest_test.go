package net_test

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"net"
	"os"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm"
	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/config"
	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/vmmtest"
)

// TestMain makes the test's program a guest's PID 1 too.
func TestMain(m *testing.M) {
	if os.Getpid() == 1 {
		vmmtest.Init(guestServe)
	}
	os.Exit(m.Run())
}

// hostPatience bounds each wait for the guest: it may be emulated, and busy.
const hostPatience = 5 * time.Minute

const (
	tap0, tap1 = "fctest0", "fctest1"
	mac1       = "02:fc:00:00:00:07"
)

// ownNetwork gives a test with a guest a network namespace of its own. Its thread never goes back to other goroutines.
func ownNetwork(t *testing.T) {
	t.Helper()
	vmmtest.NeedKVM(t)
	runtime.LockOSThread()
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		t.Skip("needs a network namespace of its own:", err)
	}
}

// wantPowerOff waits for a guest that powers off, and ends one that does not.
func wantPowerOff(t *testing.T, m *vmm.Machine) {
	t.Helper()
	select {
	case <-m.Done():
	case <-time.After(hostPatience):
		t.Errorf("the guest did not end within %s", hostPatience)
		m.Close()
	}
	if e := m.Wait(); e.Reason != vmm.PoweredOff || e.Err != nil {
		t.Errorf("ended with %v, %v", e.Reason, e.Err)
	}
}

// TestGuest has a real kernel use two interfaces: a TAP that somebody made, and one that the VMM makes.
func TestGuest(t *testing.T) {
	ownNetwork(t)
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	l, err := newLinks()
	must(err)
	defer unix.Close(l.fd)
	must(makeTAP(tap0))

	args := "console=ttyS0 reboot=k panic=-1 quiet"
	var out vmmtest.Console
	m, err := vmm.New(context.Background(), config.VM{
		Machine:    config.Machine{VCPUCount: 2, MemSizeMiB: 256},
		BootSource: &config.BootSource{KernelImagePath: vmmtest.Kernel(t), InitrdPath: vmmtest.Self(t), BootArgs: &args},
		NetworkInterfaces: []config.NetworkInterface{
			{IfaceID: "first", HostDevName: tap0},
			{IfaceID: "second", HostDevName: tap1, GuestMAC: mac1, MTU: 9000},
		},
	}, vmm.Options{Console: &out})
	must(err)
	defer func() {
		m.Close()
		if t.Failed() {
			t.Logf("console:\n%s", out.String())
		}
		if _, err := net.InterfaceByName(tap1); err == nil {
			t.Error("the VMM's TAP outlived it")
		}
	}()
	must(l.address(tap0, host0))
	must(l.address(tap1, host1))
	must(l.mtu(tap1, 9000))
	listen := func(addr string) *net.TCPListener {
		t.Helper()
		a, err := net.Listen("tcp", addr)
		must(err)
		t.Cleanup(func() { a.Close() })
		tl := a.(*net.TCPListener)
		must(tl.SetDeadline(time.Now().Add(hostPatience)))
		return tl
	}
	control, sink, source := listen(host0+controlPort), listen(sinkPort), listen(sourcePort)
	for _, h := range []string{host0, host1} {
		u, err := net.ListenPacket("udp", h+echoPort)
		must(err)
		t.Cleanup(func() { u.Close() })
		go func() {
			b := make([]byte, 1<<16)
			for {
				n, from, err := u.ReadFrom(b)
				if err != nil {
					return
				}
				u.WriteTo(b[:n], from)
			}
		}()
	}
	must(m.Start(context.Background()))
	c, err := control.Accept()
	must(err)
	defer c.Close()
	in := bufio.NewReader(c)
	ask := func(format string, a ...any) string {
		t.Helper()
		question := fmt.Sprintf(format, a...)
		must(c.SetDeadline(time.Now().Add(hostPatience)))
		_, err := fmt.Fprintln(c, question)
		must(err)
		answer, err := in.ReadString('\n')
		if answer = strings.TrimSpace(answer); err != nil || strings.HasPrefix(answer, "FAIL") {
			t.Fatalf("%s: %s, %v", question, answer, err)
		}
		return answer
	}
	number := func(answer string) float64 {
		t.Helper()
		n, err := strconv.ParseFloat(answer, 64)
		must(err)
		return n
	}

	if got, want := ask("info eth1"), mac1+" mtu 9000"; got != want {
		t.Errorf("eth1 is %s, want %s", got, want)
	}
	if got := ask("info eth0"); !strings.HasSuffix(got, " mtu 1500") || strings.HasPrefix(got, "00:00:00:00:00:00") {
		t.Errorf("eth0 is %s", got)
	}
	echo := func() {
		t.Helper()
		ask("echo " + host0 + echoPort)
		ask("echo " + host1 + echoPort)
	}
	echo()

	// To the host, byte by byte the same, and in frames larger than an MTU. The link goes down and up in between.
	type result struct {
		sum string
		err error
	}
	got := make(chan result, 1)
	half := make(chan struct{})
	go func() {
		c, err := sink.Accept()
		if err != nil {
			close(half)
			got <- result{err: err}
			return
		}
		defer c.Close()
		r, w := io.Pipe()
		go func() {
			_, err := io.CopyN(w, c, streamBytes/2)
			close(half)
			if err == nil {
				_, err = io.Copy(w, c)
			}
			w.CloseWithError(err)
		}()
		s, err := sum(r)
		got <- result{s, err}
	}()
	toggled := make(chan error, 1)
	go func() {
		<-half
		err := l.up(tap0, false)
		time.Sleep(300 * time.Millisecond)
		if err == nil {
			err = l.up(tap0, true)
		}
		toggled <- err
	}()
	packets := func(direction string) (n, bytes float64) {
		t.Helper()
		return number(ask("read /sys/class/net/eth0/statistics/%s_packets", direction)), number(ask("read /sys/class/net/eth0/statistics/%s_bytes", direction))
	}
	begin := time.Now()
	ask("send")
	must(<-toggled)
	want, _ := sum(stream(fromGuest))
	if r := <-got; r.err != nil || r.sum != want {
		t.Errorf("from the guest: %+v, want %s", r, want)
	}
	n, size := packets("tx")
	t.Logf("to the host: %v, %.0f frames of %.0f bytes", time.Since(begin), n, size/n)
	if size/n < 1600 {
		t.Error("no segmentation by the host")
	}

	// To the guest.
	go func() {
		if c, err := source.Accept(); err == nil {
			io.Copy(c, stream(fromHost))
			c.Close()
		}
	}()
	begin = time.Now()
	want, _ = sum(stream(fromHost))
	n0, size0 := packets("rx")
	if got := ask("receive"); got != want {
		t.Errorf("from the host: %s, want %s", got, want)
	}
	n, size = packets("rx")
	n, size = n-n0, size-size0
	t.Logf("to the guest: %v, %.0f frames of %.0f bytes", time.Since(begin), n, size/n)
	if size/n < 1600 {
		t.Error("no large frames for the guest")
	}

	// Each direction keeps to a limit that is set while it runs, by the guest's clock within 5 %, and goes on when that is lifted. How
	// close it comes is for the log: on a busy host there is not always something to send, and a guest that
	// does not run for a while gets what a bucket holds beyond the rate, so that the best of three counts for each bound. The other interface's commands do not queue up behind it.
	for _, tt := range []struct {
		direction, port string
		limit           func(*config.NetworkInterfaceUpdate) **config.RateLimiter
	}{
		{"tx", sinkPort, func(u *config.NetworkInterfaceUpdate) **config.RateLimiter { return &u.TxRateLimiter }},
		{"rx", sourcePort, func(u *config.NetworkInterfaceUpdate) **config.RateLimiter { return &u.RxRateLimiter }},
	} {
		set := func(b config.TokenBucket) {
			t.Helper()
			u := config.NetworkInterfaceUpdate{IfaceID: "second"}
			*tt.limit(&u) = &config.RateLimiter{Bandwidth: &b}
			must(m.UpdateNetworkInterface(context.Background(), u))
		}
		const perSecond = 1 << 20
		set(config.TokenBucket{Size: perSecond / 8, RefillTime: 1000 / 8})
		l := map[string]*net.TCPListener{sinkPort: sink, sourcePort: source}[tt.port]
		must(l.SetDeadline(time.Now().Add(hostPatience)))
		ask("pour %s", tt.port)
		stream, err := l.Accept()
		must(err)
		go io.Copy(io.Discard, stream)
		if tt.port == sourcePort {
			go io.Copy(stream, rand.NewChaCha8([32]byte{fromHost}))
		}
		ask("rate eth1 %s", tt.direction) // until the bucket is empty
		least, most := math.Inf(1), 0.0
		for range 3 {
			rate := number(ask("rate eth1 %s", tt.direction))
			t.Logf("%s: %.0f bytes/s, limit %d", tt.direction, rate, perSecond)
			least, most = min(least, rate), max(most, rate)
		}
		if least > 1.05*perSecond {
			t.Errorf("%s: at least %.0f bytes/s, more than %d", tt.direction, least, perSecond)
		}
		if most < 0.02*perSecond {
			t.Errorf("%s: at most %.0f bytes/s, far less than %d", tt.direction, most, perSecond)
		}
		set(config.TokenBucket{})
		stream.Close()
		echo()
	}

	// Another driver takes over.
	for range 3 {
		ask("rebind eth1")
		echo()
	}

	// A TAP goes away: the guest's link is down, and the other interface goes on.
	ask("carrier eth1 1")
	must(remove(tap1))
	ask("carrier eth1 0")
	ask("echo " + host0 + echoPort)
	c.Close()
	wantPowerOff(t, m)
}

// TestPowersOffWhileSending has guests power off in the middle of sending, which has kept some releases of Linux for ever.
func TestPowersOffWhileSending(t *testing.T) {
	ownNetwork(t)
	for range 3 {
		powerOffWhileSending(t)
	}
}

func powerOffWhileSending(t *testing.T) {
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	args := "console=ttyS0 reboot=k panic=-1 quiet"
	var out vmmtest.Console
	m, err := vmm.New(context.Background(), config.VM{
		Machine:    config.Machine{VCPUCount: 1, MemSizeMiB: 128},
		BootSource: &config.BootSource{KernelImagePath: vmmtest.Kernel(t), InitrdPath: vmmtest.Self(t), BootArgs: &args},
		NetworkInterfaces: []config.NetworkInterface{
			{IfaceID: "first", HostDevName: tap0},
			{IfaceID: "second", HostDevName: tap1},
		},
	}, vmm.Options{Console: &out})
	must(err)
	defer m.Close()
	l, err := newLinks()
	must(err)
	defer unix.Close(l.fd)
	must(l.address(tap0, host0))
	control, err := net.Listen("tcp", host0+controlPort)
	must(err)
	defer control.Close()
	must(control.(*net.TCPListener).SetDeadline(time.Now().Add(hostPatience)))
	must(m.Start(context.Background()))
	c, err := control.Accept()
	must(err)
	defer c.Close()
	must(c.SetDeadline(time.Now().Add(hostPatience)))
	_, err = fmt.Fprintln(c, "flood "+host0+sinkPort)
	must(err)
	if answer, err := bufio.NewReader(c).ReadString('\n'); answer != "flooding\n" {
		t.Fatalf("%q, %v", answer, err)
	}
	c.Close()
	if wantPowerOff(t, m); t.Failed() {
		t.Fatalf("console:\n%s", out.String())
	}
}
