package queue

// Layout of a split virtqueue (virtio 1.2 §2.7.5, §2.7.6, §2.7.8): offsets in bytes.
const (
	descSize     = 16
	descNext     = 1
	descWrite    = 2
	descIndirect = 4

	availFlags           = 0
	availIdx             = 2
	availRing            = 4 // followed by used_event
	availFlagNoInterrupt = 1

	usedFlags        = 0 // the index is the upper half of the same word
	usedRing         = 4 // followed by avail_event
	usedFlagNoNotify = 1
)

// storeUsedHeader clears flags and index of a used ring.
func storeUsedHeader(used []byte) { and32(used, usedFlags, 0) }
