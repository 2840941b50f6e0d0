package shim

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
)

// Names of a VM's sockets in the bundle. They are relative to it, as the working directory of those who use them, because a Unix socket's
// path holds 107 bytes and a bundle's path may be longer.
const (
	apiSocket   = "fc.sock"
	vsockSocket = "vsock.sock"
	filesSocket = "fs.sock"
)

// sockets is a folder to bind Unix sockets in by a short name, whatever the folder's own path is.
type sockets struct{ dir *os.File }

func openSockets(folder string) (*sockets, error) {
	f, err := os.Open(folder)
	if err != nil {
		return nil, fmt.Errorf("open the bundle: %w", err)
	}
	return &sockets{dir: f}, nil
}

func (s *sockets) path(name string) string {
	return fmt.Sprintf("/proc/self/fd/%d/%s", s.dir.Fd(), name)
}

// listen binds a socket in the folder that only root can connect to; what an earlier process left there is replaced.
func (s *sockets) listen(name string) (*net.UnixListener, error) {
	if err := ignoreMissing(os.Remove(s.path(name))); err != nil {
		return nil, fmt.Errorf("replace socket %s: %w", name, err)
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: s.path(name), Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w", name, err)
	}
	l.SetUnlinkOnClose(false) // removeSockets does it, when nobody can need it any more
	return l, nil
}

func (s *sockets) close() { s.dir.Close() }

// removeSockets removes a VM's sockets from a bundle.
func removeSockets(bundle string) error {
	names, err := filepath.Glob(filepath.Join(bundle, vsockSocket+"*"))
	errs := []error{err}
	for _, n := range append(names, filepath.Join(bundle, apiSocket), filepath.Join(bundle, filesSocket)) {
		errs = append(errs, ignoreMissing(os.Remove(n)))
	}
	return errors.Join(errs...)
}
