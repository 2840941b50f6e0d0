package passthrough

import (
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// acl is an access control list (acl(5)) as an extended attribute: everybody's rights as in a mode of 0750, and one user's.
func acl(user uint32, rights uint16) []byte {
	b := binary.LittleEndian.AppendUint32(nil, 2) // POSIX_ACL_XATTR_VERSION
	const nobody = 1<<32 - 1
	for _, e := range []struct {
		tag, perm uint16
		id        uint32
	}{{0x01, 7, nobody}, {0x02, rights, user}, {0x04, 5, nobody}, {0x10, 7, nobody}, {0x20, 0, nobody}} {
		b = binary.LittleEndian.AppendUint16(b, e.tag)
		b = binary.LittleEndian.AppendUint16(b, e.perm)
		b = binary.LittleEndian.AppendUint32(b, e.id)
	}
	return b
}

// TestACL: a folder's default list, where it has one, takes a umask's place; a list may end set-group-id.
func TestACL(t *testing.T) {
	root := t.TempDir()
	c := newClient(t, Config{Root: root})
	for _, d := range []string{"plain", "listed"} {
		if err := os.Mkdir(filepath.Join(root, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	set := func(node uint64, key string, flags uint32) fuse.Status {
		list := acl(1000, 6)
		return c.do(opSetxattr, node, &fuse.SetXAttrIn{Size: uint32(len(list)), SetXAttrFlags: flags}, append(name(key), list...), nil)
	}
	st := set(c.walk("listed").NodeId, "system.posix_acl_default", 0)
	if st == fuse.Status(unix.EOPNOTSUPP) {
		t.Skip("the file system here has no access control lists")
	}
	want(t, "SETXATTR of a default list", st, fuse.OK)
	for dir, mode := range map[string]uint32{"plain": 0o700, "listed": 0o770} {
		var e fuse.EntryOut
		want(t, "MKDIR", c.do(opMkdir, c.walk(dir).NodeId, &fuse.MkdirIn{Mode: 0o777, Umask: 0o077}, name("sub"), &e), fuse.OK)
		if e.Mode&0o7777 != mode {
			t.Errorf("a folder made in %s under the umask 077: mode %o, want %o", dir, e.Mode&0o7777, mode)
		}
		var f fuse.CreateOut
		st := c.do(opCreate, c.walk(dir).NodeId, &fuse.CreateIn{Flags: unix.O_RDWR | unix.O_CREAT, Mode: unix.S_IFREG | 0o777, Umask: 0o077}, name("f"), &f)
		want(t, "CREATE", st, fuse.OK)
		if f.Mode&0o7777 != mode {
			t.Errorf("a file made in %s under the umask 077: mode %o, want %o", dir, f.Mode&0o7777, mode)
		}
	}
	for flags, mode := range map[uint32]uint32{0: 0o2770, fuse.SETXATTR_ACL_KILL_SGID: 0o770} {
		path := filepath.Join(root, "f")
		if err := errors.Join(os.WriteFile(path, nil, 0o600), unix.Chmod(path, 0o2770)); err != nil {
			t.Fatal(err)
		}
		want(t, "SETXATTR of a list", set(c.walk("f").NodeId, aclAccess, flags), fuse.OK)
		if a := c.walk("f").Mode & 0o7777; a != mode {
			t.Errorf("a list set with the flags %d: mode %o, want %o", flags, a, mode)
		}
	}
}

// TestKeepCache: a guest keeps what it knows of a file's content only if all of that is from a time when no change could hide
// behind the time stamp of the one before.
func TestKeepCache(t *testing.T) {
	root := t.TempDir()
	path := filepath.Join(root, "f")
	if err := os.WriteFile(path, []byte("1"), 0o600); err != nil {
		t.Fatal(err)
	}
	c := newClient(t, Config{Root: root})
	kept := func() bool {
		t.Helper()
		var out fuse.OpenOut
		want(t, "OPEN", c.do(opOpen, c.walk("f").NodeId, &fuse.OpenIn{}, nil, &out), fuse.OK)
		c.release(out.Fh)
		return out.OpenFlags&fuse.FOPEN_KEEP_CACHE != 0
	}
	if kept() {
		t.Error("kept of a file that has just changed")
	}
	time.Sleep(2*Validity + Validity/10)
	if kept() {
		t.Error("kept what may have been read between two changes")
	}
	if !kept() {
		t.Error("not kept of a file that has not changed")
	}
	if err := os.Chmod(path, 0o640); err != nil {
		t.Fatal(err)
	}
	if kept() {
		t.Error("kept after a change")
	}
}
