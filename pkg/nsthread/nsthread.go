// Package nsthread runs functions on a thread of their own that is in other namespaces than the rest of the process. It must
// never let such a thread come back into Go's pool.
package nsthread

import (
	"fmt"
	"os"
	"runtime"

	"golang.org/x/sys/unix"
)

// Namespace is a namespace to be entered: a file of /proc/PID/ns, opened, and its kind, one of CLONE_NEW…
type Namespace struct {
	File *os.File
	Kind int
}

// Do runs f on a thread that has entered the namespaces, in their order, and ends with f. What f starts inherits them, and
// its mount namespace changes nobody else's root or working directory. f must not start goroutines that need them: those run on
// other threads. The error is that of entering, or f's.
func Do(f func() error, namespaces ...Namespace) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		if unix.Gettid() == unix.Getpid() {
			// The first thread never ends, and what it is in shows as the process's. While this goroutine keeps it, another one
			// gets another.
			err := Do(f, namespaces...)
			runtime.UnlockOSThread()
			done <- err
			return
		}
		// Never unlocked: the thread, with its namespaces, ends with this goroutine.
		done <- enter(f, namespaces)
	}()
	return <-done
}

func enter(f func() error, namespaces []Namespace) error {
	// A thread that shares its root and working directory with others may not enter a mount namespace.
	if err := unix.Unshare(unix.CLONE_FS); err != nil {
		return fmt.Errorf("give a thread a root of its own: %w", err)
	}
	for _, ns := range namespaces {
		if err := unix.Setns(int(ns.File.Fd()), ns.Kind); err != nil {
			return fmt.Errorf("enter namespace %s: %w", ns.File.Name(), err)
		}
	}
	return f()
}
