package passthrough

import (
	"bytes"
	"encoding/binary"
	"os"
	"testing"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// setxattrIn is fuse_setxattr_in without FUSE_SETXATTR_EXT.
type setxattrIn struct {
	fuse.InHeader
	Size, Flags uint32
}

// client is a guest's kernel, as far as the server can tell.
type client struct {
	tb     testing.TB
	srv    *Server
	req    Request
	unique uint64
	uid    uint32
	gid    uint32
}

// newClient shares a folder and starts the protocol.
func newClient(tb testing.TB, cfg Config) *client {
	tb.Helper()
	if os.Getuid() != 0 {
		tb.Skip("needs root")
	}
	srv, err := New(cfg)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if n := srv.Panics(); n != 0 {
			tb.Errorf("%d requests ended in a panic", n)
		}
		srv.Close()
	})
	c := &client{tb: tb, srv: srv}
	c.init()
	return c
}

// initOut is the part of fuse.InitOut that tests read.
type initOut struct {
	Major, Minor, MaxReadAhead, Flags uint32
	MaxBackground, Congestion         uint16
	MaxWrite, TimeGran                uint32
	MaxPages, MapAlignment            uint16
	Flags2                            uint32
}

func (c *client) init() initOut {
	c.tb.Helper()
	var out initOut
	in := fuse.InitIn{Major: 7, Minor: 38, MaxReadAhead: 128 << 10, Flags: ^uint32(0), Flags2: ^uint32(0)}
	if st := c.do(opInit, 0, &in, nil, &out); !st.Ok() {
		c.tb.Fatalf("INIT: %v", st)
	}
	return out
}

// request is the bytes of a request: a header, the fields of in behind its own header, and tail.
func (c *client) request(op uint32, node uint64, in any, tail []byte) []byte {
	c.unique++
	var b bytes.Buffer
	if in != nil {
		binary.Write(&b, binary.LittleEndian, in)
		b.Next(inHeaderSize)
	}
	h := fuse.InHeader{Opcode: op, Unique: c.unique, NodeId: node, Length: uint32(inHeaderSize + b.Len() + len(tail))}
	h.Uid, h.Gid, h.Pid = c.uid, c.gid, 1
	var r bytes.Buffer
	binary.Write(&r, binary.LittleEndian, h)
	r.Write(b.Bytes())
	r.Write(tail)
	return r.Bytes()
}

// raw serves a request and returns the reply behind its header.
func (c *client) raw(req []byte, room int) ([]byte, fuse.Status) {
	c.tb.Helper()
	out := make([]byte, outHeaderSize+room)
	// In pieces, as a guest's come.
	n := c.srv.Serve(&c.req, pieces(req), pieces(out))
	if n < outHeaderSize {
		c.tb.Fatalf("reply of %d bytes", n)
	}
	if got := binary.LittleEndian.Uint32(out); int(got) != n {
		c.tb.Fatalf("reply says it has %d bytes, and has %d", got, n)
	}
	if got := binary.LittleEndian.Uint64(out[8:]); got != c.unique {
		c.tb.Fatalf("reply to request %d, want %d", got, c.unique)
	}
	return out[outHeaderSize:n], fuse.Status(-int32(binary.LittleEndian.Uint32(out[4:])))
}

func pieces(b []byte) [][]byte {
	var p [][]byte
	for len(b) > 0 {
		n := min(len(b), 4096)
		p, b = append(p, b[:n:n]), b[n:]
	}
	return p
}

// do serves a request whose reply is the structure out, or nothing.
func (c *client) do(op uint32, node uint64, in any, tail []byte, out any) fuse.Status {
	c.tb.Helper()
	body, st := c.raw(c.request(op, node, in, tail), 4096)
	if st.Ok() && out != nil {
		if _, err := binary.Decode(body, binary.LittleEndian, out); err != nil {
			c.tb.Fatalf("opcode %d: %v", op, err)
		}
	}
	return st
}

func name(s ...string) []byte {
	var b []byte
	for _, s := range s {
		b = append(append(b, s...), 0)
	}
	return b
}

