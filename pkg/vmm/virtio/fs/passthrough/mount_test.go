package passthrough

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// mount mounts for the length of a test.
func mount(t *testing.T, source, target, fstype string, flags uintptr, data string) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root")
	}
	err := unix.Mount(source, target, fstype, flags, data)
	if errors.Is(err, unix.EPERM) || errors.Is(err, unix.ENODEV) {
		t.Skipf("mount of %s: %v", fstype, err)
	}
	if err != nil {
		t.Fatalf("mount of %s at %s: %v", fstype, target, err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(target, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
}

func mkdirs(t *testing.T, dirs ...string) {
	t.Helper()
	for _, d := range dirs {
		if err := os.MkdirAll(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
}

// TestMounts crosses into file systems mounted below the folder, before and after the guest came.
func TestMounts(t *testing.T) {
	root := t.TempDir()
	a, b := filepath.Join(root, "a"), filepath.Join(root, "b")
	mkdirs(t, a, b)
	mount(t, "tmpfs", a, "tmpfs", 0, "")
	c := newClient(t, Config{Root: root})
	c.walk("a")
	before := c.walk("b")
	mount(t, "tmpfs", b, "tmpfs", 0, "")
	after := c.walk("b")
	if before.NodeId == after.NodeId || before.Flags&fuse.ATTR_SUBMOUNT != 0 || after.Flags&fuse.ATTR_SUBMOUNT == 0 {
		t.Error("a mount that came later is not seen, or not as one")
	}
	for _, dir := range []string{a, b} {
		for i := range 3 {
			if err := os.WriteFile(filepath.Join(dir, fmt.Sprint(i)), []byte(dir), 0o600); err != nil {
				t.Fatal(err)
			}
			e := c.walk(filepath.Base(dir), fmt.Sprint(i))
			at := filepath.Join(dir, fmt.Sprint(i))
			if host := hostInode(t, at); e.Ino != host {
				t.Errorf("%s: inode %d, on the host %d", at, e.Ino, host)
			}
			fh, st := c.open(e.NodeId, unix.O_RDONLY)
			want(t, "OPEN", st, fuse.OK)
			if got, _ := c.read(fh, 0, 1000); got != dir {
				t.Errorf("%s: %q", at, got)
			}
			if listed := c.list(c.walk(filepath.Base(dir)).NodeId, 4096, false)[fmt.Sprint(i)]; listed.Ino != e.Ino {
				t.Errorf("%s: inode %d listed, %d looked up", at, listed.Ino, e.Ino)
			}
		}
	}
	st := c.do(opRename2, c.walk("a").NodeId, &fuse.RenameIn{Newdir: c.walk("b").NodeId}, name("0", "moved"), nil)
	want(t, "RENAME across", st, fuse.EXDEV)
	if got, st := c.list(1, 4096, true), fuse.OK; len(got) != 4 || !st.Ok() {
		t.Errorf("%v", got)
	}
}

func hostInode(t *testing.T, path string) uint64 {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		t.Fatal(err)
	}
	return st.Ino
}

// TestInodeNumbers has the same numbers on several devices: they are the host's own, save those of files that come from
// another device than the file system around them.
func TestInodeNumbers(t *testing.T) {
	root, other := t.TempDir(), t.TempDir()
	sub, file, near := filepath.Join(root, "sub"), filepath.Join(root, "file"), filepath.Join(root, "near")
	mkdirs(t, sub)
	for _, d := range []string{sub, other} {
		mount(t, "tmpfs", d, "tmpfs", 0, "") // numbers from the first on, in each
	}
	inner := filepath.Join(sub, "inner")
	for _, f := range []string{file, near, inner, filepath.Join(sub, "f"), filepath.Join(other, "f"), filepath.Join(root, "here")} {
		if err := os.WriteFile(f, nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	mount(t, filepath.Join(other, "f"), file, "", unix.MS_BIND, "")
	mount(t, filepath.Join(other, "f"), inner, "", unix.MS_BIND, "")
	mount(t, filepath.Join(root, "here"), near, "", unix.MS_BIND, "")
	c := newClient(t, Config{Root: root})
	for _, tc := range []struct {
		path  []string
		moved bool
	}{
		{[]string{"here"}, false},
		{[]string{"near"}, false},
		{[]string{"sub"}, false},
		{[]string{"sub", "f"}, false},
		{[]string{"file"}, true},
		{[]string{"sub", "inner"}, true},
	} {
		got, host := c.walk(tc.path...).Ino, hostInode(t, filepath.Join(append([]string{root}, tc.path...)...))
		if got&inoMask != host || got != host != tc.moved {
			t.Errorf("%v: inode %#x, on the host %#x", tc.path, got, host)
		}
	}
	made, st := c.create(c.walk("sub").NodeId, "made", unix.O_RDWR, 0o600)
	want(t, "CREATE", st, fuse.OK)
	if host := hostInode(t, filepath.Join(sub, "made")); made.Ino != host {
		t.Errorf("a new file: inode %#x, on the host %#x", made.Ino, host)
	}
	if c.walk("file").Ino != c.walk("sub", "inner").Ino {
		t.Error("one file, two numbers")
	}
}

// TestReadOnlyBind has one folder behind a writable and a read-only mount: each stays what it is.
func TestReadOnlyBind(t *testing.T) {
	root := t.TempDir()
	rw, ro := filepath.Join(root, "rw"), filepath.Join(root, "ro")
	mkdirs(t, rw, ro)
	source := t.TempDir()
	os.WriteFile(filepath.Join(source, "f"), nil, 0o600)
	mount(t, source, rw, "", unix.MS_BIND, "")
	mount(t, source, ro, "", unix.MS_BIND, "")
	if err := unix.Mount("", ro, "", unix.MS_REMOUNT|unix.MS_BIND|unix.MS_RDONLY, ""); err != nil {
		t.Fatal(err)
	}
	c := newClient(t, Config{Root: root})
	w, r := c.walk("rw", "f"), c.walk("ro", "f")
	_, st := c.open(w.NodeId, unix.O_RDWR)
	want(t, "OPEN of the writable", st, fuse.OK)
	_, st = c.open(r.NodeId, unix.O_RDWR)
	want(t, "OPEN of the read-only", st, fuse.EROFS)
	want(t, "UNLINK in the read-only", c.do(opUnlink, c.walk("ro").NodeId, nil, name("f"), nil), fuse.EROFS)
	if w.Ino != r.Ino {
		t.Errorf("one file, inodes %d and %d", w.Ino, r.Ino)
	}
}

// TestOverlay reads a file that was opened before another process's first write to it: overlayfs, since Linux 4.19, sends
// such a reader to the copy.
func TestOverlay(t *testing.T) {
	root := t.TempDir()
	base := t.TempDir()
	if os.Getuid() == 0 {
		mount(t, "tmpfs", base, "tmpfs", 0, "") // an overlay cannot have an overlay below its upper folder
	}
	lower, upper, work := filepath.Join(base, "l"), filepath.Join(base, "u"), filepath.Join(base, "w")
	merged := filepath.Join(root, "m")
	mkdirs(t, lower, upper, work, merged)
	os.WriteFile(filepath.Join(lower, "f"), []byte("lower"), 0o640)
	os.Mkdir(filepath.Join(lower, "d"), 0o755)
	mount(t, "overlay", merged, "overlay", 0, fmt.Sprintf("lowerdir=%s,upperdir=%s,workdir=%s", lower, upper, work))
	c := newClient(t, Config{Root: root})
	f := c.walk("m", "f")
	reader, st := c.open(f.NodeId, unix.O_RDONLY)
	want(t, "OPEN", st, fuse.OK)
	if got, _ := c.read(reader, 0, 10); got != "lower" {
		t.Errorf("%q", got)
	}
	writer, st := c.open(f.NodeId, unix.O_RDWR)
	want(t, "OPEN", st, fuse.OK)
	want(t, "WRITE", c.write(writer, 0, "UPPER", fuse.WriteIn{}), fuse.OK)
	if got, _ := c.read(reader, 0, 10); got != "UPPER" {
		t.Errorf("the reader sees %q", got)
	}
	if again := c.walk("m", "f"); again.Ino != f.Ino {
		t.Errorf("inode %d became %d", f.Ino, again.Ino)
	}
	m := c.walk("m").NodeId
	want(t, "RMDIR of a lower one", c.do(opRmdir, m, nil, name("d"), nil), fuse.OK)
	want(t, "MKDIR over a whiteout", c.do(opMkdir, m, &fuse.MkdirIn{Mode: 0o750}, name("d"), nil), fuse.OK)
	want(t, "RENAME", c.do(opRename2, m, &fuse.RenameIn{Newdir: m}, name("f", "g"), nil), fuse.OK)
	if b, err := os.ReadFile(filepath.Join(upper, "g")); err != nil || string(b) != "UPPER" {
		t.Errorf("%q, %v", b, err)
	}
	if all := c.list(m, 4096, true); len(all) != 4 {
		t.Errorf("%v", all)
	}
}
