package fs_test

import (
	"context"
	"net"
	"path/filepath"
	"testing"

	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/config"
	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/virtio/fs"
	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/virtio/vhostuser"
	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/virtio/vhostuser/backend"
	vt "github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/virtio/virtiotest"
)

// place starts a device where it is to be served.
type place func(testing.TB, *fs.Device) *driver

// inBothPlaces runs a test with the device inside the VMM, and behind vhost-user.
func inBothPlaces(t *testing.T, test func(*testing.T, place)) {
	t.Run("inside", func(t *testing.T) { test(t, start) })
	t.Run("vhost-user", func(t *testing.T) { test(t, startApart) })
}

// startApart is start with the rings, the interrupts and guest RAM of another process's, as far as the device can tell.
func startApart(tb testing.TB, d *fs.Device) *driver {
	tb.Helper()
	v := &driver{Machine: vt.Start(tb, apart(tb, d), 16<<20)}
	v.reset()
	return v
}

// serve serves d at a socket until the test ends.
func serve(tb testing.TB, d *fs.Device) (path string) {
	tb.Helper()
	path = filepath.Join(tb.TempDir(), "socket")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path})
	if err != nil {
		tb.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() { served <- backend.Serve(ctx, l, d) }()
	tb.Cleanup(func() {
		cancel()
		if err := <-served; err != nil {
			tb.Error(err)
		}
	})
	return path
}

// apart serves d at a socket, and is the front-end's device.
func apart(tb testing.TB, d *fs.Device) *vhostuser.Filesystem {
	tb.Helper()
	front, err := vhostuser.NewFilesystem(context.Background(), config.Filesystem{FSID: "shared", Tag: "shared", Socket: serve(tb, d)})
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if err := front.Close(); err != nil {
			tb.Error(err)
		}
	})
	return front
}
