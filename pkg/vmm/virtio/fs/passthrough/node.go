package passthrough

import (
	"strconv"
	"sync/atomic"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// stale is the answer for an inode that the guest should not know (any more).
const stale = fuse.Status(unix.ESTALE)

// nodeKey tells inodes apart. The mount is part of it: the same file behind a read-only and a writable mount is two.
type nodeKey struct {
	mount    uint64
	major    uint32
	minor    uint32
	ino      uint64
	fileType uint16
}

// node is a live inode. Its descriptor keeps the host's inode alive, so that its key stays its own.
type node struct {
	id  uint64
	key nodeKey
	typ uint32 // S_IFMT bits of the mode; they never change
	fd  int    // O_PATH
	// home is the device of the guest's file system that the inode is in, dev what its number there says about its own.
	home uint64
	dev  dev

	opened  atomic.Int64 // status change, in ns since 1970, of the content that was opened last; see settled
	refs    atomic.Int64 // one of the table, one of each user
	lookups uint64       // that the guest has not yet forgotten; guarded by tree.mu
}

// device is the number of the file system that the inode is on.
func device(st *unix.Statx_t) uint64 { return unix.Mkdev(st.Dev_major, st.Dev_minor) }

func keyOf(st *unix.Statx_t) nodeKey {
	return nodeKey{mount: st.Mnt_id, major: st.Dev_major, minor: st.Dev_minor, ino: st.Ino, fileType: st.Mode & unix.S_IFMT}
}

// put gives a reference back.
func (n *node) put() {
	if n.refs.Add(-1) == 0 {
		unix.Close(n.fd)
	}
}

// path leads to the inode itself, a symbolic link too, wherever it is in the folder now.
func (n *node) path() string { return "/proc/self/fd/" + strconv.Itoa(n.fd) }

// open opens the inode: a regular file or a directory, nothing else.
func (n *node) open(flags int) (int, error) {
	switch n.typ {
	case unix.S_IFREG, unix.S_IFDIR:
		for {
			fd, err := unix.Open(n.path(), flags|unix.O_CLOEXEC|unix.O_NOCTTY, 0)
			if err != unix.EINTR {
				return fd, err
			}
		}
	case unix.S_IFLNK:
		return -1, unix.ELOOP
	}
	return -1, unix.ENXIO
}

// node returns a live inode, or nil; the caller must put it.
func (t *tree) node(id uint64) *node {
	t.mu.RLock()
	defer t.mu.RUnlock()
	n := t.nodes[id]
	if n != nil {
		n.refs.Add(1)
	}
	return n
}

// known counts a lookup of an inode that is in the table; else it returns nil. The caller must put the node.
func (t *tree) known(st *unix.Statx_t) *node {
	t.mu.Lock()
	defer t.mu.Unlock()
	n := t.byKey[keyOf(st)]
	if n != nil {
		n.lookups++
		n.refs.Add(1)
	}
	return n
}

// insert takes over fd, an O_PATH descriptor of what st describes, found in dir (nil for the folder itself), and counts a
// lookup. made says that the inode was made for the guest just now, after it was asked whether there is room for it. The
// caller must put the node.
func (t *tree) insert(dir *node, fd int, st *unix.Statx_t, made bool) (*node, error) {
	key := keyOf(st)
	t.mu.Lock()
	defer t.mu.Unlock()
	if n := t.byKey[key]; n != nil {
		unix.Close(fd)
		n.lookups++
		n.refs.Add(1)
		return n, nil
	}
	if t.dropped {
		unix.Close(fd)
		return nil, unix.ESHUTDOWN
	}
	if !made && len(t.nodes) >= t.maxNodes {
		unix.Close(fd)
		return nil, unix.ENFILE
	}
	t.lastNode++
	n := &node{id: t.lastNode, key: key, typ: uint32(key.fileType), fd: fd, home: device(st), lookups: 1}
	if dir != nil && !submount(st) {
		n.home = dir.home
	}
	n.dev = t.number(n.home, st)
	n.refs.Store(2)
	t.nodes[n.id], t.byKey[key] = n, n
	return n, nil
}

// room is ENFILE when the guest knows too many inodes, or has too many files open, to get one more. It is asked before an
// inode is made: afterwards the name would stay behind. As each request asks for itself, those in service at once may
// exceed a bound by their number (requestFiles).
func (t *tree) room(file bool) fuse.Status {
	t.mu.RLock()
	full := len(t.nodes) >= t.maxNodes
	t.mu.RUnlock()
	if full || file && t.handles.full() {
		return fuse.Status(unix.ENFILE)
	}
	return fuse.OK
}

// Forget takes nlookup lookups of an inode back (fuse_forget_in).
func (t *tree) Forget(id, nlookup uint64) {
	if id == fuse.FUSE_ROOT_ID {
		return
	}
	t.mu.Lock()
	n := t.nodes[id]
	if n == nil {
		t.mu.Unlock()
		return
	}
	n.lookups -= min(nlookup, n.lookups)
	gone := n.lookups == 0
	if gone {
		delete(t.nodes, id)
		delete(t.byKey, n.key)
	}
	t.mu.Unlock()
	if gone {
		n.put()
	}
}

// submount says that what st describes begins a file system in the guest, too (FUSE_ATTR_SUBMOUNT): the root of a mount. A
// file that is mounted by itself belongs to the file system around it, for the guest's kernel has no other place for it.
func submount(st *unix.Statx_t) bool {
	return st.Mode&unix.S_IFMT == unix.S_IFDIR && st.Attributes&unix.STATX_ATTR_MOUNT_ROOT != 0
}

// number is 0 for inodes on the device that their file system in the guest is named after, and a small number for each
// other device: of files mounted one by one, of a btrfs's subvolumes, of some overlays' layers. The caller holds t.mu.
func (t *tree) number(home uint64, st *unix.Statx_t) dev {
	id := device(st)
	if id == home {
		return 0
	}
	d, ok := t.devs[id]
	if !ok {
		d = dev(len(t.devs) + 1)
		t.devs[id] = d
	}
	return d
}

// Inode numbers as the guest sees them have dev in the upper bits.
const (
	inoBits = 48
	inoMask = 1<<inoBits - 1
)

// inode is the guest's number for a device's inode: the same inode has the same number, and inodes of different devices in
// one file system do not collide. On the file system's own device it is the host's number: 32-bit programs without support
// for large files cannot stat an inode whose number has more than 32 bits. Numbers of more than 48 bits, which some overlays
// make, are folded, as is the 65,536th other device.
func (d dev) inode(ino uint64) uint64 {
	if ino > inoMask {
		ino *= 0x9e3779b97f4a7c15 // 2^64 over the golden ratio
		ino = ino ^ ino>>inoBits
	}
	return uint64(d)<<inoBits | ino&inoMask
}
