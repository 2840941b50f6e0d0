package mmds_test

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
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
	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/mmds"
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

// inGuest is a machine with a metadata service, whose guest does as it is asked to.
type inGuest struct {
	*testing.T
	m     *vmm.Machine
	store *mmds.Store
	c     net.Conn
	in    *bufio.Reader
}

func (g *inGuest) must(err error) {
	g.Helper()
	if err != nil {
		g.Fatal(err)
	}
}

// ask has the guest do something, and gives what came of it.
func (g *inGuest) ask(command ...string) string {
	g.Helper()
	g.must(g.c.SetDeadline(time.Now().Add(hostPatience)))
	_, err := fmt.Fprintln(g.c, strings.Join(command, "\t"))
	g.must(err)
	answer, err := g.in.ReadString('\n')
	if answer = strings.TrimSpace(answer); err != nil || strings.HasPrefix(answer, "FAIL") {
		g.Fatalf("%q: %s, %v", command, answer, err)
	}
	return answer
}

// want has the guest do something with an outcome that is known.
func (g *inGuest) want(outcome string, command ...string) {
	g.Helper()
	if got := g.ask(command...); got != outcome {
		g.Errorf("%q: %s, want %s", command, got, outcome)
	}
}

// newInGuest boots a guest on a TAP, in a network namespace of the test's own.
func newInGuest(t *testing.T, cfg config.MMDS) *inGuest {
	t.Helper()
	vmmtest.NeedKVM(t)
	runtime.LockOSThread() // for good
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		t.Skip("needs a network namespace of its own:", err)
	}
	g := &inGuest{T: t, store: mmds.NewStore(1 << 20)}
	args := "console=ttyS0 reboot=k panic=-1 quiet"
	var out vmmtest.Console
	cfg.NetworkInterfaces = []string{"eth0"}
	m, err := vmm.New(context.Background(), config.VM{
		Machine:           config.Machine{VCPUCount: 1, MemSizeMiB: 128},
		BootSource:        &config.BootSource{KernelImagePath: vmmtest.Kernel(t), InitrdPath: vmmtest.Self(t), BootArgs: &args},
		NetworkInterfaces: []config.NetworkInterface{{IfaceID: "eth0", HostDevName: "fcmmds"}},
		MMDS:              &cfg,
	}, vmm.Options{Console: &out, ID: "test", Metadata: g.store})
	g.must(err)
	g.m = m
	t.Cleanup(func() {
		m.Close()
		if t.Failed() {
			t.Logf("console:\n%s", out.String())
		}
	})
	g.must(setAddress("fcmmds", host, [4]byte{255, 255, 255, 0}))
	l, err := net.Listen("tcp", host+controlPort)
	g.must(err)
	defer l.Close()
	g.must(l.(*net.TCPListener).SetDeadline(time.Now().Add(hostPatience)))
	g.must(m.Start(context.Background()))
	g.c, err = l.Accept()
	g.must(err)
	t.Cleanup(func() { g.c.Close() })
	g.in = bufio.NewReader(g.c)
	return g
}

// end has the guest power off.
func (g *inGuest) end() {
	g.Helper()
	g.c.Close()
	select {
	case <-g.m.Done():
	case <-time.After(hostPatience):
		g.Errorf("the guest did not end within %s", hostPatience)
		g.m.Close()
	}
	if e := g.m.Wait(); e.Reason != vmm.PoweredOff || e.Err != nil {
		g.Errorf("ended with %v, %v", e.Reason, e.Err)
	}
}