// walk looks up a path from the root, link by link.
func (c *client) walk(path ...string) fuse.EntryOut {
	c.tb.Helper()
	e := fuse.EntryOut{NodeId: fuse.FUSE_ROOT_ID}
	for _, p := range path {
		next, st := c.lookup(e.NodeId, p)
		if !st.Ok() {
			c.tb.Fatalf("lookup %q: %v", p, st)
		}
		e = next
	}
	return e
}

// lookup answers a name that does not exist with ENOENT.
func (c *client) lookup(dir uint64, s string) (fuse.EntryOut, fuse.Status) {
	c.tb.Helper()
	var out fuse.EntryOut
	st := c.do(opLookup, dir, nil, name(s), &out)
	if st.Ok() && out.NodeId == 0 {
		st = fuse.ENOENT
	}
	return out, st
}

func (c *client) open(node uint64, flags uint32) (uint64, fuse.Status) {
	c.tb.Helper()
	var out fuse.OpenOut
	st := c.do(opOpen, node, &fuse.OpenIn{Flags: flags}, nil, &out)
	return out.Fh, st
}

func (c *client) create(dir uint64, s string, flags, mode uint32) (fuse.CreateOut, fuse.Status) {
	c.tb.Helper()
	var out fuse.CreateOut
	st := c.do(opCreate, dir, &fuse.CreateIn{Flags: flags | unix.O_CREAT, Mode: mode | unix.S_IFREG}, name(s), &out)
	return out, st
}

func (c *client) write(fh uint64, off int, data string, in fuse.WriteIn) fuse.Status {
	c.tb.Helper()
	in.Fh, in.Offset, in.Size = fh, uint64(off), uint32(len(data))
	var out fuse.WriteOut
	st := c.do(opWrite, 0, &in, []byte(data), &out)
	if st.Ok() && int(out.Size) != len(data) {
		c.tb.Fatalf("wrote %d bytes of %d", out.Size, len(data))
	}
	return st
}

func (c *client) read(fh uint64, off, n int) (string, fuse.Status) {
	c.tb.Helper()
	b, st := c.raw(c.request(opRead, 0, &fuse.ReadIn{Fh: fh, Offset: uint64(off), Size: uint32(n)}, nil), n)
	return string(b), st
}

func (c *client) release(fh uint64) {
	c.tb.Helper()
	c.do(opRelease, 0, &fuse.ReleaseIn{Fh: fh}, nil, nil)
}

// forget sends what has no answer.
func (c *client) forget(node, n uint64) {
	c.tb.Helper()
	if got := c.srv.Serve(&c.req, pieces(c.request(opForget, node, &fuse.ForgetIn{Nlookup: n}, nil)), pieces(make([]byte, 64))); got != 0 {
		c.tb.Fatalf("FORGET: answer of %d bytes", got)
	}
}

// list reads a directory, size bytes at a time.
func (c *client) list(node uint64, size uint32, plus bool) map[string]fuse.DirEntry {
	c.tb.Helper()
	var h fuse.OpenOut
	if st := c.do(opOpendir, node, &fuse.OpenIn{}, nil, &h); !st.Ok() {
		c.tb.Fatalf("OPENDIR: %v", st)
	}
	defer c.do(opReleasedir, node, &fuse.ReleaseIn{Fh: h.Fh}, nil, nil)
	all := make(map[string]fuse.DirEntry)
	op := uint32(opReaddir)
	if plus {
		op = opReaddirplus
	}
	for off := uint64(0); ; {
		b, st := c.raw(c.request(op, node, &fuse.ReadIn{Fh: h.Fh, Offset: off, Size: size}, nil), int(size))
		if !st.Ok() {
			c.tb.Fatalf("READDIR at %d: %v", off, st)
		}
		var entries []fuse.DirEntry
		var err error
		if plus {
			entries, _, err = fuse.ParseDirLookupEntries(b)
		} else {
			entries, err = fuse.ParseDirEntries(b)
		}
		if err != nil {
			c.tb.Fatal(err)
		}
		if len(entries) == 0 {
			return all
		}
		for _, e := range entries {
			if _, twice := all[e.Name]; twice {
				c.tb.Fatalf("%q listed twice", e.Name)
			}
			all[e.Name] = e
			off = e.Off
		}
	}
}

func want(tb testing.TB, what string, got, want fuse.Status) {
	tb.Helper()
	if got != want {
		tb.Fatalf("%s: %v, want %v", what, got, want)
	}
}
