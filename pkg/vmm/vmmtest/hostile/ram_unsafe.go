package hostile

import (
	"sync/atomic"
	"unsafe"
)

// load32 and store32 access a word that a vCPU writes or reads at the same time.
//
// Precondition: b is guest RAM, at least four bytes, at a multiple of four.
func load32(b []byte) uint32 { return atomic.LoadUint32((*uint32)(unsafe.Pointer(&b[0]))) }

// store32: see load32.
func store32(b []byte, v uint32) { atomic.StoreUint32((*uint32)(unsafe.Pointer(&b[0])), v) }
