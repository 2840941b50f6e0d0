package passthrough

import (
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// TestOwnership makes inodes as several users, also where only the guest knows why they may.
func TestOwnership(t *testing.T) {
	old := unix.Umask(0o077) // the process's must not matter, nor change
	defer unix.Umask(old)
	root := t.TempDir()
	setgid := filepath.Join(root, "setgid")
	os.Mkdir(setgid, 0o700)
	os.Chown(setgid, 5, 55)
	unix.Chmod(setgid, 0o2770)
	c := newClient(t, Config{Root: root})
	dir := c.walk("setgid")
	for _, tc := range []struct {
		uid, gid uint32
		dir      uint64
		wantGID  uint32
	}{
		{0, 0, 1, 0},
		{1000, 1000, 1, 1000},
		{1000, 0, 1, 0},
		{0, 7, 1, 7},
		{4000000000, 4000000001, 1, 4000000001},
		{1000, 1000, dir.NodeId, 55},
		{0, 0, dir.NodeId, 55},
	} {
		c.uid, c.gid = tc.uid, tc.gid
		check := func(op string, st fuse.Status, a fuse.Attr, mode uint32) {
			t.Helper()
			want(t, op, st, fuse.OK)
			if a.Uid != tc.uid || a.Gid != tc.wantGID {
				t.Errorf("%s as %d:%d: owner %d:%d, want group %d", op, tc.uid, tc.gid, a.Uid, a.Gid, tc.wantGID)
			}
			if a.Mode != mode {
				t.Errorf("%s as %d:%d: mode %o, want %o", op, tc.uid, tc.gid, a.Mode, mode)
			}
		}
		var e fuse.EntryOut
		f, st := c.create(tc.dir, "f", unix.O_RDWR|unix.O_EXCL, 0o4666)
		check("CREATE", st, f.Attr, unix.S_IFREG|0o4666)
		want(t, "WRITE", c.write(f.Fh, 0, "x", fuse.WriteIn{}), fuse.OK)
		c.release(f.Fh)
		st = c.do(opMkdir, tc.dir, &fuse.MkdirIn{Mode: 0o777}, name("d"), &e)
		mode := uint32(unix.S_IFDIR | 0o777)
		if tc.dir != 1 {
			mode |= unix.S_ISGID
		}
		check("MKDIR", st, e.Attr, mode)
		st = c.do(opMknod, tc.dir, &fuse.MknodIn{Mode: unix.S_IFIFO | 0o622}, name("p"), &e)
		check("MKNOD", st, e.Attr, unix.S_IFIFO|0o622)
		st = c.do(opSymlink, tc.dir, nil, name("l", "target"), &e)
		check("SYMLINK", st, e.Attr, unix.S_IFLNK|0o777)
		for _, s := range []string{"f", "p", "l"} {
			want(t, "UNLINK", c.do(opUnlink, tc.dir, nil, name(s), nil), fuse.OK)
		}
		want(t, "RMDIR", c.do(opRmdir, tc.dir, nil, name("d"), nil), fuse.OK)
	}
	// The rest of the process is what it was.
	if got := unix.Umask(0o077); got != 0o077 {
		t.Errorf("umask is %o now", got)
	}
	f, err := os.Create(filepath.Join(root, "ours"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil || st.Uid != 0 || st.Gid != 0 {
		t.Errorf("owner %d:%d, %v", st.Uid, st.Gid, err)
	}
}

// TestManyCreators has many guests' processes create at once.
func TestManyCreators(t *testing.T) {
	root := t.TempDir()
	c := newClient(t, Config{Root: root})
	var wg sync.WaitGroup
	for i := range 16 {
		wg.Go(func() {
			c := &client{tb: t, srv: c.srv, uid: uint32(1000 + i), gid: uint32(2000 + i)}
			for range 50 {
				var e fuse.EntryOut
				s := string(rune('a' + i))
				if st := c.do(opMkdir, 1, &fuse.MkdirIn{Mode: 0o777}, name(s), &e); !st.Ok() || e.Uid != c.uid || e.Gid != c.gid {
					t.Errorf("MKDIR: %v, owner %d:%d", st, e.Uid, e.Gid)
				}
				if st := c.do(opRmdir, 1, nil, name(s), nil); !st.Ok() {
					t.Errorf("RMDIR: %v", st)
				}
				c.forget(e.NodeId, 1)
			}
		})
	}
	wg.Wait()
}
