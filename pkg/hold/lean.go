package hold

import "golang.org/x/sys/unix"

// LeanHeap, as GODEBUG in a Go program's environment at its start, keeps its heap in small pages. Where transparent huge pages
// are always on, a process that needs a few hundred KiB takes 2 MiB or 4 MiB otherwise. A guest's RAM is no part of the heap.
const LeanHeap = "disablethp=1"

// LeanGC, as GOGC, has garbage collected from 1 MiB of heap on (a quarter of what is usual; runtime/debug.SetGCPercent): in processes
// that live for long and keep less than that, the rest would be garbage.
const LeanGC = "25"

// StartLean has start start a child without transparent huge pages, for the same reason: Go programs with crypto/rand have 32 MiB of static
// variables that nobody touches (crypto/internal/fips140/drbg), so that the page of those that the runtime does touch beside them would be a huge
// one. What else this process starts meanwhile has none, either. A child that wants some for a guest's RAM says AllowHugePages. Two calls must not
// overlap.
func StartLean(start func() error) error {
	allowHugePages(false)
	defer allowHugePages(true)
	return start()
}

// AllowHugePages ends what StartLean has begun, for a process whose runtime has touched what it touches.
func AllowHugePages() { allowHugePages(true) }

// allowHugePages cannot fail but where somebody has forbidden the call. Then processes weigh more.
func allowHugePages(on bool) {
	disable := uintptr(1)
	if on {
		disable = 0
	}
	_ = unix.Prctl(unix.PR_SET_THP_DISABLE, disable, 0, 0, 0)
}
