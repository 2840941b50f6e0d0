package vmmtest

import (
	"bytes"
	"sync"
)

// Console is a guest's console that can be read while the guest writes. The zero value is ready.
type Console struct {
	mu sync.Mutex
	b  bytes.Buffer
}

// Write implements io.Writer.
func (c *Console) Write(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.b.Write(p)
}

// String is what the guest has written until now.
func (c *Console) String() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.b.String()
}
