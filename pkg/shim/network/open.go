package network

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// Errors of OpenPath.
var (
	// ErrHost says that a namespace is the host's own.
	ErrHost = errors.New("it is the host's")
	// ErrNoNetwork says that a file is no network namespace.
	ErrNoNetwork = errors.New("not a network namespace")
)

// OpenPath opens a network namespace, by a path like /run/netns/NAME or /proc/PID/ns/net. It wraps ErrHost for this process's
// own and for that of PID 1, and ErrNoNetwork for what is none.
func OpenPath(path string) (_ *os.File, err error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			f.Close()
		}
	}()
	var fs unix.Statfs_t
	if err := unix.Fstatfs(int(f.Fd()), &fs); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	if fs.Type != unix.NSFS_MAGIC {
		return nil, fmt.Errorf("%s: %w", path, ErrNoNetwork)
	}
	if kind, err := unix.IoctlRetInt(int(f.Fd()), unix.NS_GET_NSTYPE); err != nil || kind != unix.CLONE_NEWNET {
		return nil, fmt.Errorf("%s: %w", path, ErrNoNetwork)
	}
	own, err := f.Stat()
	if err != nil {
		return nil, err
	}
	for _, host := range []string{"/proc/self/ns/net", "/proc/1/ns/net"} {
		if fi, err := os.Stat(host); err == nil && os.SameFile(fi, own) {
			return nil, fmt.Errorf("%s: %w", path, ErrHost)
		}
	}
	return f, nil
}
