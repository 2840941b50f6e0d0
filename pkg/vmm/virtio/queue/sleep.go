package queue

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// Sleep returns after d, or earlier: at the driver's notification, at Wake, or for none of these. It returns ErrStopped after Stop.
// Whoever uses the available side may call it between two calls of Pop, to leave the ring alone for a while: what it has
// missed, Wait sees. It does not allocate.
func (q *Queue) Sleep(d time.Duration) error {
	if q.notify == nil {
		return fmt.Errorf("virtqueue without eventfd: %w", os.ErrInvalid)
	}
	if err := q.deadline(time.Now().Add(d)); err != nil {
		return err
	}
	if err := q.raw.Read(q.emptyFn); err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
		return fmt.Errorf("waiting beside a virtqueue: %w", err)
	}
	return q.deadline(time.Time{})
}

// empty takes what the eventfd has counted; it returns false if that is nothing yet.
func (q *Queue) empty(fd uintptr) bool {
	_, err := unix.Read(int(fd), q.count[:])
	return err != unix.EAGAIN
}

// deadline bounds reads of the eventfd. It may come after Stop, and undo what that has done, so it looks afterwards.
func (q *Queue) deadline(t time.Time) error {
	err := q.notify.SetReadDeadline(t)
	if q.stopped.Load() {
		return ErrStopped
	}
	if err != nil {
		return fmt.Errorf("virtqueue notification: eventfd: %w", err)
	}
	return nil
}

// Wake ends a Sleep, at once or, if none is under way, the next.
func (q *Queue) Wake() {
	if q.notify != nil {
		// To a driver's notification there is no difference. The counter cannot overflow; a closed file has no sleeper.
		_, _ = q.notify.Write(binary.NativeEndian.AppendUint64(nil, 1))
	}
}
