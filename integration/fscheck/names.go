package fscheck

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func hardLinks(t *testing.T, dir string) {
	a, b, sub := filepath.Join(dir, "a"), filepath.Join(dir, "sub", "b"), filepath.Join(dir, "sub")
	write(t, a, "one")
	must(t, os.Mkdir(sub, 0o755))
	must(t, os.Link(a, b))
	if sa, sb := lstat(t, a), lstat(t, b); sa.Ino != sb.Ino || sa.Dev != sb.Dev || sa.Nlink != 2 || sb.Nlink != 2 {
		t.Errorf("two names: inodes %d and %d, links %d and %d", sa.Ino, sb.Ino, sa.Nlink, sb.Nlink)
	}
	must(t, os.WriteFile(b, []byte("two"), 0))
	holds(t, a, "two")
	wants(t, "link over a name", os.Link(a, b), unix.EEXIST)
	wants(t, "link to a folder", os.Link(sub, filepath.Join(dir, "x")), unix.EPERM)
	must(t, os.Symlink("nothing", filepath.Join(dir, "s")))
	must(t, unix.Linkat(unix.AT_FDCWD, filepath.Join(dir, "s"), unix.AT_FDCWD, filepath.Join(dir, "s2"), 0))
	if st := lstat(t, filepath.Join(dir, "s2")); st.Mode&unix.S_IFMT != unix.S_IFLNK || st.Nlink != 2 {
		t.Errorf("link to a symbolic link: mode %o, %d links", st.Mode, st.Nlink)
	}
	must(t, os.Remove(a))
	if st := lstat(t, b); st.Nlink != 1 {
		t.Errorf("after one name's end there are %d links", st.Nlink)
	}
	holds(t, b, "two")
}

func symlinks(t *testing.T, dir string) {
	write(t, filepath.Join(dir, "f"), "f")
	for name, target := range map[string]string{
		"relative": "f", "absolute": filepath.Join(dir, "f"), "dotted": "../" + filepath.Base(dir) + "/./f",
	} {
		must(t, os.Symlink(target, filepath.Join(dir, name)))
		holds(t, filepath.Join(dir, name), "f")
		if st := lstat(t, filepath.Join(dir, name)); st.Size != int64(len(target)) || st.Mode != unix.S_IFLNK|0o777 {
			t.Errorf("%s: size %d, mode %o", name, st.Size, st.Mode)
		}
	}
	must(t, os.Symlink("loop", filepath.Join(dir, "loop")))
	_, err := os.ReadFile(filepath.Join(dir, "loop"))
	wants(t, "a loop", err, unix.ELOOP)
	_, err = unix.Open(filepath.Join(dir, "relative"), unix.O_RDONLY|unix.O_NOFOLLOW, 0)
	wants(t, "O_NOFOLLOW", err, unix.ELOOP)
	long := strings.Repeat("l/", 2047) + "x"
	must(t, os.Symlink(long, filepath.Join(dir, "long")))
	if got, err := os.Readlink(filepath.Join(dir, "long")); got != long {
		t.Errorf("a target of %d bytes came back as %d (%v)", len(long), len(got), err)
	}
	must(t, os.Lchown(filepath.Join(dir, "relative"), 12, 34))
	if st := lstat(t, filepath.Join(dir, "relative")); st.Uid != 12 || st.Gid != 34 {
		t.Errorf("owner of the link: %d:%d", st.Uid, st.Gid)
	}
	if st := lstat(t, filepath.Join(dir, "f")); st.Uid != 0 {
		t.Errorf("lchown changed the target's owner to %d", st.Uid)
	}
}

