package passthrough

import (
	"encoding/binary"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// FuzzRequest sends a script of requests of any form. Each is a length (16 bits), the room for the reply (16 bits) and as
// many bytes. Nothing beside the folder may change, and no reply may exceed its room.
func FuzzRequest(f *testing.F) {
	for _, s := range seeds(f) {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, script []byte) {
		root, _ := share(t)
		os.WriteFile(filepath.Join(root, "f"), []byte("contents"), 0o644)
		os.Symlink("../canary", filepath.Join(root, "l"))
		os.Mkdir(filepath.Join(root, "d"), 0o755)
		c := newClient(t, Config{Root: root, MaxNodes: 64, MaxHandles: 16})
		for range 64 {
			if len(script) < 4 {
				break
			}
			n, room := int(binary.LittleEndian.Uint16(script)), int(binary.LittleEndian.Uint16(script[2:]))
			req := script[4:min(4+n, len(script))]
			script = script[4+len(req):]
			if !harmless(req) {
				continue
			}
			out := make([]byte, room+1)
			out[room] = 0xa5
			if got := c.srv.Serve(&c.req, pieces(req), pieces(out[:room])); got > room {
				t.Fatalf("answer of %d bytes, room for %d", got, room)
			}
			if out[room] != 0xa5 {
				t.Fatal("wrote beyond the room")
			}
		}
	})
}

// harmless leaves out what would hurt the machine that the test runs on: huge sparse files cost little, but real ones
// cost disk, and a sync its time.
func harmless(req []byte) bool {
	if len(req) < inHeaderSize {
		return true
	}
	switch binary.LittleEndian.Uint32(req[4:]) {
	case opFallocate, opSyncfs, opFsync, opFsyncdir:
		return false
	case opCopyFileRange:
		const lenAt = inHeaderSize + 40
		return len(req) < lenAt+8 || binary.LittleEndian.Uint64(req[lenAt:]) < 1<<20
	}
	return true
}

// seeds are one script of all operations, and each operation by itself.
func seeds(f *testing.F) [][]byte {
	c := &client{tb: f}
	var all []byte
	var list [][]byte
	add := func(op uint32, node uint64, in any, tail []byte) {
		req := c.request(op, node, in, tail)
		b := binary.LittleEndian.AppendUint16(nil, uint16(len(req)))
		b = binary.LittleEndian.AppendUint16(b, 4096)
		b = append(b, req...)
		list, all = append(list, b), append(all, b...)
	}
	// Nodes 2 and 3 are "f" and "l", file 1 is the first that is opened.
	add(opLookup, 1, nil, name("f"))
	add(opLookup, 1, nil, name("l"))
	add(opLookup, 1, nil, name(".."))
	add(opGetattr, 2, &fuse.GetAttrIn{}, nil)
	add(opStatx, 2, &fuse.StatxIn{}, nil)
	set := fuse.SetAttrIn{}
	set.Valid, set.Mode = fuse.FATTR_MODE|fuse.FATTR_UID|fuse.FATTR_SIZE|fuse.FATTR_MTIME|fuse.FATTR_ATIME_NOW, 0o4755
	add(opSetattr, 3, &set, nil)
	add(opSetattr, 2, &set, nil)
	add(opReadlink, 3, nil, nil)
	add(opOpen, 2, &fuse.OpenIn{Flags: unix.O_RDWR}, nil)
	add(opWrite, 2, &fuse.WriteIn{Fh: 1, Size: 3, WriteFlags: writeKillSuidgid}, []byte("abc"))
	add(opRead, 2, &fuse.ReadIn{Fh: 1, Size: 100}, nil)
	add(opLseek, 2, &fuse.LseekIn{Fh: 1, Whence: unix.SEEK_DATA}, nil)
	add(opCopyFileRange, 2, &fuse.CopyFileRangeIn{FhIn: 1, FhOut: 1, OffOut: 10, Len: 5}, nil)
	add(opCreate, 1, &fuse.CreateIn{Flags: unix.O_RDWR, Mode: unix.S_IFREG | 0o644}, name("new"))
	add(opCreate, 1, &fuse.CreateIn{Flags: unix.O_RDWR, Mode: unix.S_IFREG | 0o644}, name("l"))
	add(opTmpfile, 1, &fuse.CreateIn{Flags: unix.O_RDWR, Mode: unix.S_IFREG | 0o644}, name("/"))
	add(opMkdir, 1, &fuse.MkdirIn{Mode: 0o755}, name("dir"))
	add(opMknod, 1, &fuse.MknodIn{Mode: unix.S_IFIFO | 0o644}, name("fifo"))
	add(opSymlink, 1, nil, name("link", "/etc"))
	add(opLink, 1, &fuse.LinkIn{Oldnodeid: 2}, name("hard"))
	add(opRename2, 1, &fuse.RenameIn{Newdir: 1, Flags: unix.RENAME_EXCHANGE}, name("f", "new"))
	add(opRename, 1, &fuse.LinkIn{Oldnodeid: 1}, name("f", "../canary"))
	add(opOpendir, 1, &fuse.OpenIn{}, nil)
	for fh := uint64(1); fh < 5; fh++ {
		add(opReaddir, 1, &fuse.ReadIn{Fh: fh, Size: 4000}, nil)
		add(opReaddirplus, 1, &fuse.ReadIn{Fh: fh, Size: 4000}, nil)
	}
	add(opStatfs, 1, nil, nil)
	add(opSetxattr, 2, &setxattrIn{Size: 1}, append(name("user.x"), 'v'))
	add(opSetxattr, 2, &setxattrIn{Size: 1}, append(name(aclPrefix+"access"), 'v'))
	add(opGetxattr, 2, &fuse.GetXAttrIn{Size: 100}, name("user.x"))
	add(opListxattr, 2, &fuse.GetXAttrIn{Size: 100}, nil)
	add(opRemovexattr, 2, nil, name("user.x"))
	add(opUnlink, 1, nil, name("../canary"))
	add(opUnlink, 1, nil, name("f"))
	add(opRmdir, 1, nil, name("d"))
	add(opRelease, 2, &fuse.ReleaseIn{Fh: 1}, nil)
	add(opBatchForget, 0, &fuse.LinkIn{Oldnodeid: 1}, make([]byte, 16))
	add(opForget, 2, &fuse.ForgetIn{Nlookup: 1}, nil)
	add(opIoctl, 2, &fuse.IoctlIn{OutSize: 1 << 30}, nil)
	add(opInterrupt, 0, &fuse.ForgetIn{}, nil)
	add(opInit, 0, &fuse.InitIn{Major: 7, Minor: 31}, nil)
	add(opDestroy, 0, nil, nil)
	for op := uint32(48); op < 60; op++ {
		add(op, 1, nil, []byte(strings.Repeat("x", 64)))
	}
	return append(list, all)
}
