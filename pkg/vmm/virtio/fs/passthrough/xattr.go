package passthrough

import (
	"bytes"
	"strings"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// aclPrefix begins the names of access control lists (acl(5)). The guest's kernel has no use for them: Linux 6.1 obeys them
// on a virtio-fs itself, and not on the mounts in it (FUSE_SUBMOUNTS), where most files are. So there are none, anywhere; what
// the guest makes on the host still inherits from a folder's default list.
const aclPrefix = "system.posix_acl_"

func checkXattr(name string) fuse.Status {
	switch {
	case len(name) > maxName:
		return fuse.ERANGE
	case name == "":
		return fuse.EINVAL
	case strings.HasPrefix(name, aclPrefix):
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
	if err == nil && len(dest) > 0 {
		size = withoutACLs(dest[:size])
	}
	return xattrSize(size, err)
}

// withoutACLs takes what checkXattr refuses out of a list of names and returns the new length.
func withoutACLs(list []byte) int {
	kept := list[:0]
	for name := range bytes.SplitAfterSeq(list, []byte{0}) {
		if !bytes.HasPrefix(name, []byte(aclPrefix)) {
			kept = append(kept, name...)
		}
	}
	return len(kept)
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
