package main

import (
	"errors"
	"fmt"
	"net"
	"os"

	"golang.org/x/sys/unix"
)

// maxSocketPath is what a Unix socket's address holds, in bytes.
const maxSocketPath = 107

// listen makes the API's socket, for this user only. Closing the listener removes it.
func listen(path string) (net.Listener, error) {
	// Go takes a leading @ for an abstract name, which everybody on the host can connect to.
	if len(path) == 0 || len(path) > maxSocketPath || path[0] == '@' {
		return nil, fmt.Errorf("--api-sock is %q: want a path of 1 to %d bytes that does not begin with @", path, maxSocketPath)
	}
	old := unix.Umask(0o077)
	defer unix.Umask(old)
	l, err := net.Listen("unix", path)
	switch {
	case errors.Is(err, unix.EADDRINUSE):
		return nil, fmt.Errorf("--api-sock is %q, and that exists: want a path where nothing is, so remove it if no other fc-vmm uses it", path)
	case err != nil:
		return nil, fmt.Errorf("--api-sock is %q: %w", path, errors.Unwrap(err))
	}
	return l, nil
}

// inherit takes a listening socket that this process was started with. Whoever made it removes it.
func inherit(fd int) (net.Listener, error) {
	listening, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ACCEPTCONN)
	if err != nil || listening == 0 {
		return nil, fmt.Errorf("--api-fd is %d: want an inherited, listening socket", fd)
	}
	f := os.NewFile(uintptr(fd), "api")
	defer f.Close() // FileListener has a copy of its own
	l, err := net.FileListener(f)
	if err != nil {
		return nil, fmt.Errorf("--api-fd %d: %w", fd, err)
	}
	return l, nil
}
