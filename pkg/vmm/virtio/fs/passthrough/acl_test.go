package passthrough

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
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

// TestACL: the guest neither sees nor sets access control lists; a folder's default one counts all the same.
func TestACL(t *testing.T) {
	root := t.TempDir()
	c := newClient(t, Config{Root: root})
	for _, d := range []string{"plain", "listed"} {
		if err := os.Mkdir(filepath.Join(root, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	listed := filepath.Join(root, "listed")
	list := acl(1000, 6)
	for _, key := range []string{"system.posix_acl_access", "system.posix_acl_default"} {
		err := unix.Setxattr(listed, key, list, 0)
		if errors.Is(err, unix.EOPNOTSUPP) {
			t.Skip("the file system here has no access control lists")
		}
		if err != nil {
			t.Fatal(err)
		}
		node := c.walk("listed").NodeId
		refused := fuse.Status(unix.EOPNOTSUPP)
		want(t, "SETXATTR of "+key, c.do(opSetxattr, node, &setxattrIn{Size: uint32(len(list))}, append(name(key), list...), nil), refused)
		want(t, "REMOVEXATTR of "+key, c.do(opRemovexattr, node, nil, name(key), nil), refused)
		_, st := c.raw(c.request(opGetxattr, node, &fuse.GetXAttrIn{Size: 1000}, name(key)), 1000)
		want(t, "GETXATTR of "+key, st, refused)
	}
	if err := unix.Setxattr(listed, "trusted.x", nil, 0); err != nil {
		t.Fatal(err)
	}
	names, st := c.raw(c.request(opListxattr, c.walk("listed").NodeId, &fuse.GetXAttrIn{Size: 1000}, nil), 1000)
	want(t, "LISTXATTR", st, fuse.OK)
	if strings.Contains(string(names), aclPrefix) || !strings.Contains(string(names), "trusted.x\x00") {
		t.Errorf("list %q", names)
	}
	for dir, mode := range map[string]uint32{"plain": 0o777, "listed": 0o770} {
		var e fuse.EntryOut
		want(t, "MKDIR", c.do(opMkdir, c.walk(dir).NodeId, &fuse.MkdirIn{Mode: 0o777, Umask: 0o077}, name("sub"), &e), fuse.OK)
		if e.Mode&0o7777 != mode {
			t.Errorf("a folder made in %s: mode %o, want %o", dir, e.Mode&0o7777, mode)
		}
		f, st := c.create(c.walk(dir).NodeId, "f", unix.O_RDWR, 0o777)
		want(t, "CREATE", st, fuse.OK)
		if f.Mode&0o7777 != mode {
			t.Errorf("a file made in %s: mode %o, want %o", dir, f.Mode&0o7777, mode)
		}
	}
}

// TestKeepCache: a guest keeps what it knows of a file's content only if all of that is from a time when no change could hide
// behind the time stamp of the one before, and never what is in memory only.
func TestKeepCache(t *testing.T) {
	for _, memory := range []bool{false, true} {
		t.Run(fmt.Sprintf("memory=%v", memory), func(t *testing.T) {
			root := t.TempDir()
			if memory {
				mount(t, "tmpfs", root, "tmpfs", 0, "")
			}
			testKeepCache(t, root)
		})
	}
}

func testKeepCache(t *testing.T, root string) {
	path := filepath.Join(root, "f")
	if err := os.WriteFile(path, []byte("1"), 0o600); err != nil {
		t.Fatal(err)
	}
	var sfs unix.Statfs_t
	if err := unix.Statfs(root, &sfs); err != nil {
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
	for range 2 {
		if kept() {
			t.Error("kept of a file that has just changed")
		}
	}
	tree := c.srv.get()
	if tree.quiet < 35*time.Second {
		t.Errorf("a host's mapped pages have %v to be written back", tree.quiet)
	}
	tree.quiet = time.Second
	time.Sleep(tree.quiet + time.Second/10)
	if kept() {
		t.Error("kept what may have been read between two changes")
	}
	if got, want := kept(), sfs.Type != unix.TMPFS_MAGIC; got != want {
		t.Errorf("of a file that has not changed: kept %v, want %v", got, want)
	}
	tree.quiet = quiet
	if kept() {
		t.Error("kept of a file that changed not long ago")
	}
	if err := os.Chmod(path, 0o640); err != nil {
		t.Fatal(err)
	}
	tree.quiet = 0
	if kept() {
		t.Error("kept after a change")
	}
}
