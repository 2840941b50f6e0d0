package passthrough

import (
	"encoding/binary"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// maxVec is how many buffers one system call takes (UIO_MAXIOV), and one request may have.
const maxVec = 1024

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
	defer t.put()
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
	var have int
	if r.iov, have = appendIovec(r.iov[:0], r.out, outHeaderSize, size); have < size {
		return r.finish(0, fuse.EIO)
	}
	n, errno := transfer(unix.SYS_PREADV2, h.fd, r.iov, offset, 0)
	if n == 0 && errno != 0 {
		return r.finish(0, status(errno))
	}
	return r.finish(n, fuse.OK)
}

func (r *Request) write(h *handle, offset int64, size int) int {
	if r.length < ioInSize+size {
		return r.finish(0, fuse.EINVAL)
	}
	flags := binary.LittleEndian.Uint32(r.body[inHeaderSize+20:])
	openFlags := binary.LittleEndian.Uint32(r.body[inHeaderSize+32:])
	if flags&writeKillSuidgid != 0 {
		if err := h.node.dropPrivBits(); err != nil {
			return r.finish(0, status(err))
		}
	}
	// Files are never opened with O_APPEND: what an mmap dirtied has its place. The rest is appended as the guest's
	// descriptor says now, which a host that appends to the same file cannot disturb.
	how := uintptr(0)
	if flags&writeCache == 0 && openFlags&unix.O_APPEND != 0 {
		how = unix.RWF_APPEND
	}
	var have int
	if r.iov, have = appendIovec(r.iov[:0], r.in, ioInSize, size); have < size {
		return r.finish(0, fuse.EIO)
	}
	n, errno := transfer(unix.SYS_PWRITEV2, h.fd, r.iov, offset, how)
	if n == 0 && errno != 0 {
		return r.finish(0, status(errno))
	}
	var out [8]byte
	binary.LittleEndian.PutUint32(out[:], uint32(n))
	return r.finishWith(out)
}

// transfer moves as much of iov as it can. Memory that the guest gave and that is not there any more cannot occur: guest
// RAM stays mapped.
func transfer(call uintptr, fd int, iov []unix.Iovec, offset int64, how uintptr) (int, unix.Errno) {
	done := 0
	for len(iov) > 0 {
		n, errno := vectorIO(call, fd, iov, offset+int64(done), how)
		if errno == unix.EINTR {
			continue
		}
		if errno != 0 || n == 0 {
			return done, errno
		}
		done += n
		iov = skipIovec(iov, n)
	}
	return done, 0
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
	r.iov = clearIovec(r.iov)
	r.release()
	return head + n
}
