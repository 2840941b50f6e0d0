package passthrough

import (
	"bytes"
	"encoding/binary"
	"sync"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// Layout of linux_dirent64, in bytes.
const (
	direntLen  = 16
	direntType = 18
	direntName = 19
)

// A FUSE entry takes 24 bytes and its name, with attributes 152; the host's 19 and the name. So a guest's buffer is filled
// from one of the host's of the same size, or of a quarter, and little is read twice.
const (
	plusRatio    = 4
	minDirentBuf = 1024
	maxDirentBuf = 32 << 10
)

// direntPool keeps buffers between calls. Buffers of open directories would be the guest's to multiply.
type direntPool struct{ sync.Pool }

func (p *direntPool) get() *[maxDirentBuf]byte {
	if b, ok := p.Get().(*[maxDirentBuf]byte); ok {
		return b
	}
	return new([maxDirentBuf]byte)
}

// OpenDir opens a directory.
func (t *tree) OpenDir(_ <-chan struct{}, in *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	n := t.node(in.NodeId)
	if n == nil {
		return stale
	}
	defer n.put()
	if n.typ != unix.S_IFDIR {
		return fuse.ENOTDIR
	}
	fd, err := n.open(unix.O_RDONLY | unix.O_DIRECTORY)
	if err != nil {
		return status(err)
	}
	h := &handle{node: n, fd: fd, dir: true}
	if err := t.handles.add(h, false); err != nil {
		return status(err)
	}
	out.Fh = h.id
	return fuse.OK
}

// ReleaseDir closes a directory.
func (t *tree) ReleaseDir(in *fuse.ReleaseIn) { t.handles.remove(in.Fh) }

// ReadDir lists names. Offsets are the host file system's own, so they stay what they are while names come and go.
func (t *tree) ReadDir(_ <-chan struct{}, in *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	return t.readDir(in, int(in.Size), func(_ *node, e *fuse.DirEntry) bool { return out.AddDirEntry(*e) })
}

// ReadDirPlus lists names and looks each of them up.
func (t *tree) ReadDirPlus(_ <-chan struct{}, in *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	return t.readDir(in, int(in.Size)/plusRatio, func(dir *node, e *fuse.DirEntry) bool {
		entry := out.AddDirLookupEntry(*e)
		if entry == nil {
			return false
		}
		if e.Name == "." || e.Name == ".." {
			return true
		}
		if st := t.enter(dir, e.Name, entry, false); !st.Ok() {
			// Gone meanwhile, or one inode too many: a name without an inode is looked up when it is needed.
			*entry = fuse.EntryOut{}
			return true
		}
		out.FixMode(entry.Mode)
		return true
	})
}

// readDir reads entries from in.Offset on, about size bytes of them, and gives each to add until that is full.
func (t *tree) readDir(in *fuse.ReadIn, size int, add func(*node, *fuse.DirEntry) bool) fuse.Status {
	h := t.handles.get(in.Fh)
	if h == nil {
		return fuse.EBADF
	}
	defer h.put()
	if !h.dir {
		return fuse.ENOTDIR
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if off := int64(in.Offset); off != h.pos {
		if _, err := unix.Seek(h.fd, off, unix.SEEK_SET); err != nil {
			return status(err)
		}
		h.pos = off
	}
	buf := t.dirents.get()
	defer t.dirents.Put(buf)
	for added := false; !added; {
		n, err := unix.Getdents(h.fd, buf[:min(max(size, minDirentBuf), maxDirentBuf)])
		if err != nil {
			return status(err)
		}
		if n == 0 {
			return fuse.OK
		}
		whole := true
		for b := buf[:n]; len(b) > 0 && whole; {
			e, used := h.entry(b)
			if used == 0 {
				return fuse.EIO
			}
			if whole = add(h.node, &e); whole {
				added = true
				h.pos = int64(e.Off)
			}
			b = b[used:]
		}
		if !whole {
			// The descriptor is ahead of the guest.
			pos := h.pos
			h.pos = -1
			if !added && pos == int64(in.Offset) {
				return fuse.EINVAL // not even one entry fits
			}
			return fuse.OK
		}
	}
	return fuse.OK
}

// entry takes the first entry of the host's list; used is 0 if there is none.
func (h *handle) entry(b []byte) (e fuse.DirEntry, used int) {
	if len(b) < direntName {
		return e, 0
	}
	used = int(binary.LittleEndian.Uint16(b[direntLen:]))
	if used < direntName || used > len(b) {
		return e, 0
	}
	name := b[direntName:used]
	if i := bytes.IndexByte(name, 0); i >= 0 {
		name = name[:i]
	}
	e = fuse.DirEntry{
		Name: string(name),
		Ino:  h.node.dev.inode(binary.LittleEndian.Uint64(b)),
		Off:  binary.LittleEndian.Uint64(b[8:]),
		Mode: uint32(b[direntType]) << 12,
	}
	if e.Name == ".." && h.node.id == fuse.FUSE_ROOT_ID {
		e.Ino = h.node.dev.inode(h.node.key.ino) // what is above the folder is none of the guest's business
	}
	return e, used
}
