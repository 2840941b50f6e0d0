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

// listen makes a socket at the path that an option gives, for this user only. Closing the listener removes it.
func listen(option, path string) (net.Listener, error) {
	// Go takes a leading @ for an abstract name, which everybody on the host can connect to.
	if len(path) == 0 || len(path) > maxSocketPath || path[0] == '@' {
		return nil, fmt.Errorf("%s is %q: want a path of 1 to %d bytes that does not begin with @", option, path, maxSocketPath)
	}
	old := unix.Umask(0o077)
	defer unix.Umask(old)
	l, err := net.Listen("unix", path)
	switch {
	case errors.Is(err, unix.EADDRINUSE):
		return nil, fmt.Errorf("%s is %q, and that exists: want a path where nothing is, so remove it if no other fc-vmm uses it", option, path)
	case err != nil:
		return nil, fmt.Errorf("%s is %q: %w", option, path, errors.Unwrap(err))
	}
	return l, nil
}

// inherit takes a listening socket that this process was started with, as an option says. Whoever made it removes it.
func inherit(option string, fd int) (net.Listener, error) {
	listening, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ACCEPTCONN)
	if err != nil || listening == 0 {
		return nil, fmt.Errorf("%s is %d: want an inherited, listening socket", option, fd)
	}
	f := os.NewFile(uintptr(fd), "listener")
	defer f.Close() // FileListener has a copy of its own
	l, err := net.FileListener(f)
	if err != nil {
		return nil, fmt.Errorf("%s %d: %w", option, fd, err)
	}
	return l, nil
}
