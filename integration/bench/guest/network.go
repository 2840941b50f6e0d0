package main

import (
	"errors"
	"fmt"
	"io"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fcshim/containerd-shim-fc-v2/integration/bench/guest/task"
)

// patience bounds each wait for the host, in seconds.
const patience = 20

// bringUp gives the network interface its address.
func bringUp() error {
	const name = "eth0"
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	address, mask := task.GuestIP(), [4]byte{255, 255, 255, 252}
	for _, step := range []struct {
		request uint
		set     func(*unix.Ifreq) error
	}{
		{unix.SIOCSIFADDR, func(r *unix.Ifreq) error { return r.SetInet4Addr(address[:]) }},
		{unix.SIOCSIFNETMASK, func(r *unix.Ifreq) error { return r.SetInet4Addr(mask[:]) }},
		{unix.SIOCSIFFLAGS, func(r *unix.Ifreq) error { r.SetUint16(unix.IFF_UP | unix.IFF_RUNNING); return nil }},
	} {
		r, err := unix.NewIfreq(name)
		if err != nil {
			return err
		}
		if err := step.set(r); err != nil {
			return err
		}
		if err := unix.IoctlIfreq(fd, step.request, r); err != nil {
			return fmt.Errorf("%s, ioctl %#x: %w", name, step.request, err)
		}
	}
	return nil
}

// host is the other end of all that this guest sends over its network.
func host() *unix.SockaddrInet4 {
	a := &unix.SockaddrInet4{Port: task.Port, Addr: task.GuestIP()}
	a.Addr[3]--
	return a
}

// connect makes a socket that nothing waits for without a bound.
func connect(domain, kind int, to unix.Sockaddr) (int, error) {
	fd, err := unix.Socket(domain, kind|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	for _, option := range []int{unix.SO_RCVTIMEO, unix.SO_SNDTIMEO} {
		if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, option, &unix.Timeval{Sec: patience}); err != nil {
			return -1, err
		}
	}
	if err := unix.Connect(fd, to); err != nil {
		return -1, fmt.Errorf("connect: %w", err)
	}
	return fd, nil
}

// streamWork sends, receives, or has single bytes go there and back. What is sent ends with a byte from the host, what is received
// begins with one to the host.
func streamWork(t task.Task) (func(int) (time.Duration, error), error) {
	fd, err := dial(t.Vsock)
	if err != nil {
		return nil, err
	}
	buf, one := make([]byte, task.StreamChunk), []byte{0}
	task.Fill(buf)
	work := map[string]func(int) error{
		task.StreamSend: func(n int) error {
			for sent := 0; sent < t.Bytes; sent += len(buf) {
				task.Mark(buf, sent/task.Page, n)
				if err := writeAll(fd, buf); err != nil {
					return err
				}
			}
			return readAll(fd, one)
		},
		task.StreamRecv: func(n int) error {
			if err := writeAll(fd, one); err != nil {
				return err
			}
			for got := 0; got < t.Bytes; got += len(buf) {
				if err := readAll(fd, buf); err != nil {
					return err
				}
				if err := task.CheckMarks(buf, got/task.Page, n); err != nil {
					return err
				}
			}
			return nil
		},
		task.StreamTrip: func(int) error {
			for i := range t.Count {
				one[0] = byte(i)
				if err := writeAll(fd, one); err != nil {
					return err
				}
				if err := readAll(fd, one); err != nil {
					return err
				}
				if one[0] != byte(i) {
					return fmt.Errorf("byte %d came back as %d", byte(i), one[0])
				}
			}
			return nil
		},
	}[t.Work]
	return func(n int) (time.Duration, error) {
		began := time.Now()
		err := work(n)
		took := time.Since(began)
		if err == nil && t.Work == task.StreamRecv {
			err = task.Check(buf, (t.Bytes-len(buf))/task.Page, n)
		}
		return took, err
	}, nil
}

func dial(vsock bool) (int, error) {
	if vsock {
		return connect(unix.AF_VSOCK, unix.SOCK_STREAM, &unix.SockaddrVM{CID: task.HostCID, Port: task.Port})
	}
	if err := bringUp(); err != nil {
		return -1, err
	}
	fd, err := connect(unix.AF_INET, unix.SOCK_STREAM, host())
	if err != nil {
		return -1, err
	}
	return fd, unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1)
}

// packetWork sends or receives small packets, of which Window are under way. The last of a window that is sent is answered with one;
// a window that is received is asked for with one. No packet may be lost: a TAP's queue holds many more.
func packetWork(t task.Task) (func(int) (time.Duration, error), error) {
	if err := bringUp(); err != nil {
		return nil, err
	}
	fd, err := connect(unix.AF_INET, unix.SOCK_DGRAM, host())
	if err != nil {
		return nil, err
	}
	buf := make([]byte, task.PacketBytes)
	send := func(i int) error {
		task.SetNumber(buf, i)
		return writeAll(fd, buf)
	}
	receive := func(i int) error {
		if err := readAll(fd, buf); err != nil {
			return fmt.Errorf("waiting for packet %d: %w", i, err)
		}
		if got := task.Number(buf); got != i {
			return fmt.Errorf("packet %d came instead of %d", got, i)
		}
		return nil
	}
	many, one := send, receive
	if t.Work == task.PacketRecv {
		many, one = receive, send
	}
	return func(int) (time.Duration, error) {
		began := time.Now()
		for i := 0; i < t.Count; i += task.Window {
			if t.Work == task.PacketRecv {
				if err := one(i); err != nil {
					return 0, err
				}
			}
			for k := range task.Window {
				if err := many(i + k); err != nil {
					return 0, err
				}
			}
			if t.Work == task.PacketSend {
				if err := one(i); err != nil {
					return 0, err
				}
			}
		}
		return time.Since(began), nil
	}, nil
}

func writeAll(fd int, b []byte) error {
	for len(b) > 0 {
		n, err := unix.Write(fd, b)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return fmt.Errorf("write: %w", err)
		}
		b = b[n:]
	}
	return nil
}

func readAll(fd int, b []byte) error {
	for len(b) > 0 {
		n, err := unix.Read(fd, b)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case err != nil:
			return fmt.Errorf("read: %w", err)
		case n == 0:
			return io.ErrUnexpectedEOF
		}
		b = b[n:]
	}
	return nil
}
