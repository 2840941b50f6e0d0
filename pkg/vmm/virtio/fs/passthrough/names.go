package passthrough

import (
	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// Lookup finds a name in a directory. A name that does not exist is an answer that the guest may keep, like any other.
func (t *tree) Lookup(_ <-chan struct{}, in *fuse.InHeader, name string, out *fuse.EntryOut) fuse.Status {
	dir, st := t.parent(in.NodeId, name)
	if !st.Ok() {
		return st
	}
	defer dir.put()
	st = t.enter(dir, name, out, false)
	if st == fuse.ENOENT {
		*out = fuse.EntryOut{}
		out.SetEntryTimeout(Validity)
		return fuse.OK
	}
	return st
}

// enter looks a checked name up, counts the lookup and fills the guest's entry. made is insert's.
func (t *tree) enter(dir *node, name string, out *fuse.EntryOut, made bool) fuse.Status {
	var st unix.Statx_t
	if err := statName(dir, name, &st); err != nil {
		return status(err)
	}
	n := t.known(&st)
	if n == nil {
		// What is opened may be another inode by now: only what the descriptor says counts.
		fd, err := unix.Openat(dir.fd, name, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		if err != nil {
			return status(err)
		}
		return t.enterFd(dir, fd, out, made)
	}
	defer n.put()
	fillEntry(out, n, &st)
	return fuse.OK
}

// enterFd is enter for an O_PATH descriptor of something in dir, which it takes over.
func (t *tree) enterFd(dir *node, fd int, out *fuse.EntryOut, made bool) fuse.Status {
	var st unix.Statx_t
	if err := statFd(fd, &st); err != nil {
		unix.Close(fd)
		return status(err)
	}
	n, err := t.insert(dir, fd, &st, made)
	if err != nil {
		return status(err)
	}
	defer n.put()
	fillEntry(out, n, &st)
	return fuse.OK
}

func fillEntry(out *fuse.EntryOut, n *node, st *unix.Statx_t) {
	out.NodeId = n.id
	out.SetEntryTimeout(Validity)
	out.SetAttrTimeout(Validity)
	fillAttr(&out.Attr, n, st)
	if submount(st) {
		// A file system of its own in the guest, too, so that programs see where it begins: find -xdev, df, mountpoint.
		out.Attr.Flags |= fuse.ATTR_SUBMOUNT
	}
}

// Readlink is readlink(2). The guest follows the link in its own tree; the host never does.
func (t *tree) Readlink(_ <-chan struct{}, in *fuse.InHeader) ([]byte, fuse.Status) {
	n := t.node(in.NodeId)
	if n == nil {
		return nil, stale
	}
	defer n.put()
	if n.typ != unix.S_IFLNK {
		return nil, fuse.EINVAL
	}
	buf := make([]byte, maxTarget)
	size, err := unix.Readlinkat(n.fd, "", buf)
	if err != nil {
		return nil, status(err)
	}
	return buf[:size], fuse.OK
}

// Unlink is unlink(2).
func (t *tree) Unlink(_ <-chan struct{}, in *fuse.InHeader, name string) fuse.Status {
	return t.remove(in.NodeId, name, 0)
}

// Rmdir is rmdir(2).
func (t *tree) Rmdir(_ <-chan struct{}, in *fuse.InHeader, name string) fuse.Status {
	return t.remove(in.NodeId, name, unix.AT_REMOVEDIR)
}

func (t *tree) remove(id uint64, name string, flags int) fuse.Status {
	if st := t.writable(); !st.Ok() {
		return st
	}
	dir, st := t.parent(id, name)
	if !st.Ok() {
		return st
	}
	defer dir.put()
	return status(unix.Unlinkat(dir.fd, name, flags))
}

// Rename is renameat2(2).
func (t *tree) Rename(_ <-chan struct{}, in *fuse.RenameIn, oldName, newName string) fuse.Status {
	if st := t.writable(); !st.Ok() {
		return st
	}
	if in.Flags&^(unix.RENAME_NOREPLACE|unix.RENAME_EXCHANGE|unix.RENAME_WHITEOUT) != 0 {
		return fuse.EINVAL
	}
	from, st := t.parent(in.NodeId, oldName)
	if !st.Ok() {
		return st
	}
	defer from.put()
	to, st := t.parent(in.Newdir, newName)
	if !st.Ok() {
		return st
	}
	defer to.put()
	return status(unix.Renameat2(from.fd, oldName, to.fd, newName, uint(in.Flags)))
}

// Link is linkat(2) of an inode, one made with O_TMPFILE too.
func (t *tree) Link(_ <-chan struct{}, in *fuse.LinkIn, name string, out *fuse.EntryOut) fuse.Status {
	if st := t.writable(); !st.Ok() {
		return st
	}
	dir, st := t.parent(in.NodeId, name)
	if !st.Ok() {
		return st
	}
	defer dir.put()
	n := t.node(in.Oldnodeid)
	if n == nil {
		return stale
	}
	defer n.put()
	err := unix.Linkat(n.fd, "", dir.fd, name, unix.AT_EMPTY_PATH)
	if err == unix.ENOENT && n.typ != unix.S_IFLNK {
		// Without CAP_DAC_READ_SEARCH.
		err = unix.Linkat(unix.AT_FDCWD, n.path(), dir.fd, name, unix.AT_SYMLINK_FOLLOW)
	}
	if err != nil {
		return status(err)
	}
	return t.enter(dir, name, out, false)
}

// StatFs is statfs(2) of the file system that the inode is on.
func (t *tree) StatFs(_ <-chan struct{}, in *fuse.InHeader, out *fuse.StatfsOut) fuse.Status {
	n := t.node(in.NodeId)
	if n == nil {
		return stale
	}
	defer n.put()
	var s unix.Statfs_t
	if err := unix.Fstatfs(n.fd, &s); err != nil {
		return status(err)
	}
	*out = fuse.StatfsOut{
		Blocks:  s.Blocks,
		Bfree:   s.Bfree,
		Bavail:  s.Bavail,
		Files:   s.Files,
		Ffree:   s.Ffree,
		Bsize:   uint32(s.Bsize),
		NameLen: uint32(s.Namelen),
		Frsize:  uint32(s.Frsize),
	}
	return fuse.OK
}
