package net

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

const tunPath = "/dev/net/tun"

// openTAP attaches to a TAP by name, or makes it. Reads and writes of the file do not block, and carry a frame behind a
// header of headerSize bytes.
func openTAP(name string) (*os.File, error) {
	fd, err := unix.Open(tunPath, unix.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("%s (of the module tun): %w", tunPath, err)
	}
	if err := setUpTAP(fd, name); err != nil {
		unix.Close(fd)
		return nil, err
	}
	return os.NewFile(uintptr(fd), tunPath), nil
}

func setUpTAP(fd int, name string) error {
	ifr, err := unix.NewIfreq(name)
	if err != nil {
		return fmt.Errorf("name of an interface: %w", err)
	}
	ifr.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
	switch err := unix.IoctlIfreq(fd, unix.TUNSETIFF, ifr); err {
	case nil:
	case unix.EBUSY:
		return fmt.Errorf("attaching to the TAP, which another program has: %w", err)
	case unix.EINVAL:
		return fmt.Errorf("attaching to the interface, which is no TAP, or one of several queues: %w", err)
	default:
		return fmt.Errorf("attaching to the TAP: %w", err)
	}
	if err := unix.IoctlSetPointerInt(fd, unix.TUNSETVNETHDRSZ, headerSize); err != nil {
		return fmt.Errorf("size of the TAP's header: %w", err)
	}
	// The last user may have left others.
	if err := unix.IoctlSetInt(fd, unix.TUNSETOFFLOAD, 0); err != nil {
		return fmt.Errorf("offloads of the TAP: %w", err)
	}
	return nil
}

func setOffload(f *os.File, flags int) error {
	raw, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var inner error
	if err := raw.Control(func(fd uintptr) { inner = unix.IoctlSetInt(int(fd), unix.TUNSETOFFLOAD, flags) }); err != nil {
		return err
	}
	return inner
}

// offloads are the TUN_F_ flags for the features that a driver accepted: all of them need checksums to be left out.
func offloads(accepted uint64) int {
	if accepted&featureGuestCSUM == 0 {
		return 0
	}
	flags := unix.TUN_F_CSUM
	for _, o := range []struct {
		feature uint64
		flag    int
	}{
		{featureGuestTSO4, unix.TUN_F_TSO4},
		{featureGuestTSO6, unix.TUN_F_TSO6},
		{featureGuestUFO, unix.TUN_F_UFO},
	} {
		if accepted&o.feature != 0 {
			flags |= o.flag
		}
	}
	if accepted&featureGuestECN != 0 && flags&(unix.TUN_F_TSO4|unix.TUN_F_TSO6) != 0 {
		flags |= unix.TUN_F_TSO_ECN
	}
	return flags
}
