package virtio

import (
	"errors"
	"fmt"
	"time"
)

// ResetTimeout bounds how long a device's Reset waits for its goroutines. A request that a host's file system or disk holds
// up takes as long as it takes. It is shorter than what a machine waits for a vCPU, whose thread may be in a Reset.
const ResetTimeout = 3 * time.Second

// ErrBusy is wrapped by the error of a Reset that has not come to its end: guest RAM is still in use, and must stay mapped.
var ErrBusy = errors.New("guest RAM is still in use")

// Ending is the end of a device's work, from one Reset to the next Activate. The zero value has nothing to wait for. Its
// methods must not be called at the same time.
type Ending struct{ done chan struct{} }

// Await runs f, which returns when nothing of the device touches guest memory, and waits for it up to ResetTimeout. Err must
// have been nil.
func (e *Ending) Await(f func()) error {
	done := make(chan struct{})
	e.done = done
	go func() {
		defer close(done)
		f()
	}()
	t := time.NewTimer(ResetTimeout)
	defer t.Stop()
	select {
	case <-done:
	case <-t.C:
	}
	return e.Err()
}

// Err is nil, or wraps ErrBusy if what Await waited for has not yet ended. It does not wait: a guest that resets its device
// again and again is not held up each time.
func (e *Ending) Err() error {
	if e.done == nil {
		return nil
	}
	select {
	case <-e.done:
		e.done = nil
		return nil
	default:
		return fmt.Errorf("reset took longer than %s: the host has not finished a request: %w", ResetTimeout, ErrBusy)
	}
}
