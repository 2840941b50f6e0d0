package main

import (
	"fmt"
	"io"
)

// transfer is what a system call has moved.
type transfer struct {
	n   int
	err error
}

func whole(n int, err error) transfer { return transfer{n, err} }

// of is an error unless all of buf was moved.
func (t transfer) of(buf []byte, off int) error {
	switch {
	case t.err != nil:
		return fmt.Errorf("%d bytes at %d: %w", len(buf), off, t.err)
	case t.n != len(buf):
		return fmt.Errorf("%d of %d bytes at %d: %w", t.n, len(buf), off, io.ErrUnexpectedEOF)
	}
	return nil
}
