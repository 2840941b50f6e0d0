package passthrough

import (
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// share makes a folder to share, with a canary beside it.
func share(tb testing.TB) (root, canary string) {
	tb.Helper()
	dir := tb.TempDir()
	root, canary = filepath.Join(dir, "root"), filepath.Join(dir, "canary")
	if err := os.Mkdir(root, 0o755); err != nil {
		tb.Fatal(err)
	}
	if err := os.WriteFile(canary, []byte("alive"), 0o600); err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if b, err := os.ReadFile(canary); err != nil || string(b) != "alive" {
			tb.Errorf("canary: %q, %v", b, err)
		}
		entries, err := os.ReadDir(dir)
		if err != nil || len(entries) != 2 {
			tb.Errorf("beside the folder: %v, %v", entries, err)
		}
	})
	return root, canary
}

func TestNames(t *testing.T) {
	root, _ := share(t)
	os.WriteFile(filepath.Join(root, "f"), nil, 0o600)
	c := newClient(t, Config{Root: root})
	file := c.walk("f").NodeId
	for _, bad := range []string{"", ".", "..", "/", "../canary", "a/b", "/etc", "f/", "./f", strings.Repeat("n", 256)} {
		for op, req := range map[string]func() fuse.Status{
			"LOOKUP": func() fuse.Status { return c.do(opLookup, 1, nil, name(bad, "", ""), nil) },
			"MKDIR":  func() fuse.Status { return c.do(opMkdir, 1, &fuse.MkdirIn{Mode: 0o700}, name(bad, "", ""), nil) },
			"MKNOD": func() fuse.Status {
				return c.do(opMknod, 1, &fuse.MknodIn{Mode: unix.S_IFREG}, name(bad, "", ""), nil)
			},
			"SYMLINK": func() fuse.Status { return c.do(opSymlink, 1, nil, name(bad, "x", ""), nil) },
			"CREATE": func() fuse.Status {
				_, st := c.create(1, bad+"\x00\x00", unix.O_RDWR, 0o600)
				return st
			},
			"UNLINK":  func() fuse.Status { return c.do(opUnlink, 1, nil, name(bad, "", ""), nil) },
			"RMDIR":   func() fuse.Status { return c.do(opRmdir, 1, nil, name(bad, "", ""), nil) },
			"LINK":    func() fuse.Status { return c.do(opLink, 1, &fuse.LinkIn{Oldnodeid: file}, name(bad, "", ""), nil) },
			"RENAME":  func() fuse.Status { return c.do(opRename2, 1, &fuse.RenameIn{Newdir: 1}, name("f", bad, ""), nil) },
			"RENAME'": func() fuse.Status { return c.do(opRename2, 1, &fuse.RenameIn{Newdir: 1}, name(bad, "g", ""), nil) },
		} {
			switch st := req(); st {
			case fuse.EINVAL, fuse.Status(unix.ENAMETOOLONG):
			default:
				t.Errorf("%s %.20q: %v", op, bad, st)
			}
		}
	}
	if e, err := os.ReadDir(root); err != nil || len(e) != 1 {
		t.Errorf("%v, %v", e, err)
	}
	want(t, "LOOKUP in a file", c.do(opLookup, file, nil, name("x"), nil), fuse.ENOTDIR)
	want(t, "LOOKUP in nothing", c.do(opLookup, 1<<40, nil, name("x"), nil), stale)
}

func TestSymlinks(t *testing.T) {
	root, canary := share(t)
	for link, target := range map[string]string{"abs": canary, "rel": "../canary", "dir": "..", "top": "/"} {
		if err := os.Symlink(target, filepath.Join(root, link)); err != nil {
			t.Fatal(err)
		}
	}
	c := newClient(t, Config{Root: root})
	for _, link := range []string{"abs", "rel", "dir", "top"} {
		e := c.walk(link)
		if e.Mode&unix.S_IFMT != unix.S_IFLNK {
			t.Errorf("%s: mode %o", link, e.Mode)
		}
		_, st := c.open(e.NodeId, unix.O_RDWR|unix.O_TRUNC)
		want(t, "OPEN "+link, st, fuse.Status(unix.ELOOP))
		_, st = c.create(1, link, unix.O_RDWR|unix.O_TRUNC, 0o600)
		want(t, "CREATE "+link, st, stale)
		want(t, "OPENDIR "+link, c.do(opOpendir, e.NodeId, &fuse.OpenIn{}, nil, nil), fuse.ENOTDIR)
		want(t, "LOOKUP in "+link, c.do(opLookup, e.NodeId, nil, name("canary"), nil), fuse.ENOTDIR)
		in := fuse.SetAttrIn{}
		in.Valid = fuse.FATTR_SIZE
		want(t, "truncate "+link, c.do(opSetattr, e.NodeId, &in, nil, nil), fuse.EINVAL)
		in.Valid, in.Mode = fuse.FATTR_MODE, 0o777
		if st := c.do(opSetattr, e.NodeId, &in, nil, nil); st == fuse.OK {
			var fi unix.Stat_t
			unix.Stat(canary, &fi)
			if fi.Mode&0o777 != 0o600 {
				t.Errorf("chmod %s went through", link)
			}
		}
		want(t, "SYNCFS", c.do(opSyncfs, 1, nil, make([]byte, 8), nil), fuse.OK)
	}
}

