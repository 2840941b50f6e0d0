package net

import (
	"bytes"
	"errors"
	"net"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/config"
	vt "github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/virtio/virtiotest"
)

// ownNetwork gives the test a network namespace with an interface lo; the thread never goes back to other goroutines.
func ownNetwork(t *testing.T) {
	t.Helper()
	runtime.LockOSThread()
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		t.Skip("needs a network namespace of its own:", err)
	}
	f, err := openTAP("probe")
	if err != nil {
		t.Skip("needs TAPs:", err)
	}
	f.Close()
}

func flags(t *testing.T, name string, flags uint16) {
	t.Helper()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	r, err := unix.NewIfreq(name)
	if err != nil {
		t.Fatal(err)
	}
	r.SetUint16(flags)
	if err := unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, r); err != nil {
		t.Fatal(err)
	}
}

func TestTAP(t *testing.T) {
	ownNetwork(t)
	d, err := New(config.NetworkInterface{IfaceID: "eth0", HostDevName: "fc0"})
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	for _, tc := range []struct {
		name string
		want error
	}{{"fc0", unix.EBUSY}, {"lo", unix.EINVAL}} {
		_, err := New(config.NetworkInterface{IfaceID: "eth1", HostDevName: tc.name})
		if !errors.Is(err, tc.want) || !strings.Contains(err.Error(), `network-interfaces/eth1/host_dev_name "`+tc.name+`"`) {
			t.Errorf("%s: %v", tc.name, err)
		}
	}
	if _, err := New(config.NetworkInterface{IfaceID: "eth1", HostDevName: "a/b"}); err == nil {
		t.Error("a/b is no name")
	}

	// While the TAP is down, what the guest sends is lost; up, it goes on. All offloads are the kernel's.
	g := &guest{Machine: vt.Start(t, d, 32<<20), dev: d}
	g.rx, g.tx = g.Rings[rxQueue], g.Rings[txQueue]
	hello := frame(60)
	copy(hello[headerSize:], "\xff\xff\xff\xff\xff\xff\x02\x00\x00\x00\x00\x01\x88\xb5")
	g.Do(g.tx, g.put(hello), nil)
	flags(t, "fc0", unix.IFF_UP)
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0xb588) // in network order
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	i, err := net.InterfaceByName("fc0")
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: 0xb588, Ifindex: i.Index}); err != nil {
		t.Fatal(err)
	}
	tv := unix.NsecToTimeval(int64(vt.Timeout))
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &tv); err != nil {
		t.Fatal(err)
	}
	g.Do(g.tx, g.put(hello), nil)
	in := make([]byte, 2048)
	if n, err := unix.Read(fd, in); err != nil || !bytes.Equal(in[:n], hello[headerSize:]) {
		t.Fatalf("%d bytes, %v: % .20x", n, err, in[:n])
	}
	if _, err := unix.Write(fd, hello[headerSize:]); err != nil {
		t.Fatal(err)
	}
	// The host's own packets, such as IPv6's, come too.
	for {
		posted := g.post(1536)
		if p, _ := g.take(&posted); bytes.Equal(p[headerSize:], hello[headerSize:]) {
			break
		}
	}

	// The last user of the name takes the TAP away.
	if err := d.Close(); err != nil {
		t.Error(err)
	}
	for begin := time.Now(); ; time.Sleep(time.Millisecond) {
		if _, err := net.InterfaceByName("fc0"); err != nil {
			break
		} else if time.Since(begin) > vt.Timeout {
			t.Fatal("the TAP outlived the device")
		}
	}
}
