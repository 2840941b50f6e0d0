package ocispec

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// fakeMachine has the devices with these numbers, and nodes for them if the test may make such.
func fakeMachine(t *testing.T, numbers ...string) machine {
	t.Helper()
	m := machine{t.TempDir(), t.TempDir()}
	for _, n := range numbers {
		if err := os.MkdirAll(filepath.Join(m.sys, "dev", n), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return m
}

func TestDevices(t *testing.T) {
	m := fakeMachine(t, "char/10:229", "block/254:0")
	fuse := specs.LinuxDevice{Path: "/dev/fuse", Type: "c", Major: 10, Minor: 229}
	disk := specs.LinuxDevice{Path: "/dev/vda", Type: "b", Major: 254}
	kvm := specs.LinuxDevice{Path: "/dev/kvm", Type: "c", Major: 10, Minor: 232}
	for _, tt := range []struct {
		d   specs.LinuxDevice
		bad string
	}{
		{fuse, ""}, {disk, ""}, {specs.LinuxDevice{Path: "/dev/pipe", Type: "p"}, ""},
		{kvm, "linux.devices[0]: /dev/kvm: the guest has no device c 10:232"},
		{specs.LinuxDevice{Path: "/dev/sda", Type: "b", Major: 10, Minor: 229}, "no device b 10:229"},
	} {
		err := convertDevices(&specs.Linux{Devices: []specs.LinuxDevice{tt.d}}, m)
		if tt.bad == "" && err != nil || tt.bad != "" && (!errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), tt.bad)) {
			t.Errorf("%s: %v, want %q", tt.d.Path, err, tt.bad)
		}
	}
	if err := os.Mkdir(filepath.Join(m.dev, "net"), 0o755); err != nil {
		t.Fatal(err)
	}
	for name, dev := range map[string]uint64{"null": unix.Mkdev(1, 3), "net/tun": unix.Mkdev(10, 200), "console": unix.Mkdev(5, 1)} {
		if err := unix.Mknod(filepath.Join(m.dev, name), unix.S_IFCHR|0o620, int(dev)); err != nil {
			t.Skip(err)
		}
	}
	l := &specs.Linux{Devices: []specs.LinuxDevice{fuse, kvm}, Resources: &specs.LinuxResources{Devices: []specs.LinuxDeviceCgroup{{Allow: true, Access: "rwm"}}}}
	if err := convertDevices(l, m); err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, d := range l.Devices {
		got = append(got, fmt.Sprintf("%s %s %d:%d", d.Path, d.Type, d.Major, d.Minor))
	}
	if want := "/dev/fuse c 10:229, /dev/net/tun c 10:200, /dev/null c 1:3"; strings.Join(got, ", ") != want {
		t.Errorf("a privileged container gets %q, want %s", got, want)
	}
	if mode := l.Devices[1].FileMode; mode == nil || mode.Perm()&^0o22 != 0o600 {
		t.Errorf("mode %v", mode)
	}
}