// TestGuest has a real guest ask a service of version 1.
func TestGuest(t *testing.T) {
	g := newInGuest(t, config.MMDS{Version: "V1", IPv4Address: "169.254.169.254"})
	const url = "http://169.254.169.254/"
	g.want(`404 text/plain "Resource not found: /."`, "http", "GET", url)
	g.must(g.store.Put([]byte(`{"latest": {"meta-data": {"ami-id": "ami-1", "n": 5}, "list": ["a"]}}`)))
	g.want(`200 text/plain "latest/"`, "http", "GET", url)
	g.want(`200 text/plain "ami-id\nn"`, "http", "GET", url+"latest/meta-data/")
	g.want(`200 text/plain "ami-1"`, "http", "GET", url+"latest/meta-data/ami-id")
	g.want(`200 application/json "{\"latest\":{\"list\":[\"a\"],\"meta-data\":{\"ami-id\":\"ami-1\",\"n\":5}}}"`, "http", "GET", url, "Accept: application/json")
	g.want(`200 application/json "5"`, "http", "GET", url+"latest/meta-data/n", "Accept: application/json")
	g.want(`501 text/plain "Cannot retrieve value. The value has an unsupported type."`, "http", "GET", url+"latest/meta-data/n")
	g.want(`404 text/plain "Resource not found: /nope."`, "http", "GET", url+"nope")
	g.want(`405 text/plain "Not allowed HTTP method."`, "http", "PATCH", url)
	g.want(`501 text/plain "Unsupported HTTP method."`, "http", "DELETE", url)
	g.want("06:01:23:45:67:01", "arp", "169.254.169.254")

	// The host's changes are seen at once.
	for i := range 5 {
		g.must(g.store.Patch(fmt.Appendf(nil, `{"latest": {"meta-data": {"ami-id": "ami-%d", "n": null}}}`, i)))
		g.want(fmt.Sprintf(`200 text/plain "ami-%d"`, i), "http", "GET", url+"latest/meta-data/ami-id")
	}

	// Larger than a window, in one piece and over many connections at once, also more than there can be.
	large := strings.Repeat("0123456789abcdef", 12000)
	text, err := json.Marshal(map[string]string{"large": large})
	g.must(err)
	g.must(g.store.Put(text))
	want := fmt.Sprintf(`200 text/plain "%d bytes, %x"`, len(large), sha256.Sum256([]byte(large)))
	g.want(want, "http", "GET", url+"large")
	g.want(want, "many", "25", "GET", url+"large")
	g.want(want, "many", "60", "GET", url+"large", "Connection: close")

	// What is no request for the service.
	if got := g.ask("raw", "169.254.169.254:443", `"x"`); !strings.Contains(got, "connection refused") {
		t.Errorf("another port: %s", got)
	}
	if got := g.ask("raw", "169.254.169.254:80", `"GET / HTTP/1.1\r\nContent-Length: 100\r\n\r\nsome body"`); !strings.HasPrefix(got, `"HTTP/1.1 400 Bad Request\r\n`) || !strings.HasSuffix(got, `Invalid request." <nil>`) {
		t.Errorf("a body: %s", got)
	}
	if got := g.ask("raw", "169.254.169.254:80", strconv.Quote("GET /"+strings.Repeat("x", 5000)+" HTTP/1.1\r\n\r\n")); !strings.Contains(got, "connection reset") {
		t.Errorf("a long request: %s", got)
	}

	// A rate limiter counts the answers, and lets them through in time.
	limit := &config.RateLimiter{Bandwidth: &config.TokenBucket{Size: 100000, RefillTime: 200}}
	g.must(g.m.UpdateNetworkInterface(context.Background(), config.NetworkInterfaceUpdate{IfaceID: "eth0", RxRateLimiter: limit}))
	g.want(want, "http", "GET", url+"large")
	g.end()
}

