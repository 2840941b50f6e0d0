package passthrough

import (
	"errors"
	"sync"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// tree is what one guest knows of the folder from its INIT to its DESTROY: inodes and open files. Its exported methods are
// FUSE's operations, called by go-fuse.
type tree struct {
	fuse.RawFileSystem // answers ENOSYS to what is not here

	readOnly bool
	creators *creators
	wire     *fuse.ProtocolServer
	handles  handles
	maxNodes int
	quiet    time.Duration // see settled

	mu       sync.RWMutex
	nodes    map[uint64]*node
	byKey    map[nodeKey]*node
	devs     map[uint64]dev // see number
	lastNode uint64
	dropped  bool

	dirents direntPool
}

// dev is a small number for a device of the host; see tree.number.
type dev uint64

func newTree(cfg *Config, root int, c *creators) (*tree, error) {
	t := &tree{
		RawFileSystem: fuse.NewDefaultRawFileSystem(),
		readOnly:      cfg.ReadOnly,
		creators:      c,
		handles:       handles{max: cfg.MaxHandles, m: make(map[uint64]*handle)},
		maxNodes:      cfg.MaxNodes,
		quiet:         quiet,
		nodes:         make(map[uint64]*node),
		byKey:         make(map[nodeKey]*node),
		devs:          make(map[uint64]dev),
		lastNode:      fuse.FUSE_ROOT_ID - 1,
	}
	fd, err := unix.FcntlInt(uintptr(root), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	var st unix.Statx_t
	if err := statFd(fd, &st); err != nil {
		unix.Close(fd)
		return nil, err
	}
	n, err := t.insert(nil, fd, &st, false)
	if err != nil {
		return nil, err
	}
	n.put()
	return t, nil
}

// drop closes all that the guest knows. What a request holds that still runs stays open until it ends, and it gets nothing
// more: a host that holds requests up must not keep whole trees alive.
func (t *tree) drop() {
	t.handles.closeAll()
	t.mu.Lock()
	nodes := t.nodes
	t.nodes, t.byKey, t.dropped = nil, nil, true
	t.mu.Unlock()
	for _, n := range nodes {
		n.put()
	}
}

// String names the file system, as go-fuse asks.
func (t *tree) String() string { return "passthrough" }

// writable is EROFS for a share that is read-only.
func (t *tree) writable() fuse.Status {
	if t.readOnly {
		return fuse.EROFS
	}
	return fuse.OK
}

// status is the errno in err. A file system that lacks a system call must not make the guest believe that the whole share
// lacks it, as ENOSYS would.
func status(err error) fuse.Status {
	if err == nil {
		return fuse.OK
	}
	var errno unix.Errno
	if !errors.As(err, &errno) {
		return fuse.EIO
	}
	if errno == unix.ENOSYS {
		return fuse.Status(unix.EOPNOTSUPP)
	}
	return fuse.Status(errno)
}

// checkName wants one component of a path.
func checkName(name string) fuse.Status {
	switch {
	case len(name) > maxName:
		return fuse.Status(unix.ENAMETOOLONG)
	case name == "" || name == "." || name == "..":
		return fuse.EINVAL
	}
	for i := range len(name) {
		if name[i] == '/' || name[i] == 0 {
			return fuse.EINVAL
		}
	}
	return fuse.OK
}

// parent returns the inode for an operation on one of its names; the caller must put it.
func (t *tree) parent(id uint64, name string) (*node, fuse.Status) {
	if st := checkName(name); !st.Ok() {
		return nil, st
	}
	n := t.node(id)
	if n == nil {
		return nil, stale
	}
	if n.typ != unix.S_IFDIR {
		n.put()
		return nil, fuse.ENOTDIR
	}
	return n, fuse.OK
}
