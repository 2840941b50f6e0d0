package bench

import (
	"net"
	"os"
	"os/exec"
	"testing"

	"github.com/mdlayher/vsock"

	"github.com/fcshim/containerd-shim-fc-v2/integration/bench/guest/task"
)

// BenchmarkVsock is a guest that talks to a program on the host over a VM socket: with fc-vmm that is a Unix socket, with QEMU a
// socket of the host's kernel, which has the device in it (vhost-vsock).
func BenchmarkVsock(b *testing.B) {
	mayRunVMs(b)
	peers := []vmm{fcVMM()}
	_ = exec.Command("modprobe", "vhost_vsock").Run() // built in, or not to be had
	if _, err := os.Stat("/dev/vhost-vsock"); err == nil {
		peers = append(peers, qemu(b, "qemu"))
	} else {
		b.Logf("no QEMU: %v", err)
	}
	peers = append(peers, firecracker()...)
	const size, trips = 64 * mib, 2000
	compare(b, peers, []operation{
		{"send", task.Task{Work: task.StreamSend, Bytes: size, Vsock: true}, mibPerSecond},
		{"recv", task.Task{Work: task.StreamRecv, Bytes: size, Vsock: true}, mibPerSecond},
		{"round-trip", task.Task{Work: task.StreamTrip, Count: trips, Vsock: true}, microseconds},
	}, func(_ *testing.B, p vmm, t task.Task) (machine, func()) {
		return machine{memMiB: 256, vsock: true, serve: func(v *vm) { v.serveVsock(p.name, t) }}, nil
	})
}

// serveVsock is serveNet for VM sockets.
func (v *vm) serveVsock(vmm string, t task.Task) {
	v.b.Helper()
	var l net.Listener
	var err error
	if vmm == "qemu" {
		l, err = vsock.ListenContextID(task.HostCID, task.Port, nil)
	} else {
		l, err = net.Listen("unix", v.vsockPort())
	}
	if err != nil {
		v.fatal(err)
	}
	v.serveStream(l, t)
}
