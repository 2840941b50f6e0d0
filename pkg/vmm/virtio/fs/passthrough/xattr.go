package passthrough

import (
	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// aclAccess holds a file's access control list (acl(5)), which the guest's kernel obeys.
const aclAccess = "system.posix_acl_access"

func checkXattr(name string) fuse.Status {
	switch {
	case len(name) > maxName:
		return fuse.ERANGE
	case name == "":
		return fuse.EINVAL
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
	if err := unix.Setxattr(n.path(), name, data[:in.Size], int(in.Flags)); err != nil {
		return status(err)
	}
	if name == aclAccess && in.SetXAttrFlags&fuse.SETXATTR_ACL_KILL_SGID != 0 {
		return status(n.dropSetgid())
	}
	return fuse.OK
}

// dropSetgid is for one who may not have set the bit, being none of the file's group.
func (n *node) dropSetgid() error {
	var st unix.Statx_t
	if err := statFd(n.fd, &st); err != nil || st.Mode&unix.S_ISGID == 0 {
		return err
	}
	return unix.Fchmodat(unix.AT_FDCWD, n.path(), uint32(st.Mode&^unix.S_ISGID&0o7777), 0)
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
