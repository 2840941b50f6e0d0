package main

import (
	"fmt"
	"io"
)

// Modes of cpio entries.
const (
	cpioDir  = 0o040755
	cpioExec = 0o100755
)

// cpio writes an archive in the "newc" form that the kernel reads (Documentation/driver-api/early-userspace/buffer-format.rst).
// The first error sticks.
type cpio struct {
	w   io.Writer
	ino int
	err error
}

func (c *cpio) add(name string, mode int, data []byte) {
	c.ino++
	c.print("070701%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x",
		c.ino, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name)+1, 0)
	c.print("%s\x00", name)
	c.pad(110 + len(name) + 1)
	c.print("%s", data)
	c.pad(len(data))
}

func (c *cpio) pad(n int) { c.print("%s", "\x00\x00\x00"[:(4-n%4)%4]) }

func (c *cpio) print(format string, args ...any) {
	if c.err == nil {
		_, c.err = fmt.Fprintf(c.w, format, args...)
	}
}