// TestGuestV2 has a guest ask a service of version 2, at another address.
func TestGuestV2(t *testing.T) {
	g := newInGuest(t, config.MMDS{Version: "V2", IPv4Address: "169.254.170.2", IMDSCompat: true})
	g.must(g.store.Put([]byte(`{"latest": {"meta-data": {"ami-id": "ami-1"}}}`)))
	const url = "http://169.254.170.2/"
	if got := g.ask("http", "GET", url); !strings.HasPrefix(got, `401 text/plain "No MMDS token provided.`) {
		t.Error(got)
	}
	g.want(`401 text/plain "MMDS token not valid."`, "http", "GET", url, "X-metadata-token: foo")
	if got := g.ask("http", "PUT", url+"latest/api/token"); !strings.HasPrefix(got, `400 text/plain "Token time to live value not found.`) {
		t.Error(got)
	}
	g.want(`400 text/plain "Invalid header. Reason: Unsupported header name. Key: X-Forwarded-For"`, "http", "PUT", url+"latest/api/token", "X-Forwarded-For: 1.2.3.4")
	token := func(ttl string) string {
		t.Helper()
		quoted, ok := strings.CutPrefix(g.ask("http", "PUT", url+"latest/api/token", "X-aws-ec2-metadata-token-ttl-seconds: "+ttl), "200 text/plain ")
		s, err := strconv.Unquote(quoted)
		if !ok || err != nil || len(s) != 48 {
			t.Fatalf("token %s", quoted)
		}
		return s
	}
	good := token("21600")
	g.want(`200 text/plain "ami-1"`, "http", "GET", url+"latest/meta-data/ami-id", "X-metadata-token: "+good)
	g.want(`200 text/plain "meta-data/"`, "http", "GET", url+"latest", "X-aws-ec2-metadata-token: "+good, "Accept: application/json")
	g.want(`200 text/plain "ami-1"`, "many", "20", "GET", url+"latest/meta-data/ami-id", "X-metadata-token: "+good)
	short := token("1")
	time.Sleep(1100 * time.Millisecond)
	g.want(`401 text/plain "MMDS token not valid."`, "http", "GET", url, "X-metadata-token: "+short)
	g.end()
}

// TestBusybox has the programs that small guests have ask the service.
func TestBusybox(t *testing.T) {
	vmmtest.NeedKVM(t)
	runtime.LockOSThread()
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		t.Skip("needs a network namespace of its own:", err)
	}
	store := mmds.NewStore(mmds.DefaultLimit)
	if err := store.Put([]byte(`{"latest": {"meta-data": {"ami-id": "ami-1"}}}`)); err != nil {
		t.Fatal(err)
	}
	script := `exec >/dev/console 2>&1
ip addr add 10.71.0.2/24 dev eth0; ip link set eth0 up; ip route add 169.254.169.254 dev eth0
T=$(printf 'PUT /latest/api/token HTTP/1.0\r\nX-metadata-token-ttl-seconds: 60\r\n\r\n' | nc -w 60 169.254.169.254 80 | tail -n 1)
echo "token: ${#T} characters"
wget -q -O - http://169.254.169.254/latest || echo "none: $?"
wget -q -O - --header "X-metadata-token: $T" http://169.254.169.254/latest; echo
wget -q -O - --header "X-metadata-token: $T" --header 'Accept: application/json' http://169.254.169.254/latest; echo
sleep 0.2`
	args := "console=ttyS0 reboot=k panic=-1 quiet"
	var out vmmtest.Console
	m, err := vmm.New(context.Background(), config.VM{
		Machine:           config.Machine{VCPUCount: 1, MemSizeMiB: 128},
		BootSource:        &config.BootSource{KernelImagePath: vmmtest.Kernel(t), InitrdPath: vmmtest.Busybox(t, script), BootArgs: &args},
		NetworkInterfaces: []config.NetworkInterface{{IfaceID: "eth0", HostDevName: "fcmmds"}},
		MMDS:              &config.MMDS{Version: "V2", NetworkInterfaces: []string{"eth0"}},
	}, vmm.Options{Console: &out, Metadata: store})
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	if err := setAddress("fcmmds", host, [4]byte{255, 255, 255, 0}); err != nil {
		t.Fatal(err)
	}
	if err := m.Start(context.Background()); err != nil {
		t.Fatal(err)
	}
	select {
	case <-m.Done():
	case <-time.After(hostPatience):
		t.Errorf("the guest did not end within %s", hostPatience)
	}
	got := strings.ReplaceAll(out.String(), "\r", "")
	for _, want := range []string{"token: 48 characters\n", "none: 1\n", "\nmeta-data/\n", "\n" + `{"meta-data":{"ami-id":"ami-1"}}` + "\n"} {
		if !strings.Contains(got, want) {
			t.Errorf("%q is not on the console:\n%s", want, got)
		}
	}
}
