package network

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fcshim/containerd-shim-fc-v2/pkg/agent/agentpb"
	"github.com/fcshim/containerd-shim-fc-v2/pkg/nsthread"
	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/vmmtest"
)

// namespace makes a network namespace that ends with the test.
func namespace(t *testing.T) *os.File {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root, for network namespaces")
	}
	var f *os.File
	err := nsthread.Do(func() (err error) {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return err
		}
		f, err = os.Open("/proc/thread-self/ns/net")
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// run runs a program in a namespace, once for each line of arguments, and returns what it says.
func run(t *testing.T, ns *os.File, program, lines string) string {
	t.Helper()
	var all strings.Builder
	for _, line := range strings.Split(strings.TrimSpace(lines), "\n") {
		var out strings.Builder
		cmd := exec.Command(program, strings.Fields(line)...)
		cmd.Stdout, cmd.Stderr = &out, &out
		if err := nsthread.Do(cmd.Run, nsthread.Namespace{File: ns, Kind: unix.CLONE_NEWNET}); err != nil {
			t.Fatalf("%s %s: %v: %s", program, line, err, out.String())
		}
		all.WriteString(out.String())
	}
	return all.String()
}

func ip(t *testing.T, ns *os.File, lines string) string { t.Helper(); return run(t, ns, "ip", lines) }
func tc(t *testing.T, ns *os.File, lines string) string { t.Helper(); return run(t, ns, "tc", lines) }

const twoNetworks = `
link add eth0 address 02:00:00:00:00:01 mtu 1400 type veth peer name peer0
link add net1 address 02:00:00:00:00:02 type veth peer name peer1
link add down0 type veth peer name peer2
link add lower type bridge
link set peer0 master lower
link set eth0 up
link set net1 up
address add 10.4.0.2/24 dev eth0
address add fd00:4::2/64 dev eth0 nodad
address add 192.168.7.9/32 dev net1
route add 192.168.7.1 dev net1 scope link
route add default via 10.4.0.1 dev eth0
route add 172.16.0.0/12 via 192.168.7.1 dev net1 metric 7 onlink
route add default via fd00:4::1 dev eth0
neigh add 10.4.0.1 lladdr 02:aa:bb:cc:dd:ee nud permanent dev eth0
`

func TestPlan(t *testing.T) {
	n := Open(namespace(t))
	defer n.Close()
	for _, tt := range []struct {
		script        string
		atLeast, want int
	}{{"link show", 0, 0}, {"link show", 1, 1}, {twoNetworks, 1, 2}, {"link show", 3, 3}} {
		ip(t, n.ns, tt.script)
		got, err := n.Plan(tt.atLeast)
		if err != nil || len(got) != tt.want {
			t.Fatalf("%d devices, %v, want %d", len(got), err, tt.want)
		}
		for i, d := range got {
			if d.TAP != fmt.Sprint("fctap", i) || len(d.MAC) != 6 || d.MAC[0]&3 != 2 {
				t.Errorf("device %d is %+v", i, d)
			}
		}
	}
	for i := range MaxDevices {
		ip(t, n.ns, fmt.Sprintf("link add more%d up type veth peer name p%d", i, i))
	}
	if _, err := n.Plan(1); err == nil || !strings.Contains(err.Error(), "10 interfaces, at most 8") {
		t.Errorf("too many: %v", err)
	}
}

func TestDescribe(t *testing.T) {
	n := Open(namespace(t))
	defer n.Close()
	ip(t, n.ns, twoNetworks)
	h, err := n.handle()
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	up, err := uplinks(h)
	if err != nil {
		t.Fatal(err)
	}
	r := &agentpb.ConfigureNetworkRequest{}
	for i, link := range up {
		if err := describe(h, link, Device{MAC: net.HardwareAddr{2, 9, 9, 9, 9, byte(i)}}, r); err != nil {
			t.Fatal(err)
		}
	}
	var got []string
	for _, i := range r.Interfaces {
		got = append(got, fmt.Sprintf("%s %s %d %v %s", i.Name, net.HardwareAddr(i.Mac), i.Mtu, i.Addresses, net.HardwareAddr(i.DeviceMac)))
	}
	for _, x := range r.Routes {
		got = append(got, fmt.Sprintf("%s via %q dev %s metric %d onlink %v", x.Destination, x.Gateway, x.Interface, x.Metric, x.Onlink))
	}
	for _, x := range r.Neighbours {
		got = append(got, fmt.Sprintf("%s %s %s", x.Address, net.HardwareAddr(x.Mac), x.Interface))
	}
	want := []string{
		"eth0 02:00:00:00:00:01 1400 [10.4.0.2/24 fd00:4::2/64] 02:09:09:09:09:00",
		"net1 02:00:00:00:00:02 1500 [192.168.7.9/32] 02:09:09:09:09:01",
		`0.0.0.0/0 via "10.4.0.1" dev eth0 metric 0 onlink false`,
		`::/0 via "fd00:4::1" dev eth0 metric 1024 onlink false`,
		`172.16.0.0/12 via "192.168.7.1" dev net1 metric 7 onlink true`,
		`192.168.7.1/32 via "" dev net1 metric 0 onlink false`,
		"10.4.0.1 02:aa:bb:cc:dd:ee eth0",
	}
	if !slices.Equal(got, want) {
		t.Errorf("got:\n%s\nwant:\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

// TestConnect plays the guest at the TAP, and somebody in the network behind the interface.
func TestConnect(t *testing.T) {
	vmmtest.NeedKVM(t) // the machine that has it has tc's matchall and mirred as well
	n := Open(namespace(t))
	defer n.Close()
	if r, joins, err := n.Describe(); err != nil || r != nil || joins != nil {
		t.Fatalf("without interfaces: %v %v %v", r, joins, err)
	}
	ip(t, n.ns, "link add eth0 mtu 1400 type veth peer name far\nlink add name lower type bridge\nlink set far master lower\nlink set eth0 up\nlink set far up\naddress add 10.4.0.2/24 dev eth0")
	if _, _, err := n.Describe(); err == nil || !strings.Contains(err.Error(), "1 interfaces, but its VM was started with room for 0") {
		t.Errorf("without devices: %v", err)
	}
	if _, err := n.Plan(1); err != nil {
		t.Fatal(err)
	}
	ip(t, n.ns, "tuntap add fctap0 mode tap")
	tap := attach(t, n.ns)
	_, joins, err := n.Describe()
	if err != nil {
		t.Fatal(err)
	}
	// Somebody else's filter must stay as it is.
	tc(t, n.ns, "qdisc add dev eth0 ingress\nfilter add dev eth0 parent ffff: prio 7 matchall action pass")
	for range 2 { // it may be done again
		if err := n.Connect(joins); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := n.Plan(1); err == nil || !strings.Contains(err.Error(), "that of another container in a VM (it has fctap0)") {
		t.Errorf("a second VM: %v", err)
	}
	far := packetSocket(t, n.ns, "far", 0x0300)                                                                    // all: as a port of a bridge it gives others to the bridge
	frame := append([]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2, 0, 0, 0, 0, 1, 0x88, 0xb5}, make([]byte, 50)...) // local experimental EtherType
	exchange(t, "guest to network", tap, far, append(frame, 1))
	exchange(t, "network to guest", far, tap, append(frame, 2))
	if err := n.Disconnect([]Join{{Interface: joins[0].Interface, TAP: 999}, {Interface: 999, TAP: joins[0].TAP}}); err != nil {
		t.Errorf("of what is not there: %v", err)
	}
	exchange(t, "network to guest, still", far, tap, append(frame, 4))
	if err := n.Disconnect(joins); err != nil {
		t.Fatal(err)
	}
	near := packetSocket(t, n.ns, "eth0", 0xb588) // not all: those come before redirection
	exchange(t, "network to host", far, near, append(frame, 3))
	if got := tc(t, n.ns, "filter show dev eth0 parent ffff:"); !strings.Contains(got, "pref 7") || strings.Contains(got, "mirred") {
		t.Errorf("filters left: %s", got)
	}
	tc(t, n.ns, "filter del dev eth0 parent ffff: prio 7")
	for i := range 2 {
		if err := n.Connect(joins); err != nil {
			t.Fatal(err)
		}
		if i == 1 {
			ip(t, n.ns, "link del fctap0") // as with the VM's death
		}
		if err := n.Disconnect(joins); err != nil {
			t.Fatal(err)
		}
		if got := tc(t, n.ns, "qdisc show dev eth0 ingress"); strings.Contains(got, "ingress") {
			t.Errorf("the ingress qdisc is left: %s", got)
		}
	}
}

func TestOpenPath(t *testing.T) {
	ns := namespace(t)
	defer ns.Close()
	f, err := OpenPath(fmt.Sprintf("/proc/self/fd/%d", ns.Fd()))
	if err != nil {
		t.Fatal(err)
	}
	f.Close()
	for path, want := range map[string]error{
		"/proc/self/ns/net": ErrHost, "/proc/self/ns/mnt": ErrNoNetwork, "/proc/self/exe": ErrNoNetwork, "/no/such": os.ErrNotExist,
	} {
		if f, err := OpenPath(path); !errors.Is(err, want) {
			t.Errorf("%s: %v %v, want %v", path, f, err, want)
		}
	}
}

// attach opens the TAP as a VMM does.
func attach(t *testing.T, ns *os.File) int {
	t.Helper()
	var fd int
	err := nsthread.Do(func() (err error) {
		if fd, err = unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_NONBLOCK, 0); err != nil {
			return err
		}
		req, err := unix.NewIfreq("fctap0")
		if err != nil {
			return err
		}
		req.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI)
		return unix.IoctlIfreq(fd, unix.TUNSETIFF, req)
	}, nsthread.Namespace{File: ns, Kind: unix.CLONE_NEWNET})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	return fd
}

// packetSocket gets frames of a protocol, given in network order, at an interface.
func packetSocket(t *testing.T, ns *os.File, name string, proto uint16) int {
	t.Helper()
	var fd int
	err := nsthread.Do(func() (err error) {
		i, err := net.InterfaceByName(name)
		if err != nil {
			return err
		}
		if fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_NONBLOCK, int(proto)); err != nil {
			return err
		}
		return unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: proto, Ifindex: i.Index})
	}, nsthread.Namespace{File: ns, Kind: unix.CLONE_NEWNET})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	return fd
}

// exchange sends a frame until it arrives: links take a moment to come up.
func exchange(t *testing.T, what string, from, to int, frame []byte) {
	t.Helper()
	buf := make([]byte, 2000)
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		if _, err := unix.Write(from, frame); err != nil && err != unix.EAGAIN && err != unix.ENETDOWN && err != unix.EIO {
			t.Fatalf("%s: %v", what, err)
		}
		for {
			n, err := unix.Read(to, buf)
			if err != nil {
				break
			}
			if string(buf[:n]) == string(frame) {
				return
			}
		}
	}
	t.Errorf("%s: the frame did not arrive", what)
}
