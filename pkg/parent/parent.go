// Package parent ties a process's life to that of the one that started it. PR_SET_PDEATHSIG will not do: it is about the
// parent's thread, and Go ends threads at any time.
package parent

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// Follow has the kernel kill this process when the last writer of the pipe that fd reads from has gone, or writes.
// No thread of ours takes part, so it works however stuck the process is. Nothing is cleaned up: sockets and files belong
// to whoever cleans up after the parent.
func Follow(fd int) error {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return fmt.Errorf("--parent-fd %d: %w", fd, err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFIFO {
		return fmt.Errorf("--parent-fd %d: want the read end of a pipe", fd)
	}
	unix.CloseOnExec(fd)
	flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0)
	for _, set := range []struct {
		cmd, arg int
	}{
		{unix.F_SETOWN, unix.Getpid()},
		{unix.F_SETSIG, int(unix.SIGKILL)},
		{unix.F_SETFL, flags | unix.O_ASYNC},
	} {
		if err == nil {
			_, err = unix.FcntlInt(uintptr(fd), set.cmd, set.arg)
		}
	}
	if err != nil {
		return fmt.Errorf("--parent-fd %d: ask for a signal at its end: %w", fd, err)
	}
	// It may have gone before the kernel was asked.
	p := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
	for {
		switch _, err := unix.Poll(p, 0); err {
		case unix.EINTR:
			continue
		case nil:
		default:
			return fmt.Errorf("--parent-fd %d: poll: %w", fd, err)
		}
		break
	}
	if p[0].Revents != 0 {
		return fmt.Errorf("--parent-fd %d: the parent has gone", fd)
	}
	return nil
}
