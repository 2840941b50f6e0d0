package virtiotest

import (
	"sync/atomic"
	"unsafe"
)

// load16 reads a ring's 16-bit field atomically.
//
// Precondition: b is guest RAM, at least two bytes, at an even address.
func load16(b []byte) uint16 {
	p := unsafe.Pointer(&b[0])
	in := uintptr(p) & 3
	return uint16(atomic.LoadUint32((*uint32)(unsafe.Add(p, -int(in)))) >> (8 * in))
}

// store16 writes a ring's 16-bit field atomically, and no load after it passes it. The driver alone may write to the
// 32-bit word around the field.
//
// Precondition: load16's.
func store16(b []byte, v uint16) {
	p := unsafe.Pointer(&b[0])
	in := uintptr(p) & 3
	w := (*uint32)(unsafe.Add(p, -int(in)))
	old := atomic.LoadUint32(w)
	atomic.StoreUint32(w, old&^(0xffff<<(8*in))|uint32(v)<<(8*in))
}
