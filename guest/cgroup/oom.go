package cgroup

import (
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// OOMKills is how many processes of the cgroup at dir the kernel has killed for want of memory, be it the cgroup's own limit
// or the guest's memory that ran out. It is 0 if the cgroup has gone or has no memory controller.
func OOMKills(dir string) uint64 {
	text, err := read(filepath.Join(dir, "memory.events"))
	if err != nil {
		return 0
	}
	for line := range strings.Lines(text) {
		if value, ok := strings.CutPrefix(line, "oom_kill "); ok {
			n, err := parse(strings.TrimSpace(value))
			if err != nil {
				return 0
			}
			return n
		}
	}
	return 0
}

// Watcher tells when a cgroup's count of OOM kills has grown. It waits in the kernel, on one inotify instance for all.
type Watcher struct {
	inotify *os.File

	mu      sync.Mutex
	watched map[int32]*watch
}

type watch struct {
	dir   string
	kills uint64
	tell  func()
}

// NewWatcher makes a watcher; Run does its work.
func NewWatcher() (*Watcher, error) {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return nil, os.NewSyscallError("inotify_init1", err)
	}
	return &Watcher{inotify: os.NewFile(uintptr(fd), "inotify"), watched: map[int32]*watch{}}, nil
}

// Add has tell called, from Run, whenever processes of the cgroup at dir have been killed for want of memory. The watch ends
// with the function returned.
func (w *Watcher) Add(dir string, tell func()) (remove func(), err error) {
	path := filepath.Join(dir, "memory.events")
	w.mu.Lock()
	defer w.mu.Unlock()
	var wd int
	if err := w.withFD(func(fd int) { wd, err = unix.InotifyAddWatch(fd, path, unix.IN_MODIFY) }); err != nil {
		return nil, err
	}
	if err != nil {
		return nil, fmt.Errorf("watch %s: %w", path, err)
	}
	w.watched[int32(wd)] = &watch{dir: dir, tell: tell}
	return sync.OnceFunc(func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		delete(w.watched, int32(wd))
		w.withFD(func(fd int) { unix.InotifyRmWatch(fd, uint32(wd)) }) // fails if the cgroup has gone, and the watch with it
	}), nil
}

func (w *Watcher) withFD(f func(fd int)) error {
	conn, err := w.inotify.SyscallConn()
	if err != nil {
		return err
	}
	return conn.Control(func(fd uintptr) { f(int(fd)) })
}

// Run works until Close, and then returns os.ErrClosed.
func (w *Watcher) Run() error {
	var buf [16 * (unix.SizeofInotifyEvent + unix.NAME_MAX + 1)]byte
	for {
		n, err := w.inotify.Read(buf[:])
		if err != nil {
			return err
		}
		for b := buf[:n]; len(b) >= unix.SizeofInotifyEvent; {
			w.look(int32(binary.NativeEndian.Uint32(b)))
			b = b[min(len(b), unix.SizeofInotifyEvent+int(binary.NativeEndian.Uint32(b[12:]))):]
		}
	}
}

// look tells if there were kills. Should an event be lost, the next one makes up for it: it is the count that decides.
func (w *Watcher) look(wd int32) {
	w.mu.Lock()
	watch := w.watched[wd]
	grown := false
	if watch != nil {
		kills := OOMKills(watch.dir)
		grown = kills > watch.kills
		watch.kills = max(kills, watch.kills)
	}
	w.mu.Unlock()
	if grown {
		watch.tell()
	}
}

// Close ends Run.
func (w *Watcher) Close() error { return w.inotify.Close() }
