package fscheck

import (
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

func TestMain(m *testing.M) {
	Child()
	os.Exit(m.Run())
}

// TestHere tries the checks themselves, on whatever file system this machine has.
func TestHere(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root")
	}
	root := t.TempDir()
	var fs unix.Statfs_t
	if err := unix.Statfs(root, &fs); err != nil || fs.Type == unix.TMPFS_MAGIC {
		t.Skipf("%s is on a tmpfs (%v), which lacks some of what other file systems have", root, err)
	}
	if err := os.Chmod(filepath.Dir(root), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, c := range All() {
		t.Run(c.Name, func(t *testing.T) {
			dir := filepath.Join(root, c.Name)
			if err := os.Mkdir(dir, 0o777); err != nil {
				t.Fatal(err)
			}
			if err := os.Chmod(dir, 0o777); err != nil {
				t.Fatal(err)
			}
			c.Run(t, dir)
		})
	}
}
