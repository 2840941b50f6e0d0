package passthrough

import (
	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

const (
	// openKillSuidgid is FUSE_OPEN_KILL_SUIDGID: a truncation by a process without CAP_FSETID.
	openKillSuidgid = 1 << 0
	// fsyncDatasync is FUSE_FSYNC_FDATASYNC.
	fsyncDatasync = 1 << 0
	// maxCopy bounds one copy_file_range, in bytes: a longer one is cut, as the call allows.
	maxCopy = 64 << 20
)

// Open opens a regular file.
func (t *tree) Open(_ <-chan struct{}, in *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	n := t.node(in.NodeId)
	if n == nil {
		return stale
	}
	defer n.put()
	return t.open(n, in.Flags, in.Mode, out)
}

func writes(flags uint32) bool {
	return flags&unix.O_ACCMODE != unix.O_RDONLY || flags&unix.O_TRUNC != 0
}

// open opens an inode; how holds the FUSE_OPEN_ flags.
func (t *tree) open(n *node, flags, how uint32, out *fuse.OpenOut) fuse.Status {
	if n.typ == unix.S_IFDIR {
		return fuse.Status(unix.EISDIR)
	}
	if writes(flags) {
		if st := t.writable(); !st.Ok() {
			return st
		}
		if how&openKillSuidgid != 0 && flags&unix.O_TRUNC != 0 {
			if err := n.dropPrivBits(); err != nil {
				return status(err)
			}
		}
	}
	fd, err := n.open(int(flags) & openFlags)
	if err != nil {
		return status(err)
	}
	return t.addFile(n, fd, flags, out, false)
}

// addFile makes a handle of fd, which it takes over. made is that of tree.insert.
func (t *tree) addFile(n *node, fd int, flags uint32, out *fuse.OpenOut, made bool) fuse.Status {
	access := flags & unix.O_ACCMODE
	h := &handle{node: n, fd: fd, writable: access == unix.O_WRONLY || access == unix.O_RDWR}
	if err := t.handles.add(h, made); err != nil {
		return status(err)
	}
	out.Fh, out.OpenFlags = h.id, 0
	var st unix.Statx_t
	if statFd(n.fd, &st) == nil && t.settled(n, &st) {
		out.OpenFlags = fuse.FOPEN_KEEP_CACHE
	}
	return fuse.OK
}

// Release closes a file.
func (t *tree) Release(_ <-chan struct{}, in *fuse.ReleaseIn) { t.handles.remove(in.Fh) }

// file returns an open file, or nil; the caller must put it.
func (t *tree) file(fh uint64) *handle {
	h := t.handles.get(fh)
	if h != nil && h.dir {
		h.put()
		return nil
	}
	return h
}

// Fsync is fsync(2) or fdatasync(2).
func (t *tree) Fsync(_ <-chan struct{}, in *fuse.FsyncIn) fuse.Status {
	h := t.handles.get(in.Fh)
	if h == nil {
		return fuse.EBADF
	}
	defer h.put()
	if in.FsyncFlags&fsyncDatasync != 0 {
		return status(unix.Fdatasync(h.fd))
	}
	return status(unix.Fsync(h.fd))
}

// FsyncDir is fsync(2) of a directory.
func (t *tree) FsyncDir(cancel <-chan struct{}, in *fuse.FsyncIn) fuse.Status {
	return t.Fsync(cancel, in)
}

// Fallocate is fallocate(2).
func (t *tree) Fallocate(_ <-chan struct{}, in *fuse.FallocateIn) fuse.Status {
	h := t.file(in.Fh)
	if h == nil {
		return fuse.EBADF
	}
	defer h.put()
	return status(unix.Fallocate(h.fd, in.Mode, int64(in.Offset), int64(in.Length)))
}

// Lseek finds data and holes; for all else the guest needs no help.
func (t *tree) Lseek(_ <-chan struct{}, in *fuse.LseekIn, out *fuse.LseekOut) fuse.Status {
	if in.Whence != unix.SEEK_DATA && in.Whence != unix.SEEK_HOLE {
		return fuse.EINVAL
	}
	h := t.file(in.Fh)
	if h == nil {
		return fuse.EBADF
	}
	defer h.put()
	// The descriptor's own offset, which this moves, is never used.
	off, err := unix.Seek(h.fd, int64(in.Offset), int(in.Whence))
	if err != nil {
		return status(err)
	}
	out.Offset = uint64(off)
	return fuse.OK
}

// CopyFileRange is copy_file_range(2).
func (t *tree) CopyFileRange(_ <-chan struct{}, in *fuse.CopyFileRangeIn) (uint32, fuse.Status) {
	if in.Flags != 0 {
		return 0, fuse.EINVAL
	}
	from := t.file(in.FhIn)
	if from == nil {
		return 0, fuse.EBADF
	}
	defer from.put()
	to := t.file(in.FhOut)
	if to == nil {
		return 0, fuse.EBADF
	}
	defer to.put()
	offIn, offOut := int64(in.OffIn), int64(in.OffOut)
	n, err := unix.CopyFileRange(from.fd, &offIn, to.fd, &offOut, int(min(in.Len, maxCopy)), 0)
	if err != nil {
		return 0, status(err)
	}
	return uint32(n), fuse.OK
}

// syncAll writes all dirty data of the file systems that the guest knows to disk: its sync(2).
func (t *tree) syncAll() fuse.Status {
	if t.readOnly {
		return fuse.OK
	}
	one := make(map[uint64]*node) // of each device
	t.mu.RLock()
	for _, n := range t.nodes {
		if n.typ != unix.S_IFDIR && n.typ != unix.S_IFREG {
			continue
		}
		d := unix.Mkdev(n.key.major, n.key.minor)
		if one[d] == nil {
			n.refs.Add(1)
			one[d] = n
		}
	}
	t.mu.RUnlock()
	var first error
	for _, n := range one {
		if err := n.syncfs(); err != nil && first == nil {
			first = err
		}
		n.put()
	}
	return status(first)
}

func (n *node) syncfs() error {
	fd, err := n.open(unix.O_RDONLY)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return unix.Syncfs(fd)
}
