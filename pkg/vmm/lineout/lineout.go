// Package lineout writes lines to what an operator has named for them: a file, a named pipe, a terminal. The VMM never waits for
// whoever reads there: a line that is not taken at once is lost, and its writer is told. It must never write a part of a line that it
// does not finish, nor be ended by a reader who leaves.
package lineout

import (
	"bytes"
	"fmt"
	"io/fs"
	"sync"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// ErrClosed is the error of a Write after Close.
var ErrClosed = fmt.Errorf("the file has been closed: %w", errdefs.ErrFailedPrecondition)

// File takes lines, from any goroutine.
type File struct {
	mu sync.Mutex
	fd int // -1 after Close
	// rest is what a pipe did not take of the last line that it has begun. It goes out before anything else does.
	rest []byte
}

// Open opens a file, which is made for this user only if there is none, and goes on at its end. A named pipe needs no reader: what it
// has room for waits for one. The error is a plain errno, for the caller to add the path.
func Open(path string) (*File, error) {
	// Not blocking: neither for a pipe without a reader, nor for a full one. Opened for reading too, a pipe outlives its readers.
	flags := unix.O_RDWR | unix.O_APPEND | unix.O_CREAT | unix.O_NONBLOCK | unix.O_NOCTTY | unix.O_CLOEXEC
	fd, err := open(path, flags)
	if err == unix.EACCES {
		// A file that this user may write only. For a pipe it fails unless there is a reader.
		fd, err = open(path, flags&^unix.O_ACCMODE|unix.O_WRONLY)
	}
	if err != nil {
		return nil, err
	}
	return &File{fd: fd}, nil
}

func open(path string, flags int) (int, error) {
	for {
		fd, err := unix.Open(path, flags, 0o600)
		if err != unix.EINTR {
			return fd, err
		}
	}
}

// Write writes a line, all of it, or nothing and an error: unix.EAGAIN if a pipe is full. It does not wait, but for a disk. It does not
// keep the line.
func (f *File) Write(line []byte) (int, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.fd < 0 {
		return 0, ErrClosed
	}
	if err := f.finish(); err != nil {
		return 0, err
	}
	n, err := f.write(line)
	if n == 0 && len(line) > 0 {
		return 0, err
	}
	f.rest = bytes.Clone(line[n:])
	return len(line), nil
}

// finish writes what is left of a line that has been begun.
func (f *File) finish() error {
	if len(f.rest) == 0 {
		return nil
	}
	n, err := f.write(f.rest)
	if f.rest = f.rest[n:]; len(f.rest) > 0 {
		return err
	}
	f.rest = nil
	return nil
}

// write writes as much as is taken at once. The error says why that is not all.
func (f *File) write(p []byte) (done int, err error) {
	for done < len(p) {
		n, err := unix.Write(f.fd, p[done:])
		switch {
		case err == unix.EINTR:
		case err != nil:
			return done, err
		case n == 0:
			return done, fs.ErrInvalid // no file does that
		default:
			done += n
		}
	}
	return done, nil
}

// Close finishes the last line, if that needs no waiting. A second Close does nothing.
func (f *File) Close() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.fd < 0 {
		return nil
	}
	err := f.finish()
	closeErr := unix.Close(f.fd)
	f.fd = -1
	if err != nil {
		return err
	}
	return closeErr
}
