package main

import (
	"bytes"
	"os"
)

// kmsgPrefix gives a line the level KERN_ERR, which "quiet" on the kernel's command line lets through.
const kmsgPrefix = "<3>agent: "

// maxLine is what the kernel takes as one line of /dev/kmsg, in bytes, with some room for what it adds.
const maxLine = 900

// kmsg is a log's output that the kernel prints. What goes to /dev/console instead waits in the serial port's queue, and the
// last words before a panic would never leave it.
type kmsg struct{ f *os.File }

// Write hands on one line.
func (k kmsg) Write(line []byte) (int, error) {
	b := append([]byte(kmsgPrefix), bytes.TrimRight(line, "\n")...)
	if len(b) > maxLine {
		b = append(b[:maxLine-3], "..."...)
	}
	if _, err := k.f.Write(b); err != nil {
		return 0, err
	}
	return len(line), nil
}
