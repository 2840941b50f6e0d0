package passthrough

import (
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

const statMask = unix.STATX_BASIC_STATS | unix.STATX_MNT_ID

// statFd describes what fd, O_PATH or not, stands for.
func statFd(fd int, st *unix.Statx_t) error {
	return unix.Statx(fd, "", unix.AT_EMPTY_PATH|unix.AT_NO_AUTOMOUNT, statMask, st)
}

// statName describes a name in a directory, the link itself if it is one.
func statName(dir *node, name string, st *unix.Statx_t) error {
	return unix.Statx(dir.fd, name, unix.AT_SYMLINK_NOFOLLOW|unix.AT_NO_AUTOMOUNT, statMask, st)
}

// fillAttr turns st into what the guest gets.
func fillAttr(a *fuse.Attr, n *node, st *unix.Statx_t) {
	*a = fuse.Attr{
		Ino:       n.dev.inode(st.Ino),
		Size:      st.Size,
		Blocks:    st.Blocks,
		Atime:     uint64(st.Atime.Sec),
		Mtime:     uint64(st.Mtime.Sec),
		Ctime:     uint64(st.Ctime.Sec),
		Atimensec: st.Atime.Nsec,
		Mtimensec: st.Mtime.Nsec,
		Ctimensec: st.Ctime.Nsec,
		Mode:      uint32(st.Mode),
		Nlink:     st.Nlink,
		Owner:     fuse.Owner{Uid: st.Uid, Gid: st.Gid},
		Rdev:      encodeDev(st.Rdev_major, st.Rdev_minor),
		Blksize:   st.Blksize,
	}
}

// encodeDev is the kernel's 32-bit form of a device number (new_encode_dev).
func encodeDev(major, minor uint32) uint32 {
	return minor&0xff | major&0xfff<<8 | minor&^0xff<<12
}

// GetAttr is stat(2).
func (t *tree) GetAttr(_ <-chan struct{}, in *fuse.GetAttrIn, out *fuse.AttrOut) fuse.Status {
	n := t.node(in.NodeId)
	if n == nil {
		return stale
	}
	defer n.put()
	return n.getAttr(out)
}

func (n *node) getAttr(out *fuse.AttrOut) fuse.Status {
	var st unix.Statx_t
	if err := statFd(n.fd, &st); err != nil {
		return status(err)
	}
	fillAttr(&out.Attr, n, &st)
	out.SetTimeout(Validity)
	return fuse.OK
}

// Statx is statx(2).
func (t *tree) Statx(_ <-chan struct{}, in *fuse.StatxIn, out *fuse.StatxOut) fuse.Status {
	n := t.node(in.NodeId)
	if n == nil {
		return stale
	}
	defer n.put()
	var st unix.Statx_t
	if err := unix.Statx(n.fd, "", unix.AT_EMPTY_PATH|unix.AT_NO_AUTOMOUNT, unix.STATX_BASIC_STATS|unix.STATX_BTIME, &st); err != nil {
		return status(err)
	}
	out.FromStatx(&st)
	out.Ino = n.dev.inode(st.Ino)
	out.SetTimeout(Validity)
	return fuse.OK
}

// SetAttr changes mode, owner, size and times, in the order that lets a later change stand (a chown clears set-user-id).
func (t *tree) SetAttr(_ <-chan struct{}, in *fuse.SetAttrIn, out *fuse.AttrOut) fuse.Status {
	if st := t.writable(); !st.Ok() {
		return st
	}
	n := t.node(in.NodeId)
	if n == nil {
		return stale
	}
	defer n.put()
	if err := n.chown(in); err != nil {
		return status(err)
	}
	if mode, ok := in.GetMode(); ok {
		if err := unix.Fchmodat(unix.AT_FDCWD, n.path(), mode, 0); err != nil {
			return status(err)
		}
	}
	if size, ok := in.GetSize(); ok {
		if st := t.truncate(n, in, size); !st.Ok() {
			return st
		}
	}
	if in.Valid&(fuse.FATTR_ATIME|fuse.FATTR_MTIME) != 0 {
		times := []unix.Timespec{
			timespec(in.Valid, fuse.FATTR_ATIME, fuse.FATTR_ATIME_NOW, in.Atime, in.Atimensec),
			timespec(in.Valid, fuse.FATTR_MTIME, fuse.FATTR_MTIME_NOW, in.Mtime, in.Mtimensec),
		}
		if err := unix.UtimesNanoAt(unix.AT_FDCWD, n.path(), times, 0); err != nil {
			return status(err)
		}
	}
	return n.getAttr(out)
}

func (n *node) chown(in *fuse.SetAttrIn) error {
	uid, hasUID := in.GetUID()
	gid, hasGID := in.GetGID()
	if !hasUID && !hasGID {
		return nil
	}
	owner, group := -1, -1
	if hasUID {
		owner = int(uid)
	}
	if hasGID {
		group = int(gid)
	}
	return unix.Fchownat(n.fd, "", owner, group, unix.AT_EMPTY_PATH)
}

func (t *tree) truncate(n *node, in *fuse.SetAttrIn, size uint64) fuse.Status {
	if n.typ != unix.S_IFREG {
		return fuse.EINVAL
	}
	if in.Valid&fuse.FATTR_KILL_SUIDGID != 0 {
		if err := n.dropPrivBits(); err != nil {
			return status(err)
		}
	}
	// An open file may be truncated by who could not open it again.
	if fh, ok := in.GetFh(); ok {
		h := t.handles.get(fh)
		if h == nil {
			return fuse.EBADF
		}
		defer h.put()
		if h.dir || h.node != n {
			return fuse.EBADF
		}
		return status(unix.Ftruncate(h.fd, int64(size)))
	}
	fd, err := n.open(unix.O_WRONLY)
	if err != nil {
		return status(err)
	}
	defer unix.Close(fd)
	return status(unix.Ftruncate(fd, int64(size)))
}

func timespec(valid, set, now uint32, sec uint64, nsec uint32) unix.Timespec {
	switch {
	case valid&set == 0:
		return unix.Timespec{Nsec: unix.UTIME_OMIT}
	case valid&now != 0:
		return unix.Timespec{Nsec: unix.UTIME_NOW}
	}
	// Only real nanoseconds: UTIME_NOW and UTIME_OMIT are far above.
	return unix.Timespec{Sec: int64(sec), Nsec: int64(min(nsec, 999_999_999))}
}

// dropPrivBits clears set-user-id, and set-group-id of a group-executable file, as a write by a process without CAP_FSETID
// does (FUSE_HANDLE_KILLPRIV_V2). This process has the capability, so its kernel does not. File capabilities it removes by
// itself.
func (n *node) dropPrivBits() error {
	var st unix.Statx_t
	if err := statFd(n.fd, &st); err != nil {
		return err
	}
	drop := uint16(unix.S_ISUID)
	if st.Mode&unix.S_IXGRP != 0 {
		drop |= unix.S_ISGID
	}
	if n.typ != unix.S_IFREG || st.Mode&drop == 0 {
		return nil
	}
	return unix.Fchmodat(unix.AT_FDCWD, n.path(), uint32(st.Mode&^drop&0o7777), 0)
}

// quiet is for how long a file must not have changed before a guest may keep its content from one open to the next. A host's
// program that stores through a shared mapping changes the file's times only with the first store after each writeback of a
// page, which comes within 30 s and the flusher's next round (vm.dirty_expire_centisecs, vm.dirty_writeback_centisecs).
const quiet = 40 * time.Second

// settled says that what the guest has of a file's content is still true. That takes a file which has not changed for so long
// that every change since, or to come, has a time stamp of its own, and which has been opened before in that state: what was
// read earlier may be from between two changes of one time stamp. Each change of a file's content or of its mtime is one of
// its ctime, which nobody can set.
//
// What remains: stores through a host's mapping go unseen where writeback takes longer than quiet (a slow disk, other
// settings), or where the file system below does not watch for them, as tmpfs below an overlay; and a guest that keeps a file
// open sees none that leaves its times as they are.
func (t *tree) settled(n *node, st *unix.Statx_t) bool {
	changed := time.Unix(st.Ctime.Sec, int64(st.Ctime.Nsec))
	return time.Since(changed) > t.quiet && n.opened.Swap(changed.UnixNano()) == changed.UnixNano() && n.writtenBack()
}

// writtenBack says that the file's pages are not its only home: those of a tmpfs stay writable in a mapping for ever after
// the first store.
func (n *node) writtenBack() bool {
	var s unix.Statfs_t
	return unix.Fstatfs(n.fd, &s) == nil && s.Type != unix.TMPFS_MAGIC && s.Type != unix.RAMFS_MAGIC
}
