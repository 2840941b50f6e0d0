package passthrough

import (
	"encoding/binary"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/virtio/iov"
)

// Flags of a WRITE (fuse_write_in.write_flags).
const (
	writeCache       = 1 << 0 // from the guest's page cache: the offset counts, O_APPEND does not
	writeKillSuidgid = 1 << 2
)

// Direct serves a READ or WRITE between the file and guest memory, without a copy and without an allocation, writes the
// reply and returns its length.
func (s *Server) Direct(r *Request) int {
	if r.length < ioInSize {
		return r.finish(0, fuse.EINVAL)
	}
	t := s.get()
	if t == nil {
		return r.finish(0, fuse.EIO)
	}
	h := t.handles.get(binary.LittleEndian.Uint64(r.body[inHeaderSize:]))
	if h == nil || h.dir {
		if h != nil {
			h.put()
		}
		return r.finish(0, fuse.EBADF)
	}
	defer h.put()
	offset := int64(binary.LittleEndian.Uint64(r.body[inHeaderSize+8:]))
	size := binary.LittleEndian.Uint32(r.body[inHeaderSize+16:])
	if offset < 0 || size > MaxIO {
		return r.finish(0, fuse.EINVAL)
	}
	if r.op == opRead {
		return r.read(h, offset, int(size))
	}
	return r.write(h, offset, int(size))
}

func (r *Request) read(h *handle, offset int64, size int) int {
	if total(r.out) < uint64(outHeaderSize+size) {
		return r.finish(0, fuse.EIO)
	}
	if r.vec.Set(r.out, outHeaderSize, size); r.vec.Len() < size {
		return r.finish(0, fuse.EIO)
	}
	n, err := r.transfer((*iov.Vec).Preadv, h.fd, offset)
	if n == 0 && err != nil {
		return r.finish(0, status(err))
	}
	return r.finish(n, fuse.OK)
}

func (r *Request) write(h *handle, offset int64, size int) int {
	if r.length < ioInSize+size {
		return r.finish(0, fuse.EINVAL)
	}
	// Before anything is changed, its mode too: the kernel would find it out only at the write.
	if !h.writable {
		return r.finish(0, fuse.EBADF)
	}
	flags := binary.LittleEndian.Uint32(r.body[inHeaderSize+20:])
	guestFlags := binary.LittleEndian.Uint32(r.body[inHeaderSize+32:])
	if flags&writeKillSuidgid != 0 {
		if err := h.node.dropPrivBits(); err != nil {
			return r.finish(0, status(err))
		}
	}
	if r.vec.Set(r.in, ioInSize, size); r.vec.Len() < size {
		return r.finish(0, fuse.EIO)
	}
	// Files are never opened with O_APPEND: what an mmap dirtied has its place. The rest is appended as the guest's
	// descriptor says now, which a host that appends to the same file cannot disturb.
	call := (*iov.Vec).Pwritev
	if flags&writeCache == 0 && guestFlags&unix.O_APPEND != 0 {
		call = appendv
	}
	n, err := r.transfer(call, h.fd, offset)
	if n == 0 && err != nil {
		return r.finish(0, status(err))
	}
	var out [8]byte
	binary.LittleEndian.PutUint32(out[:], uint32(n))
	return r.finishWith(out)
}

func appendv(v *iov.Vec, fd int, offset int64) (int, error) {
	return v.Pwritev2(fd, offset, unix.RWF_APPEND)
}

// transfer moves as much of r.vec as it can. Memory that the guest gave and that is not there any more cannot occur: guest
// RAM stays mapped.
func (r *Request) transfer(call func(*iov.Vec, int, int64) (int, error), fd int, offset int64) (int, error) {
	done := 0
	for r.vec.Len() > 0 {
		n, err := call(&r.vec, fd, offset+int64(done))
		if err != nil || n == 0 {
			return done, err
		}
		done += n
		r.vec.Advance(n)
	}
	return done, nil
}

// finish writes a reply of a header before n bytes that are in place already.
func (r *Request) finish(n int, st fuse.Status) int {
	return r.putReply(outHeaderSize, n, st)
}

// finishWith writes a reply of a header and out.
func (r *Request) finishWith(out [8]byte) int {
	r.reply = grow(r.reply, outHeaderSize+len(out))
	copy(r.reply[outHeaderSize:], out[:])
	return r.putReply(outHeaderSize+len(out), 0, fuse.OK)
}

func (r *Request) putReply(head, n int, st fuse.Status) int {
	r.reply = grow(r.reply, head)
	putHeader(r.reply, head+n, st, r.unique)
	if total(r.out) < uint64(head) {
		return 0
	}
	head = copyIn(r.out, r.reply)
	r.vec.Clear()
	r.release()
	return head + n
}
