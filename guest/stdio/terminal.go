package stdio

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// openConsole makes the socket over which the process's starter sends the master of the terminal.
func (o *IO) openConsole() error {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return os.NewSyscallError("socketpair", err)
	}
	o.console, o.files.Console = os.NewFile(uintptr(fds[0]), "console"), os.NewFile(uintptr(fds[1]), "console")
	return nil
}

// takeMaster receives the terminal's master, which has been sent by now, and readies both directions.
func (o *IO) takeMaster() error {
	fd, err := receiveFD(int(o.console.Fd()))
	o.console.Close()
	o.console = nil
	if err != nil {
		return fmt.Errorf("receive the terminal: %w", err)
	}
	if err := unix.SetNonblock(fd, true); err != nil {
		unix.Close(fd)
		return os.NewSyscallError("set O_NONBLOCK on the terminal", err)
	}
	o.master = os.NewFile(uintptr(fd), "terminal")
	if o.stdin != nil {
		o.in = &input{src: o.stdin, dst: o.master}
	}
	o.out = append(o.out, newOutput(o.master, o.stdout, true))
	return nil
}

// receiveFD takes the one descriptor that waits on a Unix socket; it does not wait itself.
func receiveFD(socket int) (int, error) {
	name, oob := make([]byte, 4096), make([]byte, unix.CmsgSpace(4))
	_, n, _, _, err := unix.Recvmsg(socket, name, oob, unix.MSG_DONTWAIT|unix.MSG_CMSG_CLOEXEC)
	if err != nil {
		return -1, os.NewSyscallError("recvmsg", err)
	}
	messages, err := unix.ParseSocketControlMessage(oob[:n])
	if err != nil {
		return -1, err
	}
	if len(messages) != 1 {
		return -1, fmt.Errorf("%d control messages instead of 1", len(messages))
	}
	fds, err := unix.ParseUnixRights(&messages[0])
	if err != nil {
		return -1, err
	}
	if len(fds) != 1 {
		for _, fd := range fds {
			unix.Close(fd)
		}
		return -1, fmt.Errorf("%d descriptors instead of 1", len(fds))
	}
	return fds[0], nil
}

// Resize sets the terminal's size in characters.
func (o *IO) Resize(width, height uint16) error {
	if o.master == nil {
		return ErrNoTerminal
	}
	conn, err := o.master.SyscallConn()
	if err != nil {
		return err
	}
	if cerr := conn.Control(func(fd uintptr) {
		err = unix.IoctlSetWinsize(int(fd), unix.TIOCSWINSZ, &unix.Winsize{Col: width, Row: height})
	}); cerr != nil {
		return cerr
	}
	return os.NewSyscallError("set the terminal's size", err)
}

// pending is how many bytes wait to be read from f; 0 if it cannot tell.
func pending(f *os.File) int {
	conn, err := f.SyscallConn()
	if err != nil {
		return 0
	}
	n := 0
	conn.Control(func(fd uintptr) { n, err = unix.IoctlGetInt(int(fd), unix.TIOCINQ) })
	if err != nil {
		return 0
	}
	return n
}
