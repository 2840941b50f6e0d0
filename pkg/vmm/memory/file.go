package memory

import (
	"bytes"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// Pages says what guest RAM is made of on the host.
type Pages uint8

const (
	// HostPages follows the host: 2 MiB pages where it has any, if /sys/kernel/mm/transparent_hugepage/enabled is "always".
	HostPages Pages = iota
	// TransparentPages asks for 2 MiB pages where the host has any, unless it says "never".
	TransparentPages
	// HugeTLBPages are of 2 MiB, from the host's pool (/proc/sys/vm/nr_hugepages), and reserved whole.
	HugeTLBPages
)

// HugePageSize is the size of a huge page, in bytes. RAM of HugeTLBPages is a multiple of it.
const HugePageSize = 2 << 20

// name is what /proc/PID/maps calls guest RAM.
const name = "guest-ram"

// open makes the file of size bytes behind guest RAM. huge is whether it may have huge pages.
func open(size uint64, pages Pages) (f *os.File, huge bool, err error) {
	if pages != HugeTLBPages && transparent(pages) {
		if f, err := openTmpfs(size); err == nil {
			return f, true, nil
		}
	}
	flags := 0
	if pages == HugeTLBPages {
		flags, huge = unix.MFD_HUGETLB|unix.MFD_HUGE_2MB, true
	}
	f, err = openMemfd(size, flags)
	return f, huge, err
}

// openMemfd makes a file that nobody can shrink, which would raise SIGBUS under a device.
func openMemfd(size uint64, flags int) (_ *os.File, err error) {
	fd, err := unix.MemfdCreate(name, unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING|flags)
	if err != nil {
		return nil, fmt.Errorf("guest RAM: memfd_create: %w", err)
	}
	f := os.NewFile(uintptr(fd), name)
	if err := truncate(f, size); err != nil {
		return nil, err
	}
	if _, err := unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, unix.F_SEAL_SHRINK|unix.F_SEAL_GROW|unix.F_SEAL_SEAL); err != nil {
		return nil, fmt.Errorf("guest RAM: F_ADD_SEALS: %w", errors.Join(err, f.Close()))
	}
	return f, nil
}

// truncate gives the file its size, or closes it.
func truncate(f *os.File, size uint64) error {
	if err := unix.Ftruncate(int(f.Fd()), int64(size)); err != nil {
		return fmt.Errorf("guest RAM: ftruncate to %d bytes: %w", size, errors.Join(err, f.Close()))
	}
	return nil
}

// transparent reports whether the host's administrator lets guest RAM have huge pages.
func transparent(pages Pages) bool {
	setting, err := os.ReadFile("/sys/kernel/mm/transparent_hugepage/enabled")
	if err != nil {
		return false // a kernel without them
	}
	return bytes.Contains(setting, []byte("[always]")) || pages == TransparentPages && bytes.Contains(setting, []byte("[madvise]"))
}

// openTmpfs makes a file in a tmpfs of its own, which has huge pages whatever shmem_enabled says: that one is for memfds, and "never"
// on every distribution. The tmpfs is in no mount namespace and ends with the file. It cannot be had without CAP_SYS_ADMIN,
// nor from a kernel that has no huge pages. Nor can its files be sealed: whom it is given to could shrink it, who can write to all of the
// guest anyway.
func openTmpfs(size uint64) (_ *os.File, err error) {
	fs, err := unix.Fsopen("tmpfs", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return nil, err
	}
	defer unix.Close(fs)
	// Without a size of its own, a tmpfs holds half of the host's RAM.
	for _, option := range [...][2]string{{"huge", "within_size"}, {"size", "0"}, {"mode", "0700"}} {
		if err := unix.FsconfigSetString(fs, option[0], option[1]); err != nil {
			return nil, err
		}
	}
	if err := unix.FsconfigCreate(fs); err != nil {
		return nil, err
	}
	mount, err := unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	defer unix.Close(mount)
	fd, err := unix.Openat(mount, name, unix.O_RDWR|unix.O_CREAT|unix.O_EXCL|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), name)
	if err := unix.Unlinkat(mount, name, 0); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	if err := truncate(f, size); err != nil {
		return nil, err
	}
	return f, nil
}
