package passthrough

import (
	"strings"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// checkXattr refuses access control lists: the guest's kernel, which checks permissions, does not know of them here, and
// one that is stored but not obeyed is worse than none.
func checkXattr(name string) fuse.Status {
	switch {
	case len(name) > maxName:
		return fuse.ERANGE
	case name == "":
		return fuse.EINVAL
	case strings.HasPrefix(name, "system.posix_acl_"):
		return fuse.Status(unix.EOPNOTSUPP)
	}
	return fuse.OK
}

// GetXAttr is getxattr(2).
func (t *tree) GetXAttr(_ <-chan struct{}, in *fuse.InHeader, name string, dest []byte) (uint32, fuse.Status) {
	if st := checkXattr(name); !st.Ok() {
		return 0, st
	}
	n := t.node(in.NodeId)
	if n == nil {
		return 0, stale
	}
	defer n.put()
	size, err := unix.Getxattr(n.path(), name, dest)
	return xattrSize(size, err)
}

// ListXAttr is listxattr(2).
func (t *tree) ListXAttr(_ <-chan struct{}, in *fuse.InHeader, dest []byte) (uint32, fuse.Status) {
	n := t.node(in.NodeId)
	if n == nil {
		return 0, stale
	}
	defer n.put()
	size, err := unix.Listxattr(n.path(), dest)
	return xattrSize(size, err)
}

func xattrSize(size int, err error) (uint32, fuse.Status) {
	if err != nil {
		return 0, status(err)
	}
	return uint32(size), fuse.OK
}

// SetXAttr is setxattr(2).
func (t *tree) SetXAttr(_ <-chan struct{}, in *fuse.SetXAttrIn, name string, data []byte) fuse.Status {
	if st := checkXattr(name); !st.Ok() {
		return st
	}
	if st := t.writable(); !st.Ok() {
		return st
	}
	if uint64(in.Size) > uint64(len(data)) {
		return fuse.EINVAL
	}
	n := t.node(in.NodeId)
	if n == nil {
		return stale
	}
	defer n.put()
	return status(unix.Setxattr(n.path(), name, data[:in.Size], int(in.Flags)))
}

// RemoveXAttr is removexattr(2).
func (t *tree) RemoveXAttr(_ <-chan struct{}, in *fuse.InHeader, name string) fuse.Status {
	if st := checkXattr(name); !st.Ok() {
		return st
	}
	if st := t.writable(); !st.Ok() {
		return st
	}
	n := t.node(in.NodeId)
	if n == nil {
		return stale
	}
	defer n.put()
	return status(unix.Removexattr(n.path(), name))
}
