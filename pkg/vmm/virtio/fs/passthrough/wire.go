package passthrough

import (
	"encoding/binary"

	"github.com/hanwen/go-fuse/v2/fuse"
)

// Sizes of the FUSE protocol 7.38 (linux/fuse.h), in bytes.
const (
	inHeaderSize  = 40
	outHeaderSize = 16
	ioInSize      = 80 // of READ, WRITE and READDIR, the header included
	maxOutStruct  = 288
	maxName       = 255
	maxTarget     = 4095 // of a symbolic link
	maxXattr      = 64 << 10
	// maxRequest bounds what is copied of a request: an extended attribute of the largest size and its name.
	maxRequest = maxXattr + 4096
	// maxReply bounds the variable part of a reply that is not file data. Longer ones are cut, which readdir allows and no
	// extended attribute needs.
	maxReply = maxXattr
)

// Opcodes that this package serves.
const (
	opLookup        = 1
	opForget        = 2
	opGetattr       = 3
	opSetattr       = 4
	opReadlink      = 5
	opSymlink       = 6
	opMknod         = 8
	opMkdir         = 9
	opUnlink        = 10
	opRmdir         = 11
	opRename        = 12
	opLink          = 13
	opOpen          = 14
	opRead          = 15
	opWrite         = 16
	opStatfs        = 17
	opRelease       = 18
	opFsync         = 20
	opSetxattr      = 21
	opGetxattr      = 22
	opListxattr     = 23
	opRemovexattr   = 24
	opInit          = 26
	opOpendir       = 27
	opReaddir       = 28
	opReleasedir    = 29
	opFsyncdir      = 30
	opCreate        = 35
	opInterrupt     = 36
	opDestroy       = 38
	opIoctl         = 39
	opBatchForget   = 42
	opFallocate     = 43
	opReaddirplus   = 44
	opRename2       = 45
	opLseek         = 46
	opCopyFileRange = 47
	opSyncfs        = 50
	opTmpfile       = 51
	opStatx         = 52
)

// minSize is the smallest request of an opcode, in bytes, or 0 if the guest shall be told that there is no such thing.
//
// FLUSH is among those: without a writeback cache there is nothing to flush, and after one ENOSYS the guest stops asking
// at every close. So are ACCESS, as the guest checks permissions by itself, and locks.
func minSize(op uint32) int {
	switch op {
	case opReadlink, opStatfs, opDestroy:
		return inHeaderSize
	case opLookup, opUnlink, opRmdir, opRemovexattr:
		return inHeaderSize + 2
	case opSymlink:
		return inHeaderSize + 4
	case opForget, opOpen, opOpendir, opListxattr, opBatchForget, opSyncfs:
		return inHeaderSize + 8
	case opMkdir, opLink, opRename, opSetxattr, opGetxattr:
		return inHeaderSize + 8 + 2
	case opGetattr, opFsync, opFsyncdir, opInit:
		return inHeaderSize + 16
	case opMknod, opCreate, opTmpfile, opRename2:
		return inHeaderSize + 16 + 2
	case opRelease, opReleasedir, opLseek, opStatx:
		return inHeaderSize + 24
	case opFallocate:
		return inHeaderSize + 32
	case opRead, opWrite, opReaddir, opReaddirplus:
		return ioInSize
	case opCopyFileRange:
		return inHeaderSize + 56
	case opSetattr:
		return inHeaderSize + 88
	}
	return 0
}

// hasReply says whether the guest gets an answer at all.
func hasReply(op uint32) bool {
	return op != opForget && op != opBatchForget && op != opInterrupt
}

// maxPayload is the most that a reply's variable part can take, in bytes. in is a whole request of at least minSize; what
// it asks for beyond maxReply is cut there.
func maxPayload(op uint32, in []byte) int {
	var size []byte
	switch op {
	case opReadlink:
		return maxTarget
	case opReaddir, opReaddirplus:
		size = in[inHeaderSize+16:]
	case opGetxattr, opListxattr:
		size = in[inHeaderSize:]
	default:
		return 0
	}
	n := binary.LittleEndian.Uint32(size)
	if n > maxReply {
		n = maxReply
		binary.LittleEndian.PutUint32(size, n)
	}
	return int(n)
}

// putHeader writes a reply's header for n bytes in all.
func putHeader(b []byte, n int, st fuse.Status, unique uint64) {
	binary.LittleEndian.PutUint32(b, uint32(n))
	binary.LittleEndian.PutUint32(b[4:], uint32(-int32(st)))
	binary.LittleEndian.PutUint64(b[8:], unique)
}
