package setup

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// TestWriteBack: what only a cache has, in a file system on a loop device, is in the file below it afterwards.
func TestWriteBack(t *testing.T) {
	if os.Getenv("FC_KVMHOST") == "" {
		t.Skip("mounts a loop device: run it with -exec integration/kvmhost")
	}
	dir, err := os.MkdirTemp("/dev/shm", "writeback")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	img, mnt := filepath.Join(dir, "img"), filepath.Join(dir, "mnt")
	run := func(name string, args ...string) {
		t.Helper()
		if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
			t.Fatalf("%s %q: %v\n%s", name, args, err, out)
		}
	}
	if err := os.WriteFile(img, make([]byte, 8<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(mnt, 0o700); err != nil {
		t.Fatal(err)
	}
	run("mkfs.ext4", "-q", "-O", "^has_journal", img)
	run("mount", "-o", "loop", img, mnt)
	defer run("umount", mnt)
	words := []byte("words that are written back")
	if err := os.WriteFile(filepath.Join(mnt, "f"), words, 0o600); err != nil {
		t.Fatal(err)
	}
	there := func() bool {
		t.Helper()
		b, err := os.ReadFile(img)
		if err != nil {
			t.Fatal(err)
		}
		return bytes.Contains(b, words)
	}
	if there() {
		t.Skip("the kernel was quicker")
	}
	if err := WriteBack(); err != nil || !there() {
		t.Errorf("%v; written: %v", err, there())
	}
}