// TestRaces swaps a directory for a link out of the folder while the guest works in it.
func TestRaces(t *testing.T) {
	root, _ := share(t)
	dir, aside, link := filepath.Join(root, "d"), filepath.Join(root, "aside"), filepath.Join(root, "l")
	os.Mkdir(dir, 0o755)
	os.Symlink("..", link)
	os.Mkdir(aside, 0o755)
	c := newClient(t, Config{Root: root})
	var stop atomic.Bool
	done := make(chan struct{})
	go func() {
		defer close(done)
		for !stop.Load() {
			unix.Renameat2(unix.AT_FDCWD, dir, unix.AT_FDCWD, link, unix.RENAME_EXCHANGE)
		}
	}()
	for range 3000 {
		e, st := c.lookup(1, "d")
		if !st.Ok() {
			continue
		}
		f, st := c.create(e.NodeId, "canary", unix.O_RDWR|unix.O_TRUNC, 0o600)
		if st.Ok() {
			c.write(f.Fh, 0, "dead", fuse.WriteIn{})
			c.release(f.Fh)
		}
		c.do(opUnlink, e.NodeId, nil, name("canary"), nil)
		c.do(opMkdir, e.NodeId, &fuse.MkdirIn{Mode: 0o700}, name("sub"), nil)
		c.do(opRmdir, e.NodeId, nil, name("sub"), nil)
	}
	stop.Store(true)
	<-done
}

// TestMovedAway goes on with a directory that the host has moved out of the folder: there is no way up from it.
func TestMovedAway(t *testing.T) {
	root, canary := share(t)
	os.MkdirAll(filepath.Join(root, "a", "b"), 0o755)
	c := newClient(t, Config{Root: root})
	b := c.walk("a", "b")
	away := filepath.Join(t.TempDir(), "away")
	if err := os.Rename(filepath.Join(root, "a"), away); err != nil {
		t.Fatal(err)
	}
	want(t, "LOOKUP ..", c.do(opLookup, b.NodeId, nil, name(".."), nil), fuse.EINVAL)
	want(t, "LOOKUP "+canary, c.do(opLookup, b.NodeId, nil, name(canary), nil), fuse.EINVAL)
}

func TestReadOnly(t *testing.T) {
	root, _ := share(t)
	os.WriteFile(filepath.Join(root, "f"), []byte("abc"), 0o600)
	c := newClient(t, Config{Root: root, ReadOnly: true})
	f := c.walk("f").NodeId
	for op, st := range map[string]fuse.Status{
		"CREATE":      second(c.create(1, "x", unix.O_RDWR, 0o600)),
		"OPEN":        second(c.open(f, unix.O_WRONLY)),
		"OPEN trunc":  second(c.open(f, unix.O_TRUNC)),
		"TMPFILE":     c.do(opTmpfile, 1, &fuse.CreateIn{Flags: unix.O_RDWR}, name("/"), nil),
		"MKDIR":       c.do(opMkdir, 1, &fuse.MkdirIn{}, name("x"), nil),
		"MKNOD":       c.do(opMknod, 1, &fuse.MknodIn{Mode: unix.S_IFIFO}, name("x"), nil),
		"SYMLINK":     c.do(opSymlink, 1, nil, name("x", "y"), nil),
		"LINK":        c.do(opLink, 1, &fuse.LinkIn{Oldnodeid: f}, name("x"), nil),
		"UNLINK":      c.do(opUnlink, 1, nil, name("f"), nil),
		"RMDIR":       c.do(opRmdir, 1, nil, name("f"), nil),
		"RENAME":      c.do(opRename2, 1, &fuse.RenameIn{Newdir: 1}, name("f", "g"), nil),
		"SETATTR":     c.do(opSetattr, f, &fuse.SetAttrIn{}, nil, nil),
		"SETXATTR":    c.do(opSetxattr, f, &setxattrIn{}, name("user.x"), nil),
		"REMOVEXATTR": c.do(opRemovexattr, f, nil, name("user.x"), nil),
	} {
		if st != fuse.EROFS {
			t.Errorf("%s: %v", op, st)
		}
	}
	fh, st := c.open(f, unix.O_RDONLY)
	want(t, "OPEN", st, fuse.OK)
	if got, _ := c.read(fh, 0, 10); got != "abc" {
		t.Errorf("%q", got)
	}
	want(t, "WRITE", c.write(fh, 0, "x", fuse.WriteIn{}), fuse.EBADF)
	if st := c.do(opFallocate, f, &fuse.FallocateIn{Fh: fh, Length: 100}, nil, nil); st.Ok() {
		t.Error("FALLOCATE: OK")
	}
}

func second[T any](_ T, st fuse.Status) fuse.Status { return st }
