package main

import (
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// workDir is one run's folder. A lock on it says that its run lives.
type workDir struct {
	path string
	lock *os.File
}

// newWorkDir makes the folder and removes those of runs that were killed.
func newWorkDir(cache string) (*workDir, error) {
	base := filepath.Join(cache, "run")
	if err := os.MkdirAll(base, 0o700); err != nil {
		return nil, err
	}
	// One at a time, so that a folder just made is not taken for a dead one before it is locked.
	gate, err := lockPath(base, unix.LOCK_EX)
	if err != nil {
		return nil, err
	}
	defer gate.Close()
	old, err := filepath.Glob(filepath.Join(base, "*"))
	if err != nil {
		return nil, err
	}
	for _, p := range old {
		if f, err := lockPath(p, unix.LOCK_EX|unix.LOCK_NB); err == nil {
			os.RemoveAll(p)
			f.Close()
		}
	}
	p, err := os.MkdirTemp(base, "")
	if err != nil {
		return nil, err
	}
	f, err := lockPath(p, unix.LOCK_EX)
	if err != nil {
		return nil, err
	}
	return &workDir{path: p, lock: f}, nil
}

func (w *workDir) remove() {
	os.RemoveAll(w.path)
	w.lock.Close()
}

func lockPath(path string, how int) (*os.File, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), how); err != nil {
		f.Close()
		return nil, fmt.Errorf("lock %s: %w", path, err)
	}
	return f, nil
}
