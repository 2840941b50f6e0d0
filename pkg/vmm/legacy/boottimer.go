package legacy

import "sync"

// BootTimerDone is what a guest's init writes to the boot timer's first byte when it runs.
const BootTimerDone = 123

// BootTimer is Firecracker's boot timer: a page of MMIO by which the guest's user space tells that it runs. Booted is called for
// the first such write, on the vCPU's thread: it must not block. Every other write is ignored, so that a guest cannot make the
// host do anything over and over; reads are nobody's.
type BootTimer struct {
	Booted func()

	once sync.Once
}

// Write carries out a write of data at an offset into the page.
func (b *BootTimer) Write(offset uint64, data []byte) {
	if offset == 0 && len(data) == 1 && data[0] == BootTimerDone {
		b.once.Do(b.Booted)
	}
}
