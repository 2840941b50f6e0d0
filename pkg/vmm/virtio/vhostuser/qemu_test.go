package vhostuser_test

import (
	"bytes"
	"encoding/binary"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/config"
	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/virtio/vhostuser"
	vt "github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/virtio/virtiotest"
)

// TestStorageDaemon talks to a back-end that others have written.
func TestStorageDaemon(t *testing.T) {
	daemon, err := exec.LookPath("qemu-storage-daemon")
	if err != nil {
		t.Skip("needs qemu-storage-daemon:", err)
	}
	dir := t.TempDir()
	file, socket := filepath.Join(dir, "disk"), filepath.Join(dir, "socket")
	if err := os.WriteFile(file, bytes.Repeat([]byte("x"), diskSize), 0o600); err != nil {
		t.Fatal(err)
	}
	var said bytes.Buffer
	cmd := exec.Command(daemon, "--blockdev", "driver=file,node-name=f,discard=unmap,filename="+file,
		"--export", "type=vhost-user-blk,id=e,node-name=f,writable=on,addr.type=unix,addr.path="+socket)
	cmd.Stdout, cmd.Stderr = &said, &said
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		cmd.Process.Kill()
		cmd.Wait()
		if t.Failed() {
			t.Logf("the daemon said %s", said.String())
		}
	}()
	var d *vhostuser.Drive
	for begin := time.Now(); ; time.Sleep(time.Millisecond) {
		// The socket is there before the daemon listens.
		if d, err = vhostuser.NewDrive(t.Context(), config.Drive{DriveID: "data", Socket: socket, CacheType: config.CacheWriteback}); err == nil {
			break
		}
		if time.Since(begin) > vt.Timeout {
			t.Fatalf("the daemon does not serve within %v: %v", vt.Timeout, err)
		}
	}
	defer d.Close()
	var size [8]byte
	if d.ReadConfig(0, size[:]); binary.LittleEndian.Uint64(size[:]) != diskSize/512 || d.ReadOnly() || d.Features()&(1<<9) == 0 {
		t.Fatalf("%d sectors, features %#x", binary.LittleEndian.Uint64(size[:]), d.Features())
	}
	m := vt.Start(t, d, 1<<20)
	for i := range byte(3) {
		do(t, m, 1, uint64(i), bytes.Repeat([]byte{'a' + i}, 512), 0, 0)
		do(t, m, 4, 0, nil, 0, 0)
		if got := do(t, m, 0, 0, nil, 4096, 0); got[512*int(i)] != 'a'+i || got[4095] != 'x' {
			t.Errorf("read %.1q and %.1q", got[512*int(i):], got[4095:])
		}
		if err := d.Reset(); err != nil {
			t.Fatal(err)
		}
		m.Activate(d.Features() | d.RingFeatures() | 1<<32)
	}
	// Whether writes may stay in a cache is the driver's to say.
	wce := func() byte {
		var p [1]byte
		d.ReadConfig(32, p[:])
		return p[0]
	}
	for _, v := range []byte{0, 1} {
		if d.WriteConfig(32, []byte{v}); wce() != v {
			t.Errorf("the cache is %d, want %d", wce(), v)
		}
	}
	if b, err := os.ReadFile(file); err != nil || !strings.HasPrefix(string(b), strings.Repeat("a", 512)+strings.Repeat("b", 512)+strings.Repeat("c", 512)+"x") {
		t.Errorf("the file has %.1600q, %v", b, err)
	}
	cmd.Process.Kill()
	select {
	case err := <-m.Broken:
		t.Log(err)
	case <-time.After(vt.Timeout):
		t.Error("nobody was told of its death")
	}
}
