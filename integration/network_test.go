package integration

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/fcshim/containerd-shim-fc-v2/integration/harness"
)

// network makes a network of nerdctl's that ends with the test.
func network(t *testing.T, n *harness.Nerdctl, name string, flags ...string) {
	t.Helper()
	n.Must(t, append(append([]string{"network", "create"}, flags...), name)...)
	t.Cleanup(func() { n.Must(t, "network", "rm", name) })
}

// TestNetworkOptions has a container with every option that nerdctl has for its place in a network, and another one, in two networks,
// that looks for it by its name.
func TestNetworkOptions(t *testing.T) {
	c := containerd(t)
	// The tuning plugin, which sets MACs, leaves this.
	const tuning = "/run/cni"
	if _, err := os.Stat(tuning); err != nil {
		t.Cleanup(func() { os.RemoveAll(tuning) })
	}
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	const front, back = "front", "back"
	udp := 15300
	eachRuntime(t, c, func(t *testing.T, c *harness.Containerd) {
		n := c.Nerdctl(t, c.Runtime)
		network(t, n, front, "--ipv6", "--subnet", "10.77.0.0/24", "--subnet", "fd77::/64", "--opt", "mtu=1400")
		network(t, n, back, "--subnet", "10.78.0.0/24")
		udp++ // the host may remember datagrams to the other one's
		server, _ := n.Run(t, []string{
			"-d", "--network", front, "--ip", "10.77.0.77", "--mac-address", "02:77:00:00:00:77", "--hostname", "front-end",
			"--dns", "192.0.2.53", "--dns-search", "example.test", "--add-host", "elsewhere:192.0.2.9",
			"-p", fmt.Sprintf("127.0.0.1:%d:%d/udp", udp, udpEcho), "-v", exe + ":/peer:ro", "-e", peerEnv + "=1",
		}, "/peer")
		out := n.Must(t, "exec", server, "sh", "-c", `hostname; cat /etc/resolv.conf /etc/hosts; ip -o addr; ip link show eth0; ip route; ip -6 route; sysctl -n net.ipv4.ip_forward`)
		for _, want := range []string{
			"front-end\n", "nameserver 192.0.2.53", "search example.test", "192.0.2.9       elsewhere", "inet 10.77.0.77/24", "inet6 fd77::",
			"02:77:00:00:00:77", "mtu 1400", "default via 10.77.0.1 dev eth0", "fd77::/64 dev eth0",
		} {
			if !strings.Contains(out, want) {
				t.Errorf("the container does not show %q in\n%s", want, out)
			}
		}
		echo(t, fmt.Sprintf("127.0.0.1:%d", udp))
		carry(t, "10.77.0.77")
		// The name has addresses of both families; which comes first depends on whether the container's IPv6 address is still tentative.
		_, out = n.Run(t, []string{"--rm", "--network", back, "--network", front}, "sh", "-c",
			"ip -o -4 addr; ping -4 -c 1 -w 20 "+server+" && ping -6 -c 1 -w 20 fd77::1; ping -c 1 -w 20 10.78.0.1")
		for _, want := range []string{"eth0    inet 10.78.0.", "eth1    inet 10.77.0.", "from 10.77.0.77", "from fd77::1", "from 10.78.0.1"} {
			if !strings.Contains(out, want) {
				t.Errorf("the other container does not show %q in\n%s", want, out)
			}
		}
		n.Must(t, "kill", server)
	})
}

// echo sends datagrams, large and small ones, until each has come back.
func echo(t *testing.T, address string) {
	t.Helper()
	conn, err := net.Dial("udp", address)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	buf := make([]byte, 64<<10)
	deadline := time.Now().Add(harness.Slow(time.Minute))
	for _, size := range []int{1, 1000, 9000} { // the last one goes in fragments
		sent := bytes.Repeat([]byte{byte(size)}, size)
		for {
			if time.Now().After(deadline) {
				t.Errorf("no datagram of %d bytes has come back", size)
				return
			}
			_, err := conn.Write(sent) // refused until somebody listens
			conn.SetReadDeadline(time.Now().Add(2 * time.Second))
			if err == nil {
				var got int
				if got, err = conn.Read(buf); err == nil && bytes.Equal(buf[:got], sent) {
					break
				}
			}
			time.Sleep(100 * time.Millisecond)
		}
	}
}

// carry has streams through the network, in both directions.
func carry(t *testing.T, ip string) {
	t.Helper()
	want, err := checksum(stream())
	if err != nil {
		t.Fatal(err)
	}
	dial := func(port int) *net.TCPConn {
		conn, err := net.DialTimeout("tcp", fmt.Sprintf("%s:%d", ip, port), harness.Slow(20*time.Second))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close() })
		conn.SetDeadline(time.Now().Add(harness.Slow(2 * time.Minute)))
		return conn.(*net.TCPConn)
	}
	if got, err := checksum(dial(tcpSource)); err != nil || got != want {
		t.Errorf("from the container: checksum %s, %v, want %s", got, err, want)
	}
	sink := dial(tcpSink)
	if _, err := io.Copy(sink, stream()); err != nil {
		t.Error(err)
	}
	sink.CloseWrite()
	if got, err := io.ReadAll(sink); err != nil || strings.TrimSpace(string(got)) != want {
		t.Errorf("to the container: checksum %s, %v, want %s", got, err, want)
	}
}

// TestNoNetwork has containers without a network, by nerdctl's option and by ctr's default.
func TestNoNetwork(t *testing.T) {
	c := containerd(t)
	const script = `ip -o addr | grep -v " lo " | grep -c inet; ping -c 1 -w 20 127.0.0.1 | grep -o "1 packets received"`
	const want = "0\n1 packets received\n"
	eachRuntime(t, c, func(t *testing.T, c *harness.Containerd) {
		n := c.Nerdctl(t, c.Runtime)
		if _, out := n.Run(t, []string{"--rm", "--network", "none"}, "sh", "-c", script); out != want {
			t.Errorf("nerdctl: %q, want %q", out, want)
		}
		if out := c.Sh(t, nil, script); out != want {
			t.Errorf("ctr: %q, want %q", out, want)
		}
	})
	fcOnly(t, c)
	r := c.Ctr(t, "run", "--rm", "--net-host", "--runtime", c.Runtime, harness.Image, c.ID(t), "true")
	if r.Status == 0 || !strings.Contains(r.Stderr, "the host's network (--net-host, --network host) cannot be used from a VM") {
		t.Errorf("--net-host: %v", r)
	}
}
