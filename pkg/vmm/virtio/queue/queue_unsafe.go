package queue

import (
	"sync/atomic"
	"unsafe"
)

// The functions of this file access a ring's 16-bit fields through the aligned 32-bit word around them, as sync/atomic
// has nothing smaller. Being sequentially consistent, they also order a store before a later load, which notification
// suppression needs (virtio 1.2 §2.7.7, §2.7.10).

// word returns the aligned 32-bit word that holds b[off].
//
// Precondition: b is guest RAM, whose mapping starts and ends on a page boundary, so that the whole word is mapped even
// where it reaches beyond b; off < len(b), or this panics.
func word(b []byte, off int) (*uint32, uint) {
	p := unsafe.Pointer(&b[off])
	in := uintptr(p) & 3
	return (*uint32)(unsafe.Add(p, -int(in))), uint(in) * 8
}

// load16 reads the 16 bits at b[off].
//
// Precondition: word's, and &b[off] is even, so that the field does not straddle two words.
func load16(b []byte, off int) uint16 {
	p, shift := word(b, off)
	return uint16(atomic.LoadUint32(p) >> shift)
}

// store16 writes the 16 bits at b[off] and leaves the word's other half alone. A reader may see zero in between.
//
// Precondition: load16's.
func store16(b []byte, off int, v uint16) {
	p, shift := word(b, off)
	atomic.AndUint32(p, ^(uint32(0xffff) << shift))
	atomic.OrUint32(p, uint32(v)<<shift)
}

// add32 adds v to the 32 bits at b[off].
//
// Precondition: word's, and &b[off] is a multiple of four.
func add32(b []byte, off int, v uint32) {
	p, _ := word(b, off)
	atomic.AddUint32(p, v)
}

// or32 sets bits of the 32 bits at b[off].
//
// Precondition: add32's.
func or32(b []byte, off int, v uint32) {
	p, _ := word(b, off)
	atomic.OrUint32(p, v)
}

// and32 clears the bits of the 32 bits at b[off] that are not in v.
//
// Precondition: add32's.
func and32(b []byte, off int, v uint32) {
	p, _ := word(b, off)
	atomic.AndUint32(p, v)
}
