package legacy

import (
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// dropped stands in a Log where older output was.
const dropped = "[earlier output dropped]\n"

// Log is a file that holds the newest of a console's output. When it is full, it goes on with its newest half: what a kernel
// says last, as when it panics, is in the file, however much the guest printed before. One goroutine may use it.
type Log struct {
	f    *os.File
	max  int64 // of a regular file; 0 for any other, which has no bound
	size int64
}

// OpenLog opens a file, which is made if need be, and continues it: what it holds counts. It never grows beyond max bytes.
// A device, a FIFO and the like take everything; a FIFO's reader may come and go.
func OpenLog(path string, max int64) (*Log, error) {
	// Opened for reading too, and not blocking, a FIFO does not wait for its reader, nor fail without one.
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|unix.O_NONBLOCK|unix.O_NOCTTY, 0o600)
	if err != nil {
		return nil, err
	}
	fi, err := f.Stat()
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	l := &Log{f: f}
	if fi.Mode().IsRegular() {
		l.max, l.size = max, fi.Size()
	}
	return l, nil
}

// Write appends p, and drops the oldest output if there is no room.
func (l *Log) Write(p []byte) (int, error) {
	if l.max == 0 {
		return l.f.Write(p)
	}
	all := len(p)
	if l.size+int64(all) > l.max {
		note := dropped[:min(int64(len(dropped)), l.max/2)]
		p = p[max(0, int64(all+len(note))-l.max):]
		if err := l.shorten(note, min(l.max/2, l.max-int64(len(p)+len(note)))); err != nil {
			return 0, err
		}
	}
	n, err := l.f.WriteAt(p, l.size)
	l.size += int64(n)
	if err != nil {
		return n, err
	}
	return all, nil
}

// shorten leaves a note and the newest keep bytes. It moves them to the front before it cuts the file, so that they are in
// it at any time.
func (l *Log) shorten(note string, keep int64) error {
	from := l.size - min(keep, l.size)
	// What is moved must not be overwritten before.
	if from < int64(len(note)) {
		from = int64(len(note))
	}
	if _, err := l.f.WriteAt([]byte(note), 0); err != nil {
		return fmt.Errorf("console log: %w", err)
	}
	to := int64(len(note))
	buf := make([]byte, 64<<10)
	for from < l.size {
		n, err := l.f.ReadAt(buf[:min(int64(len(buf)), l.size-from)], from)
		if n == 0 {
			if err != io.EOF {
				return fmt.Errorf("console log: %w", err)
			}
			break // somebody cut the file short
		}
		if _, err := l.f.WriteAt(buf[:n], to); err != nil {
			return fmt.Errorf("console log: %w", err)
		}
		from, to = from+int64(n), to+int64(n)
	}
	l.size = to
	if err := l.f.Truncate(to); err != nil {
		return fmt.Errorf("console log: %w", err)
	}
	return nil
}

// Close closes the file.
func (l *Log) Close() error { return l.f.Close() }
