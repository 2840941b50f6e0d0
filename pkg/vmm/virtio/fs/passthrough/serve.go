package passthrough

import (
	"encoding/binary"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// Oldest protocol that is spoken: 7.27, Linux 4.18. Older guests have shorter structures.
const (
	protoMajor = 7
	protoMinor = 27
)

// Serve answers one request: in is what the guest sent, out where the reply goes. It returns how much was written to out.
func (s *Server) Serve(r *Request, in, out [][]byte) int {
	if !r.Load(in, out) {
		return 0
	}
	if r.IsDirect() {
		return s.Direct(r)
	}
	s.Call(r)
	return r.Store()
}

// Call does what the request asks for and keeps the reply for Store. It may block for as long as the host's file system
// does, and touches no guest memory.
func (s *Server) Call(r *Request) {
	switch m := minSize(r.op); {
	case r.op == opIoctl:
		r.fail(fuse.Status(unix.ENOTTY))
		return
	case m == 0:
		r.fail(fuse.ENOSYS)
		return
	case r.length < m:
		r.fail(fuse.EINVAL)
		return
	case r.length > maxRequest:
		r.fail(fuse.Status(unix.E2BIG))
		return
	}
	switch r.op {
	case opInit:
		s.init(r)
		return
	case opDestroy:
		s.Forget()
		r.fail(fuse.OK)
		return
	}
	t := s.get()
	if t == nil {
		r.fail(fuse.EIO)
		return
	}
	if r.op == opSyncfs {
		r.fail(t.syncAll())
		return
	}
	s.call(t, r)
}

func (s *Server) init(r *Request) {
	major := binary.LittleEndian.Uint32(r.body[inHeaderSize:])
	minor := binary.LittleEndian.Uint32(r.body[inHeaderSize+4:])
	if major != protoMajor || minor < protoMinor {
		r.fail(fuse.Status(unix.EPROTO))
		return
	}
	t, err := s.newTree()
	if err != nil {
		r.fail(status(err))
		return
	}
	s.call(t, r)
	if r.n < outHeaderSize || binary.LittleEndian.Uint32(r.reply[4:]) != 0 {
		t.drop()
		r.fail(fuse.EIO)
		return
	}
	if !s.install(t) {
		t.drop()
		r.fail(fuse.EIO)
	}
}

// call lets go-fuse take the request apart and call t.
func (s *Server) call(t *tree, r *Request) {
	defer func() {
		if p := recover(); p != nil {
			s.panics.Add(1)
			r.fail(fuse.EIO)
		}
	}()
	r.reply = grow(r.reply, outHeaderSize+maxOutStruct+maxPayload(r.op, r.body))
	r.vin[0], r.vout[0] = r.body, r.reply
	n, st := t.wire.HandleRequest(r.vin[:], r.vout[:])
	if r.n = n; !st.Ok() {
		r.fail(st)
	}
}
