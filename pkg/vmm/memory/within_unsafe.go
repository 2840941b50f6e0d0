package memory

import "unsafe"

// within says whether all of p lies in mem, and where: it compares addresses, and looks at no byte. An empty p lies nowhere.
//
// Precondition: mem is mapped outside the Go heap, so that its address does not change.
func within(mem, p []byte) (offset uint64, ok bool) {
	if len(p) == 0 || len(p) > len(mem) {
		return 0, false
	}
	at, base := uintptr(unsafe.Pointer(unsafe.SliceData(p))), uintptr(unsafe.Pointer(unsafe.SliceData(mem)))
	if at < base || at-base > uintptr(len(mem)-len(p)) {
		return 0, false
	}
	return uint64(at - base), true
}
