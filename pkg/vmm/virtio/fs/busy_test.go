package fs

import (
	"errors"
	"testing"
	"time"

	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/config"
	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/virtio"
	vt "github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/virtio/virtiotest"
)

// TestBusy has a read of file data into guest memory hang, as far as the session can tell.
func TestBusy(t *testing.T) {
	d, err := New(config.Filesystem{FSID: "shared", Tag: "shared", PathOnHost: t.TempDir()}, 1)
	if err != nil {
		t.Fatal(err)
	}
	m := vt.Start(t, d, 4<<20)
	s := d.session
	if !s.enter() {
		t.Fatal("session is over")
	}
	if err := d.Reset(); !errors.Is(err, virtio.ErrBusy) {
		t.Errorf("reset: %v", err)
	}
	if err := d.Close(); !errors.Is(err, virtio.ErrBusy) {
		t.Errorf("close: %v", err)
	}
	s.leave()
	for begin := time.Now(); d.Reset() != nil; time.Sleep(time.Millisecond) {
		if time.Since(begin) > vt.Timeout {
			t.Fatal("still busy")
		}
	}
	m.Activate(0)
	if err := d.Close(); err != nil {
		t.Error(err)
	}
}
