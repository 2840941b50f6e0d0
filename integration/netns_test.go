package integration

import (
	"errors"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/fcshim/containerd-shim-fc-v2/integration/harness"
)

// command runs a program of the host's and returns what it says.
func command(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v: %s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

// TestNetworkNamespace has a container in a network namespace of somebody else's: a second one is refused and does no harm to it,
// and after the shim's death the namespace is as it was before.
func TestNetworkNamespace(t *testing.T) {
	c := containerd(t)
	fcOnly(t, c)
	const ns, ip = "fctest-ns", "10.79.0.2"
	_, had := os.Stat("/run/netns")
	command(t, "ip", "netns", "add", ns)
	t.Cleanup(func() {
		command(t, "ip", "netns", "del", ns)
		if errors.Is(had, os.ErrNotExist) {
			command(t, "umount", "-R", "/run/netns")
			os.Remove("/run/netns")
		}
	})
	command(t, "ip", "-n", ns, "link", "add", "eth0", "type", "veth", "peer", "name", "fctest-veth", "netns", "1")
	command(t, "ip", "-n", ns, "address", "add", ip+"/24", "dev", "eth0")
	command(t, "ip", "-n", ns, "link", "set", "eth0", "up")
	command(t, "ip", "address", "add", "10.79.0.1/24", "dev", "fctest-veth")
	command(t, "ip", "link", "set", "fctest-veth", "up")
	before := command(t, "tc", "-n", ns, "qdisc", "show", "dev", "eth0")

	run := func(id string) []string {
		return []string{"run", "-d", "--null-io", "--runtime", c.Runtime, "--with-ns", "network:/run/netns/" + ns, harness.Image, id, "sleep", "1000"}
	}
	first := c.ID(t)
	c.Must(t, run(first)...)
	t.Cleanup(func() {
		c.Ctr(t, "task", "rm", "-f", first)
		c.Ctr(t, "container", "rm", first)
	})
	ping := func(when string) {
		t.Helper()
		if out, err := exec.Command("busybox", "ping", "-c", "1", "-w", "30", ip).CombinedOutput(); err != nil {
			t.Errorf("%s: %v: %s", when, err, out)
		}
	}
	if filters := command(t, "tc", "-n", ns, "filter", "show", "dev", "eth0", "ingress"); !strings.Contains(filters, "mirred") {
		t.Errorf("the container's network is not the namespace's: %q", filters)
	}
	ping("before")

	second := c.ID(t)
	r := c.Ctr(t, run(second)...)
	if r.Status == 0 || !strings.Contains(r.Stderr, "that of another container in a VM") {
		t.Errorf("a second container there: %v", r)
	}
	c.Ctr(t, "container", "rm", second)
	ping("after another container's try")

	third := c.ID(t)
	r = c.Ctr(t, "run", "--runtime", c.Runtime, "--with-ns", "network:/proc/1/ns/net", harness.Image, third, "true")
	if r.Status == 0 || !strings.Contains(r.Stderr, "the host's network") {
		t.Errorf("the host's network by its path: %v", r)
	}
	c.Ctr(t, "container", "rm", third)

	c.KillProcess(t, first, harness.Shim)
	for end := time.Now().Add(harness.Slow(30 * time.Second)); ; time.Sleep(100 * time.Millisecond) {
		after := command(t, "tc", "-n", ns, "qdisc", "show", "dev", "eth0")
		if after == before {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("after the shim's death the namespace has %q, and had %q", after, before)
		}
	}
}
