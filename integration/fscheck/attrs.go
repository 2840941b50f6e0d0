package fscheck

import (
	"bytes"
	"encoding/binary"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func owners(t *testing.T, dir string) {
	path := filepath.Join(dir, "f")
	write(t, path, "x")
	for _, id := range []int{1, 1000, 65534, 123_456_789, 1<<32 - 2} {
		must(t, unix.Chown(path, id, id-1))
		if st := lstat(t, path); st.Uid != uint32(id) || st.Gid != uint32(id-1) {
			t.Errorf("chown to %d:%d: owner %d:%d", id, id-1, st.Uid, st.Gid)
		}
	}
	// What another user makes is that user's.
	must(t, as(t, 123_456, 654_321, func() error { return os.Mkdir(filepath.Join(dir, "theirs"), 0o750) }))
	if st := lstat(t, filepath.Join(dir, "theirs")); st.Uid != 123_456 || st.Gid != 654_321 {
		t.Errorf("made by 123456:654321: owner %d:%d", st.Uid, st.Gid)
	}
	must(t, unix.Chmod(path, 0o600))
	err := as(t, 1000, 1000, func() error { _, err := os.ReadFile(path); return err })
	wants(t, "another's private file", err, unix.EACCES)
	wants(t, "chown of another's", as(t, 1000, 1000, func() error { return unix.Chown(path, 1000, 1000) }), unix.EPERM)
	wants(t, "chmod of another's", as(t, 1000, 1000, func() error { return unix.Chmod(path, 0o777) }), unix.EPERM)
}

func privilegeBits(t *testing.T, dir string) {
	path := filepath.Join(dir, "f")
	reset := func() {
		t.Helper()
		write(t, path, "some content")
		must(t, unix.Chmod(path, 0o6777))
		if st := lstat(t, path); st.Mode&0o7777 != 0o6777 {
			t.Fatalf("mode %o", st.Mode)
		}
	}
	reset()
	for _, c := range []struct {
		what string
		do   func() error
	}{
		{"another user's write", func() error {
			return as(t, 1000, 1000, func() error {
				fd, err := unix.Open(path, unix.O_WRONLY|unix.O_CLOEXEC, 0)
				if err == nil {
					_, err = unix.Write(fd, []byte("x"))
					unix.Close(fd)
				}
				return err
			})
		}},
		{"another user's truncation", func() error {
			return as(t, 1000, 1000, func() error { return unix.Truncate(path, 1) })
		}},
		{"another user's O_TRUNC", func() error {
			return as(t, 1000, 1000, func() error {
				fd, err := unix.Open(path, unix.O_WRONLY|unix.O_TRUNC|unix.O_CLOEXEC, 0)
				unix.Close(fd)
				return err
			})
		}},
		{"a chown", func() error { return unix.Chown(path, 5, 5) }},
	} {
		reset()
		must(t, c.do())
		if st := lstat(t, path); st.Mode&0o7777 != 0o777 {
			t.Errorf("after %s the mode is %o, want 777", c.what, st.Mode&0o7777)
		}
		must(t, unix.Chown(path, 0, 0))
	}
	reset()
	fd := open(t, path, unix.O_WRONLY)
	_, err := unix.Write(fd, []byte("root"))
	must(t, err)
	if st := lstat(t, path); st.Mode&0o7777 != 0o6777 {
		t.Errorf("after root's write the mode is %o, want 6777", st.Mode&0o7777)
	}
}

func stickyFolder(t *testing.T, dir string) {
	tmp := filepath.Join(dir, "tmp")
	must(t, os.Mkdir(tmp, 0o755))
	must(t, unix.Chmod(tmp, 0o1777))
	f := filepath.Join(tmp, "f")
	must(t, as(t, 1000, 1000, func() error { return os.WriteFile(f, nil, 0o666) }))
	wants(t, "remove another's file in a sticky folder", as(t, 1001, 1001, func() error { return unix.Unlink(f) }), unix.EPERM)
	wants(t, "rename it", as(t, 1001, 1001, func() error { return os.Rename(f, f+"2") }), unix.EPERM)
	must(t, as(t, 1000, 1000, func() error { return unix.Unlink(f) }))
}

func setgidFolder(t *testing.T, dir string) {
	d := filepath.Join(dir, "d")
	must(t, os.Mkdir(d, 0o755))
	must(t, unix.Chown(d, 0, 4321))
	must(t, unix.Chmod(d, 0o2777))
	must(t, as(t, 1000, 1000, func() error {
		if err := os.WriteFile(filepath.Join(d, "f"), nil, 0o644); err != nil {
			return err
		}
		return os.Mkdir(filepath.Join(d, "sub"), 0o755)
	}))
	if st := lstat(t, filepath.Join(d, "f")); st.Gid != 4321 || st.Uid != 1000 {
		t.Errorf("owner of the file: %d:%d, want 1000:4321", st.Uid, st.Gid)
	}
	if st := lstat(t, filepath.Join(d, "sub")); st.Gid != 4321 || st.Mode&unix.S_ISGID == 0 {
		t.Errorf("the folder's group is %d, its mode %o, want 4321 and set-group-id", st.Gid, st.Mode)
	}
}

func times(t *testing.T, dir string) {
	path := filepath.Join(dir, "f")
	write(t, path, "x")
	set := func(at, mt unix.Timespec, flags int, path string) {
		t.Helper()
		must(t, unix.UtimesNanoAt(unix.AT_FDCWD, path, []unix.Timespec{at, mt}, flags))
	}
	set(unix.Timespec{Sec: 1_000_000_001, Nsec: 123_456_789}, unix.Timespec{Sec: 2_000_000_002, Nsec: 987_654_321}, 0, path)
	st := lstat(t, path)
	if st.Atim != (unix.Timespec{Sec: 1_000_000_001, Nsec: 123_456_789}) || st.Mtim != (unix.Timespec{Sec: 2_000_000_002, Nsec: 987_654_321}) {
		t.Errorf("atime %v, mtime %v", st.Atim, st.Mtim)
	}
	set(unix.Timespec{Nsec: unix.UTIME_OMIT}, unix.Timespec{Nsec: unix.UTIME_NOW}, 0, path)
	if now := lstat(t, path); now.Atim.Sec != 1_000_000_001 || now.Mtim.Sec == 2_000_000_002 {
		t.Errorf("after UTIME_OMIT and UTIME_NOW: atime %v, mtime %v", now.Atim, now.Mtim)
	}
	// Before 1970, too.
	set(unix.Timespec{Sec: -1000}, unix.Timespec{Sec: -2000}, 0, path)
	if st := lstat(t, path); st.Mtim.Sec != -2000 {
		t.Errorf("mtime %v, want -2000 s", st.Mtim)
	}
	link := filepath.Join(dir, "s")
	must(t, os.Symlink("f", link))
	set(unix.Timespec{Sec: 7}, unix.Timespec{Sec: 8}, unix.AT_SYMLINK_NOFOLLOW, link)
	if l, f := lstat(t, link), lstat(t, path); l.Mtim.Sec != 8 || f.Mtim.Sec == 8 {
		t.Errorf("times of a link: %v, of its target: %v", l.Mtim, f.Mtim)
	}
	// Only an owner may set them to anything.
	must(t, unix.Chmod(path, 0o666))
	wants(t, "another user's utimes", as(t, 1000, 1000, func() error {
		return unix.UtimesNanoAt(unix.AT_FDCWD, path, []unix.Timespec{{Sec: 1}, {Sec: 1}}, 0)
	}), unix.EPERM)
	before := lstat(t, path)
	must(t, unix.Chmod(path, 0o600))
	if after := lstat(t, path); after.Mtim != before.Mtim {
		t.Error("chmod changed the mtime")
	}
}

func statx(t *testing.T, dir string) {
	path := filepath.Join(dir, "f")
	must(t, os.WriteFile(path, bytes.Repeat([]byte("x"), 10_000), 0o640))
	var sx unix.Statx_t
	must(t, unix.Statx(unix.AT_FDCWD, path, unix.AT_STATX_FORCE_SYNC, unix.STATX_BASIC_STATS, &sx))
	st := lstat(t, path)
	if sx.Ino != st.Ino || sx.Size != 10_000 || uint32(sx.Mode) != st.Mode || sx.Nlink != 1 || sx.Mask&unix.STATX_BASIC_STATS != unix.STATX_BASIC_STATS {
		t.Errorf("statx says %+v, stat %+v", sx, st)
	}
	if st.Blksize < 512 || st.Blocks*512 < 10_000 {
		t.Errorf("blocks of %d bytes, %d times 512 bytes for 10,000", st.Blksize, st.Blocks)
	}
	var fs unix.Statfs_t
	must(t, unix.Statfs(dir, &fs))
	if fs.Blocks == 0 || fs.Bavail == 0 || fs.Bsize == 0 || fs.Namelen != 255 {
		t.Errorf("statfs says %+v", fs)
	}
}

func userXattrs(t *testing.T, dir string) {
	path := filepath.Join(dir, "f")
	write(t, path, "x")
	const name = "user.check"
	must(t, unix.Setxattr(path, name, []byte("value"), unix.XATTR_CREATE))
	wants(t, "XATTR_CREATE of one that is there", unix.Setxattr(path, name, nil, unix.XATTR_CREATE), unix.EEXIST)
	wants(t, "XATTR_REPLACE of none", unix.Setxattr(path, "user.none", nil, unix.XATTR_REPLACE), unix.ENODATA)
	buf := make([]byte, 64)
	if n, err := unix.Getxattr(path, name, buf); err != nil || string(buf[:n]) != "value" {
		t.Errorf("%q, %v", buf[:max(n, 0)], err)
	}
	_, err := unix.Getxattr(path, name, buf[:2])
	wants(t, "too short a buffer", err, unix.ERANGE)
	if n, err := unix.Getxattr(path, name, nil); n != 5 {
		t.Errorf("the value's size is %d (%v), want 5", n, err)
	}
	must(t, unix.Setxattr(path, "user.empty", nil, 0))
	n, err := unix.Listxattr(path, buf)
	must(t, err)
	if list := string(buf[:n]); !strings.Contains(list, name+"\x00") || !strings.Contains(list, "user.empty\x00") {
		t.Errorf("list %q", list)
	}
	must(t, unix.Removexattr(path, name))
	_, err = unix.Getxattr(path, name, buf)
	wants(t, "a removed attribute", err, unix.ENODATA)
	must(t, os.Symlink("f", filepath.Join(dir, "s")))
	wants(t, "user attribute of a link", unix.Lsetxattr(filepath.Join(dir, "s"), name, nil, 0), unix.EPERM)
}

// fileCapabilities sets security.capability as setcap does.
func fileCapabilities(t *testing.T, dir string) {
	path := filepath.Join(dir, "f")
	write(t, path, "x")
	must(t, unix.Chmod(path, 0o755))
	// struct vfs_cap_data, revision 2: CAP_NET_RAW, permitted and effective.
	caps := make([]byte, 20)
	binary.LittleEndian.PutUint32(caps, 0x02000001)
	binary.LittleEndian.PutUint32(caps[4:], 1<<unix.CAP_NET_RAW)
	must(t, unix.Setxattr(path, "security.capability", caps, 0))
	buf := make([]byte, 64)
	if n, err := unix.Getxattr(path, "security.capability", buf); err != nil || !bytes.Equal(buf[:n], caps) {
		t.Errorf("%x, %v, want %x", buf[:max(n, 0)], err, caps)
	}
	// A write takes them.
	write(t, path, "changed")
	_, err := unix.Getxattr(path, "security.capability", buf)
	wants(t, "after a write", err, unix.ENODATA)
}

// acls lets one more user read a file (acl(5)).
func acls(t *testing.T, dir string) {
	path := filepath.Join(dir, "f")
	write(t, path, "for user 1000")
	must(t, unix.Chmod(path, 0o600))
	acl := []byte{2, 0, 0, 0}
	for _, e := range []struct {
		tag, perm uint16
		id        uint32
	}{{0x01, 6, 1<<32 - 1}, {0x02, 4, 1000}, {0x04, 0, 1<<32 - 1}, {0x10, 4, 1<<32 - 1}, {0x20, 0, 1<<32 - 1}} {
		acl = binary.LittleEndian.AppendUint16(acl, e.tag)
		acl = binary.LittleEndian.AppendUint16(acl, e.perm)
		acl = binary.LittleEndian.AppendUint32(acl, e.id)
	}
	must(t, unix.Setxattr(path, "system.posix_acl_access", acl, 0))
	read := func() error { _, err := os.ReadFile(path); return err }
	if err := as(t, 1000, 1000, read); err != nil {
		t.Errorf("the user that was let in: %v", err)
	}
	wants(t, "another user", as(t, 1001, 1001, read), unix.EACCES)
	// A folder's default is what its files start with.
	sub := filepath.Join(dir, "sub")
	must(t, os.Mkdir(sub, 0o755))
	must(t, unix.Setxattr(sub, "system.posix_acl_default", acl, 0))
	path = filepath.Join(sub, "f")
	write(t, path, "for user 1000")
	if err := as(t, 1000, 1000, read); err != nil {
		t.Errorf("by the folder's default: %v", err)
	}
	wants(t, "another user, by the folder's default", as(t, 1001, 1001, read), unix.EACCES)
}
