package block

// submitAndEnd is submit for what has been taken from the queue together. Reads of what the host has in its page cache have been done when
// Submit returns: they end here, and wake nobody. Writes and flushes always end later.
func (e *engine) submitAndEnd() error {
	e.mu.Lock()
	if e.slow || e.reads == 0 {
		defer e.mu.Unlock()
		return e.submitLocked()
	}
	e.ring.Mute(true)
	err := e.submitLocked()
	e.ring.Mute(false)
	e.mu.Unlock()
	if err == nil {
		err = e.endReady()
	}
	if e.pending.Load() > 0 {
		e.ring.Wake() // one of their results may have come unheard
	}
	return err
}

// endReady ends those requests whose results are there.
func (e *engine) endReady() error {
	ended := false
	for {
		id, result, ok := e.next()
		if !ok {
			break
		}
		if err := e.end(id, result); err != nil {
			return err
		}
		ended = true
	}
	if ended {
		e.interrupt()
	}
	return nil
}

// next takes a result from the ring.
func (e *engine) next() (id uint32, result int32, ok bool) {
	e.results.Lock()
	defer e.results.Unlock()
	n, result, ok := e.ring.Next()
	return uint32(n), result, ok
}
