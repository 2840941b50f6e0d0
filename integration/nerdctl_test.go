package integration

import (
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/fcshim/containerd-shim-fc-v2/integration/harness"
)

// TestNerdctlRun runs a container in nerdctl's default network, of which it gets an address and a default route.
func TestNerdctlRun(t *testing.T) {
	c := containerd(t)
	eachRuntime(t, c, func(t *testing.T, c *harness.Containerd) {
		n := c.Nerdctl(t, c.Runtime)
		_, out := n.Run(t, []string{"--rm"}, "sh", "-c", showAddress)
		checkAddress(t, out, harness.NerdctlSubnet)
	})
}

// TestCNI runs a container with `ctr run --cni`.
func TestCNI(t *testing.T) {
	c := containerd(t)
	eachRuntime(t, c, func(t *testing.T, c *harness.Containerd) {
		c.CNI(t)
		checkAddress(t, c.Must(t, "run", "--rm", "--cni", "--runtime", c.Runtime, harness.Image, c.ID(t), "sh", "-c", showAddress), harness.CNISubnet)
	})
}

// showAddress prints a container's address, as one line, and then its routes.
const showAddress = "ip -4 -o addr show dev eth0; ip route"

func checkAddress(t *testing.T, out, subnet string) {
	t.Helper()
	addr, routes, _ := strings.Cut(out, "\n")
	fields := strings.Fields(addr)
	if len(fields) < 4 || fields[2] != "inet" {
		t.Fatalf("eth0 has no address: %q", out)
	}
	prefix, err := netip.ParsePrefix(fields[3])
	if err != nil || prefix.Masked() != netip.MustParsePrefix(subnet) {
		t.Errorf("eth0 has the address %s, want one of %s (%v)", fields[3], subnet, err)
	}
	if !strings.Contains(routes, "default via ") {
		t.Errorf("there is no default route: %q", routes)
	}
}

// TestNerdctlPublish publishes a TCP port of a container in the background, and asks for it on the host.
func TestNerdctlPublish(t *testing.T) {
	c := containerd(t)
	port := 18080
	eachRuntime(t, c, func(t *testing.T, c *harness.Containerd) {
		n := c.Nerdctl(t, c.Runtime)
		port++ // the host may remember connections with the other one's
		const page = "served from a container"
		name, _ := n.Run(t, []string{"-d", "-p", fmt.Sprintf("127.0.0.1:%d:80", port)},
			"sh", "-c", "echo "+page+" >/tmp/index.html && exec httpd -f -p 80 -h /tmp")
		got, err := get(fmt.Sprintf("http://127.0.0.1:%d/", port))
		if err != nil {
			t.Fatalf("%v; the container says: %v", err, n.Ctl(t, "logs", name))
		}
		if strings.TrimSpace(got) != page {
			t.Errorf("the published port says %q, want %q", got, page)
		}
	})
}

// get asks until somebody listens, since nothing tells when a server in a container does.
func get(url string) (string, error) {
	client := http.Client{Timeout: harness.Slow(20 * time.Second)}
	deadline := time.Now().Add(harness.Slow(time.Minute))
	for {
		resp, err := client.Get(url)
		if err == nil {
			defer resp.Body.Close()
			b, err := io.ReadAll(resp.Body)
			return string(b), err
		}
		if time.Now().After(deadline) {
			return "", err
		}
		time.Sleep(200 * time.Millisecond)
	}
}