func renameVariants(t *testing.T, dir string) {
	at := func(name string) string { return filepath.Join(dir, name) }
	rename := func(a, b string, flags uint) error {
		return unix.Renameat2(unix.AT_FDCWD, at(a), unix.AT_FDCWD, at(b), flags)
	}
	write(t, at("a"), "a")
	write(t, at("b"), "b")
	for _, d := range []string{"d", "full", "full/in", "empty"} {
		must(t, os.Mkdir(at(d), 0o755))
	}
	wants(t, "RENAME_NOREPLACE", rename("a", "b", unix.RENAME_NOREPLACE), unix.EEXIST)
	must(t, rename("a", "new", unix.RENAME_NOREPLACE))
	must(t, rename("new", "a", 0))
	must(t, rename("a", "b", unix.RENAME_EXCHANGE))
	holds(t, at("a"), "b")
	holds(t, at("b"), "a")
	must(t, rename("a", "full", unix.RENAME_EXCHANGE))
	holds(t, at("full"), "b")
	must(t, rename("a", "full", unix.RENAME_EXCHANGE))
	wants(t, "exchange with nothing", rename("a", "none", unix.RENAME_EXCHANGE), unix.ENOENT)
	wants(t, "two flags at odds", rename("a", "b", unix.RENAME_EXCHANGE|unix.RENAME_NOREPLACE), unix.EINVAL)
	wants(t, "file over folder", rename("a", "d", 0), unix.EISDIR)
	wants(t, "folder over file", rename("d", "a", 0), unix.ENOTDIR)
	wants(t, "folder over a full one", rename("d", "full", 0), unix.ENOTEMPTY)
	wants(t, "folder into itself", rename("full", "full/in/self", 0), unix.EINVAL)
	must(t, rename("d", "empty", 0))
	must(t, rename("a", "b", 0))
	holds(t, at("b"), "b")
	must(t, os.Link(at("b"), at("c")))
	must(t, rename("b", "c", 0)) // two names of one inode: nothing happens
	holds(t, at("b"), "b")
	holds(t, at("c"), "b")
}

// lengths has names of 255 bytes and a path of 4095, PATH_MAX without its zero byte.
func lengths(t *testing.T, dir string) {
	name := strings.Repeat("n", 255)
	write(t, filepath.Join(dir, name), "long")
	holds(t, filepath.Join(dir, name), "long")
	wants(t, "a name of 256 bytes", os.WriteFile(filepath.Join(dir, name+"n"), nil, 0o644), unix.ENAMETOOLONG)

	path := dir
	for len(path)+1+200 < 4095-10 {
		path += "/" + strings.Repeat("d", 199)
		must(t, os.Mkdir(path, 0o755))
	}
	path += "/" + strings.Repeat("f", 4095-len(path)-1)
	write(t, path, "deep")
	holds(t, path, "deep")
	_, err := os.Stat(path + "f")
	wants(t, "a path of 4096 bytes", err, unix.ENAMETOOLONG)
	cwd, err := os.Getwd()
	must(t, err)
	defer os.Chdir(cwd)
	must(t, os.Chdir(filepath.Dir(path)))
	buf := make([]byte, 8192)
	if n, err := unix.Getcwd(buf); err != nil || string(buf[:n-1]) != filepath.Dir(path) {
		t.Errorf("getcwd in a deep folder: %d bytes, %v, want %d", n-1, err, len(filepath.Dir(path)))
	}
}

// Big is a folder that the checks' caller may have filled with BigEntries files named 0 and up; else 100 are made here.
const (
	Big        = "big"
	BigEntries = 10_000
)

func bigDirectory(t *testing.T, dir string) {
	big, n := filepath.Join(filepath.Dir(dir), Big), BigEntries
	if _, err := os.Stat(big); err != nil {
		big, n = dir, 100
		for i := range n {
			fd, err := unix.Open(filepath.Join(dir, fmt.Sprint(i)), unix.O_CREAT|unix.O_WRONLY|unix.O_CLOEXEC, 0o644)
			must(t, err)
			unix.Close(fd)
		}
	}
	f, err := os.Open(big)
	must(t, err)
	defer f.Close()
	for range 2 { // the second time from whatever is cached
		names, err := f.Readdirnames(-1)
		must(t, err)
		seen := map[string]bool{}
		for _, name := range names {
			seen[name] = true
		}
		if len(names) != n || len(seen) != n {
			t.Errorf("%d names, %d different ones, want %d", len(names), len(seen), n)
		}
		_, err = f.Seek(0, 0)
		must(t, err)
	}
	// Removing while listing leaves out nothing.
	removed := 0
	for {
		names, _ := f.Readdirnames(25)
		if len(names) == 0 || removed >= 50 {
			break
		}
		for _, name := range names {
			must(t, os.Remove(filepath.Join(big, name)))
			removed++
		}
	}
	if left, err := os.ReadDir(big); err != nil || len(left) != n-removed {
		t.Errorf("%d of %d names were removed, and %d are left (%v)", removed, n, len(left), err)
	}
}
