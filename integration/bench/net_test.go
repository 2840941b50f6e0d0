package bench

import (
	"net"
	"os"
	"os/exec"
	"testing"

	"github.com/vishvananda/netlink"

	"github.com/fcshim/containerd-shim-fc-v2/integration/bench/guest/task"
)

// BenchmarkNet is a guest that talks to the host over a TAP: TCP both ways, small UDP packets with a window, and a byte there and back
// over TCP. QEMU has the kernel's vhost-net where there is one.
func BenchmarkNet(b *testing.B) {
	mayRunVMs(b)
	_ = exec.Command("modprobe", "vhost_net").Run() // built in, or not to be had
	if _, err := os.Stat("/dev/vhost-net"); err != nil {
		b.Logf("QEMU without vhost-net: %v", err)
	}
	const size, packets, trips = 64 * mib, 8000, 2000
	peers := append([]vmm{fcVMM(), qemu(b, "qemu")}, firecracker()...)
	compare(b, peers, []operation{
		{"tcp-send", task.Task{Work: task.StreamSend, Bytes: size}, mibPerSecond},
		{"tcp-recv", task.Task{Work: task.StreamRecv, Bytes: size}, mibPerSecond},
		{"udp-send", task.Task{Work: task.PacketSend, Count: packets}, opsPerSecond},
		{"udp-recv", task.Task{Work: task.PacketRecv, Count: packets}, opsPerSecond},
		{"round-trip", task.Task{Work: task.StreamTrip, Count: trips}, microseconds},
	}, func(b *testing.B, _ vmm, t task.Task) (machine, func()) {
		return machine{memMiB: 256, tap: makeTAP(b), serve: func(v *vm) { v.serveNet(t) }}, nil
	})
}

// makeTAP makes a TAP with the host's address, until the benchmark's end.
func makeTAP(b *testing.B) string {
	b.Helper()
	const name = "bench-tap0"
	tap := &netlink.Tuntap{LinkAttrs: netlink.LinkAttrs{Name: name}, Mode: netlink.TUNTAP_MODE_TAP, Flags: netlink.TUNTAP_DEFAULTS | netlink.TUNTAP_VNET_HDR}
	if err := netlink.LinkAdd(tap); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		if err := netlink.LinkDel(tap); err != nil {
			b.Error(err)
		}
	})
	address := &netlink.Addr{IPNet: &net.IPNet{IP: net.ParseIP(task.HostIP).To4(), Mask: net.CIDRMask(30, 32)}}
	if err := netlink.AddrAdd(tap, address); err != nil {
		b.Fatal(err)
	}
	if err := netlink.LinkSetUp(tap); err != nil {
		b.Fatal(err)
	}
	return name
}
