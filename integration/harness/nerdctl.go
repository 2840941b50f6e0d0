package harness

import (
	"errors"
	"io"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
)

// NerdctlBridge is the bridge of the network that nerdctl gives a container by default, NerdctlSubnet its addresses.
const (
	NerdctlBridge = "nerdctl0"
	NerdctlSubnet = "10.4.0.0/24"
)

// nerdctlTimeout bounds one nerdctl command, which calls several CNI plugins, which call iptables many times.
var nerdctlTimeout = Slow(3 * time.Minute)

// Nerdctl drives a Containerd by nerdctl, with the CNI plugins of `make tools` and all its state below the harness's folder, except
// for what nerdctl and the plugins keep at fixed places: the bridge, netfilter's rules, and files below /run and /var/lib/cni.
type Nerdctl struct {
	c *Containerd
	// Runtime is the runtime of the containers that Run starts.
	Runtime string
}

// Nerdctl returns a nerdctl for containers of a runtime, which may be another one than the harness's own. The bridge of the default
// network goes away at the test's end, if the test made it.
func (c *Containerd) Nerdctl(t testing.TB, runtime string) *Nerdctl {
	t.Helper()
	if _, err := netlink.LinkByName(NerdctlBridge); err != nil {
		t.Cleanup(func() { deleteLink(t, NerdctlBridge) })
	}
	return &Nerdctl{c: c, Runtime: runtime}
}

// Ctl runs nerdctl with args. Whatever its status is, it is the caller's to judge; only a nerdctl that does not end fails the test.
func (n *Nerdctl) Ctl(t testing.TB, args ...string) Result {
	t.Helper()
	return n.Background(t, nil, args...).Wait(t, nerdctlTimeout)
}

// Must is Ctl for a command that has to succeed; it returns its standard output.
func (n *Nerdctl) Must(t testing.TB, args ...string) string {
	t.Helper()
	r := n.Ctl(t, args...)
	if r.Status != 0 {
		t.Fatalf("nerdctl %s: %v", strings.Join(args, " "), r)
	}
	return r.Stdout
}

// Background starts nerdctl with args.
func (n *Nerdctl) Background(t testing.TB, stdin io.Reader, args ...string) *Background {
	t.Helper()
	return background(t, stdin, n.command(args))
}

func (n *Nerdctl) command(args []string) *exec.Cmd {
	return exec.Command(filepath.Join(n.c.Tools, "nerdctl"), append([]string{
		"--address", n.c.address, "--namespace", Namespace, "--data-root", n.c.path("nerdctl"), "--cgroup-manager", "cgroupfs",
		"--cni-path", filepath.Join(n.c.Tools, "cni"), "--cni-netconfpath", n.c.path("nerdctl-net"),
	}, args...)...)
}

// RunArgs is the command line of `nerdctl run` for a container of the runtime, with a name of its own, that runs args in Image. The
// container is removed at the test's end, if it is still there.
func (n *Nerdctl) RunArgs(t testing.TB, flags []string, args ...string) (name string, argv []string) {
	t.Helper()
	name = n.c.ID(t)
	t.Cleanup(func() {
		// With -f nerdctl says so of an unknown container and succeeds.
		if r := n.Ctl(t, "rm", "-f", "-v", name); r.Status != 0 {
			t.Errorf("nerdctl rm -f %s: %v", name, r)
		}
	})
	argv = append([]string{"run", "--runtime", n.Runtime, "--pull", "never", "--name", name}, flags...)
	return name, append(append(argv, Image), args...)
}

// Run runs a container to its end, or, with the flag -d, starts it; a status other than 0 fails the test. It returns the container's
// name and what nerdctl printed.
func (n *Nerdctl) Run(t testing.TB, flags []string, args ...string) (name, stdout string) {
	t.Helper()
	name, argv := n.RunArgs(t, flags, args...)
	return name, n.Must(t, argv...)
}

func deleteLink(t testing.TB, name string) {
	link, err := netlink.LinkByName(name)
	if err == nil {
		err = netlink.LinkDel(link)
	}
	var gone netlink.LinkNotFoundError
	if err != nil && !errors.As(err, &gone) {
		t.Errorf("delete the network device %s: %v", name, err)
	}
}
