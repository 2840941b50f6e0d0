package network

import (
	"net"
	"os"
	"os/exec"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/fcshim/containerd-shim-fc-v2/pkg/agent/agentpb"
	"github.com/fcshim/containerd-shim-fc-v2/pkg/nsthread"
)

// script runs commands of ip(8)'s, one a line, and returns what they say.
func script(t *testing.T, lines string) string {
	t.Helper()
	var all strings.Builder
	for _, line := range strings.Split(strings.TrimSpace(lines), "\n") {
		out, err := exec.Command("ip", strings.Fields(line)...).CombinedOutput()
		if err != nil {
			t.Errorf("ip %s: %v: %s", line, err, out)
		}
		all.Write(out)
	}
	return all.String()
}

// inNamespace runs f in a new network namespace.
func inNamespace(t *testing.T, f func()) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root, for network namespaces")
	}
	err := nsthread.Do(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return err
		}
		f()
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

func mac(last byte) []byte { return net.HardwareAddr{2, 0, 0, 0, 0, last} }

func request() *agentpb.ConfigureNetworkRequest {
	return &agentpb.ConfigureNetworkRequest{
		// Each gets the name that the other one has.
		Interfaces: []*agentpb.Interface{
			{DeviceMac: mac(1), Name: "eth0", Mac: mac(11), Mtu: 1400, Addresses: []string{"10.4.0.2/24", "fd00:4::2/64"}},
			{DeviceMac: mac(2), Name: "net1", Mac: mac(12), Mtu: 1500, Addresses: []string{"192.168.7.9/32"}},
		},
		Routes: []*agentpb.Route{
			{Destination: "192.168.7.1/32", Interface: "net1", Scope: unix.RT_SCOPE_LINK, Protocol: unix.RTPROT_BOOT},
			{Destination: "0.0.0.0/0", Gateway: "10.4.0.1", Interface: "eth0", Protocol: unix.RTPROT_BOOT},
			{Destination: "172.16.0.0/12", Gateway: "192.168.7.1", Interface: "net1", Metric: 7, Onlink: true, Mtu: 1300, Protocol: unix.RTPROT_STATIC},
			{Destination: "::/0", Gateway: "fd00:4::1", Interface: "eth0", Protocol: unix.RTPROT_BOOT},
		},
		Neighbours: []*agentpb.Neighbour{{Address: "10.4.0.1", Mac: mac(99), Interface: "eth0"}},
	}
}

func TestConfigure(t *testing.T) {
	inNamespace(t, func() {
		script(t, "link add net1 address 02:00:00:00:00:01 type veth peer name p0\nlink add eth0 address 02:00:00:00:00:02 type veth peer name p1\nlink set p0 up\nlink set p1 up\naddress add 10.9.9.9/24 dev net1")
		if err := Configure(request()); err != nil {
			t.Error(err)
			return
		}
		got := script(t, "-br -4 address show up\n-br link show up type veth\nroute\n-6 route show default\nneigh show nud permanent dev eth0")
		for _, want := range []string{
			"10.4.0.2/24", "192.168.7.9/32", "02:00:00:00:00:0b", "02:00:00:00:00:0c", "default via 10.4.0.1 dev eth0", "192.168.7.1 dev net1 scope link",
			"172.16.0.0/12 via 192.168.7.1 dev net1 proto static metric 7 onlink mtu 1300", "default via fd00:4::1 dev eth0", "10.4.0.1 lladdr 02:00:00:00:00:63 PERMANENT",
		} {
			if !strings.Contains(got, want) {
				t.Errorf("no %q in\n%s", want, got)
			}
		}
		if strings.Contains(got, "10.9.9.9") {
			t.Errorf("an old address is left:\n%s", got)
		}
		for name, mtu := range map[string]int{"eth0": 1400, "net1": 1500} {
			if i, err := net.InterfaceByName(name); err != nil || i.MTU != mtu {
				t.Errorf("%s: %+v, %v, want MTU %d", name, i, err, mtu)
			}
		}
		// Again, with an address less; a veth forgets its first MAC, other than a virtio device.
		again := request()
		for i := range again.Interfaces {
			again.Interfaces[i].DeviceMac = again.Interfaces[i].Mac
		}
		again.Interfaces[0].Addresses = again.Interfaces[0].Addresses[:1]
		if err := Configure(again); err != nil {
			t.Error(err)
		}
		if got := script(t, "-6 address show dev eth0"); strings.Contains(got, "fd00") {
			t.Errorf("the address taken away is left: %s", got)
		}
	})
}

func TestRefusals(t *testing.T) {
	for want, spoil := range map[string]func(*agentpb.ConfigureNetworkRequest){
		"no device with MAC 02:00:00:00:00:07":        func(r *agentpb.ConfigureNetworkRequest) { r.Interfaces[0].DeviceMac = mac(7) },
		"no device with MAC :":                        func(r *agentpb.ConfigureNetworkRequest) { r.Interfaces[0].DeviceMac = nil },
		"MAC of 2 bytes":                              func(r *agentpb.ConfigureNetworkRequest) { r.Interfaces[1].Mac = []byte{1, 2} },
		"address 10.4.0.2: ":                          func(r *agentpb.ConfigureNetworkRequest) { r.Interfaces[0].Addresses = []string{"10.4.0.2"} },
		`gateway "x" is no IP address`:                func(r *agentpb.ConfigureNetworkRequest) { r.Routes[1].Gateway = "x" },
		`interface "eth7" is not among`:               func(r *agentpb.ConfigureNetworkRequest) { r.Routes[0].Interface = "eth7" },
		`route to nowhere: invalid CIDR`:              func(r *agentpb.ConfigureNetworkRequest) { r.Routes[0].Destination = "nowhere" },
		`neighbour 10.4.0.: address "10.4.0." is no `: func(r *agentpb.ConfigureNetworkRequest) { r.Neighbours[0].Address = "10.4.0." },
	} {
		inNamespace(t, func() {
			script(t, "link add net1 address 02:00:00:00:00:01 type veth peer name p0\nlink add eth0 address 02:00:00:00:00:02 type veth peer name p1")
			r := request()
			spoil(r)
			if err := Configure(r); err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("%v, want %q", err, want)
			}
		})
	}
}
