package passthrough

import (
	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// create makes the inode of a name by do, as the caller in in, and looks it up.
func (t *tree) create(in *fuse.InHeader, name string, out *fuse.EntryOut, do func(dir int) error) fuse.Status {
	if st := t.writable(); !st.Ok() {
		return st
	}
	dir, st := t.parent(in.NodeId, name)
	if !st.Ok() {
		return st
	}
	defer dir.put()
	if st := t.room(false); !st.Ok() {
		return st
	}
	if err := t.creators.as(in, func() error { return do(dir.fd) }); err != nil {
		return status(err)
	}
	return t.enter(dir, name, out, true)
}

// Mkdir is mkdir(2).
func (t *tree) Mkdir(_ <-chan struct{}, in *fuse.MkdirIn, name string, out *fuse.EntryOut) fuse.Status {
	return t.create(&in.InHeader, name, out, func(dir int) error {
		return unix.Mkdirat(dir, name, in.Mode&0o7777)
	})
}

// Mknod is mknod(2): regular files, fifos, sockets and device nodes.
func (t *tree) Mknod(_ <-chan struct{}, in *fuse.MknodIn, name string, out *fuse.EntryOut) fuse.Status {
	switch in.Mode & unix.S_IFMT {
	case unix.S_IFREG, unix.S_IFIFO, unix.S_IFSOCK, unix.S_IFCHR, unix.S_IFBLK:
	default:
		return fuse.EINVAL
	}
	return t.create(&in.InHeader, name, out, func(dir int) error {
		return unix.Mknodat(dir, name, in.Mode&(unix.S_IFMT|0o7777), int(in.Rdev))
	})
}

// Symlink is symlink(2). The target is any text.
func (t *tree) Symlink(_ <-chan struct{}, in *fuse.InHeader, target, name string, out *fuse.EntryOut) fuse.Status {
	if len(target) > maxTarget {
		return fuse.Status(unix.ENAMETOOLONG)
	}
	return t.create(in, name, out, func(dir int) error {
		return unix.Symlinkat(target, dir, name)
	})
}

// openFlags are those of the guest's open flags that mean something to the host's file. Not O_APPEND, which is a matter of
// each write, and not O_DIRECT, which means that the guest's page cache is passed by.
const openFlags = unix.O_ACCMODE | unix.O_TRUNC | unix.O_SYNC | unix.O_DSYNC

// Create is open(2) with O_CREAT.
func (t *tree) Create(_ <-chan struct{}, in *fuse.CreateIn, name string, out *fuse.CreateOut) fuse.Status {
	if st := t.writable(); !st.Ok() {
		return st
	}
	dir, st := t.parent(in.NodeId, name)
	if !st.Ok() {
		return st
	}
	defer dir.put()
	if st := t.room(true); !st.Ok() {
		return st
	}
	flags := int(in.Flags)&openFlags&^unix.O_TRUNC | unix.O_CREAT | unix.O_EXCL | unix.O_NOFOLLOW | unix.O_CLOEXEC
	var fd int
	err := t.creators.as(&in.InHeader, func() (err error) {
		fd, err = unix.Openat(dir.fd, name, flags, in.Mode&0o7777)
		return err
	})
	if err == unix.EEXIST && in.Flags&unix.O_EXCL == 0 {
		return t.openExisting(dir, in, name, out)
	}
	if err != nil {
		return status(err)
	}
	return t.created(dir, fd, in, out)
}

// openExisting serves a guest that did not know of a file.
func (t *tree) openExisting(dir *node, in *fuse.CreateIn, name string, out *fuse.CreateOut) fuse.Status {
	st := t.enter(dir, name, &out.EntryOut, false)
	if !st.Ok() {
		return st
	}
	n := t.node(out.NodeId)
	if n == nil {
		return stale
	}
	defer n.put()
	if n.typ == unix.S_IFREG {
		st = t.open(n, in.Flags, in.OpenFlags, &out.OpenOut)
	} else {
		st = stale // makes the guest look again, and then do what the inode's type asks for
	}
	if !st.Ok() {
		t.Forget(n.id, 1)
	}
	return st
}

// Tmpfile is open(2) with O_TMPFILE: a file that has no name, until a Link.
func (t *tree) Tmpfile(_ <-chan struct{}, in *fuse.CreateIn, out *fuse.CreateOut) fuse.Status {
	if st := t.writable(); !st.Ok() {
		return st
	}
	dir := t.node(in.NodeId)
	if dir == nil {
		return stale
	}
	defer dir.put()
	if dir.typ != unix.S_IFDIR {
		return fuse.ENOTDIR
	}
	if st := t.room(true); !st.Ok() {
		return st
	}
	flags := int(in.Flags)&(openFlags|unix.O_EXCL)&^unix.O_TRUNC | unix.O_TMPFILE | unix.O_CLOEXEC
	var fd int
	err := t.creators.as(&in.InHeader, func() (err error) {
		fd, err = unix.Openat(dir.fd, ".", flags, in.Mode&0o7777)
		return err
	})
	if err != nil {
		return status(err)
	}
	return t.created(dir, fd, in, out)
}

// created makes a node and a handle of the descriptor of a new file in dir.
func (t *tree) created(dir *node, fd int, in *fuse.CreateIn, out *fuse.CreateOut) fuse.Status {
	path, err := unix.Open((&node{fd: fd}).path(), unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		unix.Close(fd)
		return status(err)
	}
	if st := t.enterFd(dir, path, &out.EntryOut, true); !st.Ok() {
		unix.Close(fd)
		return st
	}
	n := t.node(out.NodeId)
	if n == nil {
		unix.Close(fd)
		return stale
	}
	defer n.put()
	if st := t.addFile(n, fd, in.Flags, &out.OpenOut, true); !st.Ok() {
		t.Forget(n.id, 1)
		return st
	}
	return fuse.OK
}
