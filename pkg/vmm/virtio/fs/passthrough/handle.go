package passthrough

import (
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// handle is an open file or directory.
type handle struct {
	id   uint64
	node *node // a reference
	fd   int
	dir  bool
	// writable: the file was opened for writing.
	writable bool

	refs atomic.Int64 // one of the table, one of each user

	mu  sync.Mutex
	pos int64 // of a directory's descriptor
}

func (h *handle) put() {
	if h.refs.Add(-1) == 0 {
		unix.Close(h.fd)
		h.node.put()
	}
}

// handles is the table of open files.
type handles struct {
	max int

	mu   sync.RWMutex
	m    map[uint64]*handle
	last uint64
	// closed: nothing is added any more.
	closed bool
}

// get returns an open file, or nil; the caller must put it.
func (t *handles) get(id uint64) *handle {
	t.mu.RLock()
	defer t.mu.RUnlock()
	h := t.m[id]
	if h != nil {
		h.refs.Add(1)
	}
	return h
}

func (t *handles) full() bool {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return len(t.m) >= t.max
}

// add takes over h.fd, on an error too, and takes a reference to h.node. made is that of tree.insert.
func (t *handles) add(h *handle, made bool) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		unix.Close(h.fd)
		return unix.ESHUTDOWN
	}
	if !made && len(t.m) >= t.max {
		unix.Close(h.fd)
		return unix.ENFILE
	}
	h.node.refs.Add(1)
	h.refs.Store(1)
	t.last++
	h.id = t.last
	t.m[h.id] = h
	return nil
}

// remove ends the guest's use of an open file.
func (t *handles) remove(id uint64) {
	t.mu.Lock()
	h := t.m[id]
	delete(t.m, id)
	t.mu.Unlock()
	if h != nil {
		h.put()
	}
}

// closeAll closes all files that are not in use, and those when they are not any more.
func (t *handles) closeAll() {
	t.mu.Lock()
	all := t.m
	t.m, t.closed = nil, true
	t.mu.Unlock()
	for _, h := range all {
		h.put()
	}
}
