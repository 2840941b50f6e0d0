package passthrough

import (
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

func TestMinSizes(t *testing.T) {
	for _, tc := range []struct {
		op   uint32
		in   any
		tail int
	}{
		{opForget, fuse.ForgetIn{}, 0}, {opGetattr, fuse.GetAttrIn{}, 0}, {opSetattr, fuse.SetAttrIn{}, 0},
		{opMknod, fuse.MknodIn{}, 2}, {opMkdir, fuse.MkdirIn{}, 2}, {opRename2, fuse.RenameIn{}, 2}, {opLink, fuse.LinkIn{}, 2},
		{opOpen, fuse.OpenIn{}, 0}, {opRead, fuse.ReadIn{}, 0}, {opWrite, fuse.WriteIn{}, 0}, {opRelease, fuse.ReleaseIn{}, 0},
		{opFsync, fuse.FsyncIn{}, 0}, {opGetxattr, fuse.GetXAttrIn{}, 2}, {opListxattr, fuse.GetXAttrIn{}, 0},
		{opCreate, fuse.CreateIn{}, 2}, {opFallocate, fuse.FallocateIn{}, 0}, {opLseek, fuse.LseekIn{}, 0},
		{opCopyFileRange, fuse.CopyFileRangeIn{}, 0}, {opStatx, fuse.StatxIn{}, 0},
	} {
		if got, want := minSize(tc.op), binary.Size(tc.in)+tc.tail; got != want {
			t.Errorf("opcode %d: %d bytes, want %d", tc.op, got, want)
		}
	}
}

func TestInit(t *testing.T) {
	c := newClient(t, Config{Root: t.TempDir()})
	out := c.init()
	flags := uint64(out.Flags) | uint64(out.Flags2)<<32
	for name, want := range map[string]struct {
		bit uint64
		on  bool
	}{
		"ASYNC_READ":         {fuse.CAP_ASYNC_READ, true},
		"BIG_WRITES":         {fuse.CAP_BIG_WRITES, true},
		"ATOMIC_O_TRUNC":     {fuse.CAP_ATOMIC_O_TRUNC, true},
		"AUTO_INVAL_DATA":    {fuse.CAP_AUTO_INVAL_DATA, true},
		"READDIRPLUS":        {fuse.CAP_READDIRPLUS, true},
		"READDIRPLUS_AUTO":   {fuse.CAP_READDIRPLUS_AUTO, true},
		"PARALLEL_DIROPS":    {fuse.CAP_PARALLEL_DIROPS, true},
		"MAX_PAGES":          {fuse.CAP_MAX_PAGES, true},
		"HANDLE_KILLPRIV_V2": {fuse.CAP_HANDLE_KILLPRIV_V2, true},
		"CACHE_SYMLINKS":     {fuse.CAP_CACHE_SYMLINKS, true},
		"HANDLE_KILLPRIV":    {fuse.CAP_HANDLE_KILLPRIV, false},
		"WRITEBACK_CACHE":    {fuse.CAP_WRITEBACK_CACHE, false},
		"POSIX_ACL":          {fuse.CAP_POSIX_ACL, false},
		"POSIX_LOCKS":        {fuse.CAP_POSIX_LOCKS, false},
		"FLOCK_LOCKS":        {fuse.CAP_FLOCK_LOCKS, false},
		"DONT_MASK":          {fuse.CAP_DONT_MASK, false},
		"SETXATTR_EXT":       {fuse.CAP_SETXATTR_EXT, false},
		"PASSTHROUGH":        {fuse.CAP_PASSTHROUGH, false},
		"SUBMOUNTS":          {fuse.CAP_SUBMOUNTS, true},
		"SECURITY_CTX":       {fuse.CAP_SECURITY_CTX, false},
	} {
		if got := flags&want.bit != 0; got != want.on {
			t.Errorf("%s: %v", name, got)
		}
	}
	if out.MaxWrite != MaxIO || out.MaxPages != 256 {
		t.Errorf("largest write %d, %d pages", out.MaxWrite, out.MaxPages)
	}
	want(t, "old protocol", c.do(opInit, 0, &fuse.InitIn{Major: 7, Minor: 12}, nil, nil), fuse.Status(unix.EPROTO))
	want(t, "DESTROY", c.do(opDestroy, 0, nil, nil, nil), fuse.OK)
	want(t, "after DESTROY", c.do(opGetattr, 1, &fuse.GetAttrIn{}, nil, nil), fuse.EIO)
	c.init()
	want(t, "after INIT", c.do(opGetattr, 1, &fuse.GetAttrIn{}, nil, nil), fuse.OK)
}

func TestFiles(t *testing.T) {
	root := t.TempDir()
	c := newClient(t, Config{Root: root})

	f, st := c.create(1, "f", unix.O_RDWR|unix.O_EXCL, 0o640)
	want(t, "CREATE", st, fuse.OK)
	if f.Mode != unix.S_IFREG|0o640 {
		t.Errorf("mode %o", f.Mode)
	}
	_, st = c.create(1, "f", unix.O_RDWR|unix.O_EXCL, 0o640)
	want(t, "CREATE again, exclusively", st, fuse.Status(unix.EEXIST))
	again, st := c.create(1, "f", unix.O_RDWR, 0o640)
	want(t, "CREATE again", st, fuse.OK)
	if again.NodeId != f.NodeId {
		t.Errorf("nodes %d and %d for one file", f.NodeId, again.NodeId)
	}

	long := strings.Repeat("0123456789abcdef", 10000)
	want(t, "WRITE", c.write(f.Fh, 3, long, fuse.WriteIn{}), fuse.OK)
	got, st := c.read(again.Fh, 0, len(long)+100)
	want(t, "READ", st, fuse.OK)
	if got != "\x00\x00\x00"+long {
		t.Errorf("read %d bytes, want %d others", len(got), len(long)+3)
	}
	if got, st = c.read(f.Fh, 1<<30, 10); got != "" || !st.Ok() {
		t.Errorf("beyond the end: %q, %v", got, st)
	}

	// Appends go to the end, whatever offset the guest believes in; its dirty pages go where they belong.
	want(t, "append", c.write(f.Fh, 0, "end", fuse.WriteIn{Flags: unix.O_APPEND | unix.O_RDWR}), fuse.OK)
	want(t, "write back", c.write(f.Fh, 0, "top", fuse.WriteIn{Flags: unix.O_APPEND | unix.O_RDWR, WriteFlags: writeCache}), fuse.OK)
	if b, err := os.ReadFile(filepath.Join(root, "f")); err != nil || string(b) != "top"+long+"end" {
		t.Errorf("file has %d bytes, %v", len(b), err)
	}

	// An unlinked file lives on as long as it is open, and can be truncated.
	want(t, "UNLINK", c.do(opUnlink, 1, nil, name("f"), nil), fuse.OK)
	_, st = c.lookup(1, "f")
	want(t, "LOOKUP of the unlinked", st, fuse.ENOENT)
	var attr fuse.AttrOut
	set := fuse.SetAttrIn{}
	set.Valid, set.Size, set.Fh = fuse.FATTR_SIZE|fuse.FATTR_FH, 5, f.Fh
	want(t, "truncate", c.do(opSetattr, f.NodeId, &set, nil, &attr), fuse.OK)
	if attr.Size != 5 || attr.Nlink != 0 {
		t.Errorf("size %d, links %d", attr.Size, attr.Nlink)
	}
	set.Valid = fuse.FATTR_SIZE
	set.Size = 6
	want(t, "truncate without handle", c.do(opSetattr, f.NodeId, &set, nil, &attr), fuse.OK)
	if got, _ = c.read(f.Fh, 0, 10); got != "top01\x00" {
		t.Errorf("unlinked file: %q", got)
	}
	c.release(f.Fh)
	_, st = c.read(f.Fh, 0, 1)
	want(t, "READ of the released", st, fuse.EBADF)
	c.release(again.Fh)
	c.forget(f.NodeId, 2)
	want(t, "GETATTR of the forgotten", c.do(opGetattr, f.NodeId, &fuse.GetAttrIn{}, nil, nil), stale)
}

func TestTruncateOnOpen(t *testing.T) {
	root := t.TempDir()
	os.WriteFile(filepath.Join(root, "f"), []byte("abc"), 0o600)
	c := newClient(t, Config{Root: root})
	e := c.walk("f")
	fh, st := c.open(e.NodeId, unix.O_WRONLY|unix.O_TRUNC)
	want(t, "OPEN", st, fuse.OK)
	defer c.release(fh)
	if b, _ := os.ReadFile(filepath.Join(root, "f")); len(b) != 0 {
		t.Errorf("%q", b)
	}
	if _, st = c.read(fh, 0, 1); st != fuse.EBADF {
		t.Errorf("read of a write-only file: %v", st)
	}
}

func TestMakeAndRemove(t *testing.T) {
	root := t.TempDir()
	c := newClient(t, Config{Root: root})
	var e fuse.EntryOut
	want(t, "MKDIR", c.do(opMkdir, 1, &fuse.MkdirIn{Mode: 0o1777}, name("d"), &e), fuse.OK)
	if e.Mode != unix.S_IFDIR|0o1777 {
		t.Errorf("mode %o", e.Mode)
	}
	d := e.NodeId
	for _, tc := range []struct {
		name string
		mode uint32
		rdev uint32
	}{
		{"fifo", unix.S_IFIFO | 0o666, 0},
		{"sock", unix.S_IFSOCK | 0o700, 0},
		{"null", unix.S_IFCHR | 0o666, encodeDev(1, 3)},
		{"big", unix.S_IFBLK | 0o600, encodeDev(259, 300)},
		{"file", unix.S_IFREG | 0o604, 0},
	} {
		st := c.do(opMknod, d, &fuse.MknodIn{Mode: tc.mode, Rdev: tc.rdev}, name(tc.name), &e)
		if tc.rdev != 0 && st == fuse.EPERM {
			t.Logf("%s: this process may not make device nodes", tc.name)
			continue
		}
		want(t, "MKNOD "+tc.name, st, fuse.OK)
		if e.Mode != tc.mode || e.Rdev != tc.rdev {
			t.Errorf("%s: mode %o, device %#x", tc.name, e.Mode, e.Rdev)
		}
		if tc.mode&unix.S_IFMT != unix.S_IFREG {
			// At once: the host's fifo would block an open.
			_, st = c.open(e.NodeId, unix.O_RDONLY)
			want(t, "OPEN "+tc.name, st, fuse.Status(unix.ENXIO))
			_, st = c.create(d, tc.name, unix.O_WRONLY, 0o600)
			want(t, "CREATE on "+tc.name, st, stale)
		}
	}
	want(t, "MKNOD of a directory", c.do(opMknod, d, &fuse.MknodIn{Mode: unix.S_IFDIR}, name("x"), nil), fuse.EINVAL)

	want(t, "SYMLINK", c.do(opSymlink, d, nil, name("l", "/etc/passwd"), &e), fuse.OK)
	b, st := c.raw(c.request(opReadlink, e.NodeId, nil, nil), 4096)
	want(t, "READLINK", st, fuse.OK)
	if string(b) != "/etc/passwd" {
		t.Errorf("link to %q", b)
	}
	want(t, "LINK of a link", c.do(opLink, 1, &fuse.LinkIn{Oldnodeid: e.NodeId}, name("hard"), &e), fuse.OK)
	if e.Mode&unix.S_IFMT != unix.S_IFLNK || e.Nlink != 2 {
		t.Errorf("mode %o, %d links", e.Mode, e.Nlink)
	}
	file := c.walk("d", "file")
	want(t, "LINK", c.do(opLink, 1, &fuse.LinkIn{Oldnodeid: file.NodeId}, name("two"), &e), fuse.OK)
	if e.NodeId != file.NodeId || e.Nlink != 2 {
		t.Errorf("node %d, want %d; %d links", e.NodeId, file.NodeId, e.Nlink)
	}
	want(t, "RMDIR of a full one", c.do(opRmdir, 1, nil, name("d"), nil), fuse.Status(unix.ENOTEMPTY))
	want(t, "UNLINK of a directory", c.do(opUnlink, 1, nil, name("d"), nil), fuse.Status(unix.EISDIR))
	want(t, "RMDIR of a file", c.do(opRmdir, 1, nil, name("two"), nil), fuse.ENOTDIR)
	os.RemoveAll(filepath.Join(root, "d"))
	want(t, "MKDIR", c.do(opMkdir, 1, &fuse.MkdirIn{Mode: 0o700}, name("e"), &e), fuse.OK)
	want(t, "RMDIR", c.do(opRmdir, 1, nil, name("e"), nil), fuse.OK)
}

func TestRename(t *testing.T) {
	root := t.TempDir()
	for _, f := range []string{"a", "b"} {
		os.WriteFile(filepath.Join(root, f), []byte(f), 0o600)
	}
	os.Mkdir(filepath.Join(root, "d"), 0o700)
	c := newClient(t, Config{Root: root})
	a, d := c.walk("a"), c.walk("d")
	mv := func(dir uint64, flags uint32, from, to string) fuse.Status {
		return c.do(opRename2, 1, &fuse.RenameIn{Newdir: dir, Flags: flags}, name(from, to), nil)
	}
	want(t, "NOREPLACE", mv(1, unix.RENAME_NOREPLACE, "a", "b"), fuse.Status(unix.EEXIST))
	want(t, "EXCHANGE", mv(1, unix.RENAME_EXCHANGE, "a", "b"), fuse.OK)
	if b, _ := os.ReadFile(filepath.Join(root, "b")); string(b) != "a" {
		t.Errorf("b holds %q", b)
	}
	if e := c.walk("b"); e.NodeId != a.NodeId {
		t.Errorf("node %d, want %d", e.NodeId, a.NodeId)
	}
	want(t, "unknown flag", mv(1, 1<<20, "a", "b"), fuse.EINVAL)
	want(t, "RENAME2", mv(d.NodeId, 0, "b", "c"), fuse.OK)
	old := struct {
		fuse.InHeader
		Newdir uint64
	}{Newdir: d.NodeId}
	want(t, "RENAME", c.do(opRename, 1, &old, name("a", "c"), nil), fuse.OK)
	if b, _ := os.ReadFile(filepath.Join(root, "d", "c")); string(b) != "b" {
		t.Errorf("c holds %q", b)
	}
	// Seen by the other side.
	os.Rename(filepath.Join(root, "d", "c"), filepath.Join(root, "host"))
	if _, st := c.lookup(d.NodeId, "c"); st != fuse.ENOENT {
		t.Errorf("moved away by the host: %v", st)
	}
	c.walk("host")
}

func TestDirectory(t *testing.T) {
	root := t.TempDir()
	const files = 1000
	for i := range files {
		os.WriteFile(filepath.Join(root, fmt.Sprintf("file-%04d", i)), nil, 0o600)
	}
	for _, plus := range []bool{false, true} {
		for _, size := range []uint32{300, 4096, 1 << 20} {
			t.Run(fmt.Sprintf("plus=%v/size=%d", plus, size), func(t *testing.T) {
				c := newClient(t, Config{Root: root})
				all := c.list(1, size, plus)
				if len(all) != files+2 {
					t.Fatalf("%d entries, want %d", len(all), files+2)
				}
				for _, s := range []string{"file-0000", "file-0999", ".", ".."} {
					if _, ok := all[s]; !ok {
						t.Errorf("%q missing", s)
					}
				}
				if e := c.walk("file-0007"); all["file-0007"].Ino != e.Ino {
					t.Errorf("inode %d listed, %d looked up", all["file-0007"].Ino, e.Ino)
				}
				if all[".."].Ino != all["."].Ino {
					t.Error("the root's parent shows")
				}
			})
		}
	}
	c := newClient(t, Config{Root: root})
	var h fuse.OpenOut
	want(t, "OPENDIR", c.do(opOpendir, 1, &fuse.OpenIn{}, nil, &h), fuse.OK)
	_, st := c.raw(c.request(opReaddir, 1, &fuse.ReadIn{Fh: h.Fh, Size: 8}, nil), 8)
	want(t, "READDIR into 8 bytes", st, fuse.EINVAL)
	want(t, "FSYNCDIR", c.do(opFsyncdir, 1, &fuse.FsyncIn{Fh: h.Fh}, nil, nil), fuse.OK)
	_, st = c.read(h.Fh, 0, 1)
	want(t, "READ of a directory", st, fuse.EBADF)
}

func TestSetattr(t *testing.T) {
	root := t.TempDir()
	path := filepath.Join(root, "f")
	os.WriteFile(path, []byte("abc"), 0o600)
	os.Symlink("nowhere", filepath.Join(root, "l"))
	c := newClient(t, Config{Root: root})
	f, l := c.walk("f"), c.walk("l")
	set := func(node uint64, in fuse.SetAttrIn) fuse.AttrOut {
		t.Helper()
		var out fuse.AttrOut
		want(t, "SETATTR", c.do(opSetattr, node, &in, nil, &out), fuse.OK)
		return out
	}
	in := fuse.SetAttrIn{}
	in.Valid, in.Mode, in.Uid, in.Gid = fuse.FATTR_MODE|fuse.FATTR_UID|fuse.FATTR_GID, 0o4711, 1234, 4321
	if out := set(f.NodeId, in); out.Mode != unix.S_IFREG|0o4711 || out.Uid != 1234 || out.Gid != 4321 {
		t.Errorf("mode %o, owner %d:%d", out.Mode, out.Uid, out.Gid)
	}
	in = fuse.SetAttrIn{}
	in.Valid, in.Gid = fuse.FATTR_GID, 7
	if out := set(f.NodeId, in); out.Mode != unix.S_IFREG|0o711 || out.Uid != 1234 || out.Gid != 7 {
		t.Errorf("after chown: mode %o, owner %d:%d", out.Mode, out.Uid, out.Gid)
	}
	in = fuse.SetAttrIn{}
	in.Valid, in.Atime, in.Atimensec = fuse.FATTR_ATIME, 1000, 5
	if out := set(f.NodeId, in); out.Atime != 1000 || out.Atimensec != 5 || time.Since(out.ModTime()) > time.Hour {
		t.Errorf("atime %d.%09d, mtime %v", out.Atime, out.Atimensec, out.ModTime())
	}
	in.Valid = fuse.FATTR_MTIME | fuse.FATTR_ATIME | fuse.FATTR_ATIME_NOW
	in.Mtime, in.Mtimensec = 2000, 999_999_999
	if out := set(f.NodeId, in); out.Mtime != 2000 || out.Mtimensec != 999_999_999 || time.Since(out.AccessTime()) > time.Hour {
		t.Errorf("mtime %d.%09d, atime %v", out.Mtime, out.Mtimensec, out.AccessTime())
	}
	// A link's own owner and times, never its target's.
	in = fuse.SetAttrIn{}
	in.Valid, in.Uid, in.Mtime = fuse.FATTR_UID|fuse.FATTR_MTIME, 99, 3000
	if out := set(l.NodeId, in); out.Uid != 99 || out.Mtime != 3000 {
		t.Errorf("link: owner %d, mtime %d", out.Uid, out.Mtime)
	}
}

func TestKillPrivileges(t *testing.T) {
	for _, tc := range []struct {
		name        string
		mode, after uint32
		do          func(c *client, node, fh uint64) fuse.Status
	}{
		{"write by root", 0o6755, 0o6755, func(c *client, _, fh uint64) fuse.Status {
			return c.write(fh, 0, "x", fuse.WriteIn{})
		}},
		{"write by a user", 0o6755, 0o755, func(c *client, _, fh uint64) fuse.Status {
			return c.write(fh, 0, "x", fuse.WriteIn{WriteFlags: writeKillSuidgid})
		}},
		{"mandatory locking's bit", 0o2744, 0o2744, func(c *client, _, fh uint64) fuse.Status {
			return c.write(fh, 0, "x", fuse.WriteIn{WriteFlags: writeKillSuidgid})
		}},
		{"write through a handle for reading", 0o6755, 0o6755, func(c *client, node, _ uint64) fuse.Status {
			fh, st := c.open(node, unix.O_RDONLY)
			want(t, "OPEN", st, fuse.OK)
			for _, data := range []string{"", "x"} {
				want(t, "WRITE", c.write(fh, 0, data, fuse.WriteIn{WriteFlags: writeKillSuidgid}), fuse.EBADF)
			}
			return fuse.OK
		}},
		{"truncate by a user", 0o4755, 0o755, func(c *client, node, _ uint64) fuse.Status {
			in := fuse.SetAttrIn{}
			in.Valid = fuse.FATTR_SIZE | fuse.FATTR_KILL_SUIDGID
			return c.do(opSetattr, node, &in, nil, nil)
		}},
		{"open by a user", 0o4755, 0o755, func(c *client, node, _ uint64) fuse.Status {
			return c.do(opOpen, node, &fuse.OpenIn{Flags: unix.O_WRONLY | unix.O_TRUNC, Mode: openKillSuidgid}, nil, nil)
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			root := t.TempDir()
			path := filepath.Join(root, "f")
			os.WriteFile(path, nil, 0o600)
			unix.Chmod(path, tc.mode)
			c := newClient(t, Config{Root: root})
			e := c.walk("f")
			fh, st := c.open(e.NodeId, unix.O_RDWR)
			want(t, "OPEN", st, fuse.OK)
			want(t, tc.name, tc.do(c, e.NodeId, fh), fuse.OK)
			var out fuse.AttrOut
			want(t, "GETATTR", c.do(opGetattr, e.NodeId, &fuse.GetAttrIn{}, nil, &out), fuse.OK)
			if out.Mode != unix.S_IFREG|tc.after {
				t.Errorf("mode %o, want %o", out.Mode, tc.after)
			}
		})
	}
}

func TestOther(t *testing.T) {
	root := t.TempDir()
	c := newClient(t, Config{Root: root})
	f, st := c.create(1, "f", unix.O_RDWR, 0o600)
	want(t, "CREATE", st, fuse.OK)

	var sfs fuse.StatfsOut
	want(t, "STATFS", c.do(opStatfs, 1, nil, nil, &sfs), fuse.OK)
	if sfs.Blocks == 0 || sfs.NameLen == 0 {
		t.Errorf("%+v", sfs)
	}
	want(t, "SYNCFS", c.do(opSyncfs, 1, nil, make([]byte, 8), nil), fuse.OK)
	want(t, "FSYNC", c.do(opFsync, f.NodeId, &fuse.FsyncIn{Fh: f.Fh}, nil, nil), fuse.OK)
	want(t, "FDATASYNC", c.do(opFsync, f.NodeId, &fuse.FsyncIn{Fh: f.Fh, FsyncFlags: fsyncDatasync}, nil, nil), fuse.OK)
	want(t, "FLUSH", c.do(25, f.NodeId, &fuse.FlushIn{Fh: f.Fh}, nil, nil), fuse.ENOSYS)
	want(t, "ACCESS", c.do(34, f.NodeId, &fuse.AccessIn{}, nil, nil), fuse.ENOSYS)
	want(t, "IOCTL", c.do(opIoctl, f.NodeId, &fuse.IoctlIn{Fh: f.Fh}, nil, nil), fuse.Status(unix.ENOTTY))

	switch st := c.do(opFallocate, f.NodeId, &fuse.FallocateIn{Fh: f.Fh, Length: 1 << 20}, nil, nil); st {
	case fuse.OK, fuse.Status(unix.EOPNOTSUPP):
	default:
		t.Errorf("FALLOCATE: %v", st)
	}
	want(t, "WRITE", c.write(f.Fh, 4<<20, "data", fuse.WriteIn{}), fuse.OK)
	var off fuse.LseekOut
	want(t, "SEEK_HOLE", c.do(opLseek, f.NodeId, &fuse.LseekIn{Fh: f.Fh, Offset: 4<<20 + 1, Whence: unix.SEEK_HOLE}, nil, &off), fuse.OK)
	if off.Offset != 4<<20+4 {
		t.Errorf("hole at %d", off.Offset)
	}
	want(t, "SEEK_SET", c.do(opLseek, f.NodeId, &fuse.LseekIn{Fh: f.Fh}, nil, nil), fuse.EINVAL)

	g, st := c.create(1, "g", unix.O_RDWR, 0o600)
	want(t, "CREATE", st, fuse.OK)
	var n fuse.WriteOut
	cp := fuse.CopyFileRangeIn{FhIn: f.Fh, OffIn: 4 << 20, NodeIdOut: g.NodeId, FhOut: g.Fh, OffOut: 1, Len: 100}
	if st := c.do(opCopyFileRange, f.NodeId, &cp, nil, &n); st.Ok() {
		if got, _ := c.read(g.Fh, 0, 10); got != "\x00data" || n.Size != 4 {
			t.Errorf("copied %q, %d bytes", got, n.Size)
		}
	} else if st == fuse.ENOSYS {
		t.Error("COPY_FILE_RANGE: ENOSYS")
	}

	var tmp fuse.CreateOut
	st = c.do(opTmpfile, 1, &fuse.CreateIn{Flags: unix.O_RDWR, Mode: unix.S_IFREG | 0o640}, name("/"), &tmp)
	if st == fuse.Status(unix.EOPNOTSUPP) {
		t.Skip("no O_TMPFILE here")
	}
	want(t, "TMPFILE", st, fuse.OK)
	want(t, "WRITE", c.write(tmp.Fh, 0, "tmp", fuse.WriteIn{}), fuse.OK)
	want(t, "LINK", c.do(opLink, 1, &fuse.LinkIn{Oldnodeid: tmp.NodeId}, name("t"), nil), fuse.OK)
	if b, err := os.ReadFile(filepath.Join(root, "t")); string(b) != "tmp" {
		t.Errorf("%q, %v", b, err)
	}
}

func TestXattr(t *testing.T) {
	root := t.TempDir()
	os.WriteFile(filepath.Join(root, "f"), nil, 0o600)
	os.Symlink("f", filepath.Join(root, "l"))
	c := newClient(t, Config{Root: root})
	f, l := c.walk("f"), c.walk("l")
	set := func(node uint64, key, value string) fuse.Status {
		return c.do(opSetxattr, node, &setxattrIn{Size: uint32(len(value))}, append(name(key), value...), nil)
	}
	get := func(node uint64, key string, size int) (string, fuse.Status) {
		b, st := c.raw(c.request(opGetxattr, node, &fuse.GetXAttrIn{Size: uint32(size)}, name(key)), max(size, 8))
		return string(b), st
	}
	big := strings.Repeat("v", 2000)
	want(t, "SETXATTR", set(f.NodeId, "trusted.big", big), fuse.OK)
	if v, st := get(f.NodeId, "trusted.big", 64<<10); v != big || !st.Ok() {
		t.Errorf("%d bytes, %v", len(v), st)
	}
	_, st := get(f.NodeId, "trusted.big", 10)
	want(t, "GETXATTR into 10 bytes", st, fuse.ERANGE)
	if v, st := get(f.NodeId, "trusted.big", 0); !st.Ok() || binary.LittleEndian.Uint32([]byte(v)) != 2000 {
		t.Errorf("size: %q, %v", v, st)
	}
	_, st = get(f.NodeId, "trusted.none", 10)
	want(t, "GETXATTR of none", st, fuse.ENODATA)
	want(t, "SETXATTR on a link", set(l.NodeId, "trusted.l", "x"), fuse.OK)
	if _, st := get(f.NodeId, "trusted.l", 10); st != fuse.ENODATA {
		t.Errorf("went through the link: %v", st)
	}
	b, st := c.raw(c.request(opListxattr, f.NodeId, &fuse.GetXAttrIn{Size: 1000}, nil), 1000)
	if !strings.Contains(string(b), "trusted.big\x00") || !st.Ok() {
		t.Errorf("list %q, %v", b, st)
	}
	want(t, "REMOVEXATTR", c.do(opRemovexattr, f.NodeId, nil, name("trusted.big"), nil), fuse.OK)
	want(t, "REMOVEXATTR", c.do(opRemovexattr, f.NodeId, nil, name("trusted.big"), nil), fuse.ENODATA)
	want(t, "SETXATTR too short", c.do(opSetxattr, f.NodeId, &setxattrIn{Size: 2}, append(name("user.x"), 'v'), nil), fuse.EINVAL)
}
