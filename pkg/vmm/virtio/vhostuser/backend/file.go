package backend

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/virtio/vhostuser/wire"
)

// file is a descriptor that has come with a message. What nobody takes is closed with the message.
type file struct{ fd int }

// take makes the descriptor the caller's.
func (f *file) take() int {
	fd := f.fd
	f.fd = -1
	return fd
}

// Close closes the descriptor, unless it has been taken.
func (f *file) Close() {
	if f.fd >= 0 {
		_ = unix.Close(f.take())
	}
}

// descriptors takes the descriptors out of what came beside a message's bytes.
func descriptors(oob []byte) (files []*file, err error) {
	messages, err := unix.ParseSocketControlMessage(oob)
	var errs []error
	for i := range messages {
		fds, err := unix.ParseUnixRights(&messages[i])
		for _, fd := range fds {
			unix.CloseOnExec(fd)
			files = append(files, &file{fd})
		}
		errs = append(errs, err)
	}
	return files, errors.Join(append(errs, err)...)
}

// same says whether two descriptors are of one open file: each message brings a new descriptor. A kernel that cannot tell says no.
func same(a, b int) bool {
	const kcmpFile = 0
	pid := uintptr(unix.Getpid())
	order, _, errno := unix.Syscall6(unix.SYS_KCMP, pid, pid, kcmpFile, uintptr(a), uintptr(b), 0)
	return errno == 0 && order == 0
}

// one wants just one descriptor.
func one(files []*file) (*file, error) {
	if len(files) != 1 {
		return nil, fmt.Errorf("%w: %d descriptors: want 1", wire.ErrMalformed, len(files))
	}
	return files[0], nil
}
