package ocispec

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// machine is where the guest's devices are to be seen; tests have others.
type machine struct{ dev, sys string }

func guestMachine() machine { return machine{"/dev", "/sys"} }

// convertDevices refuses a device that the guest does not have, for a node of that number would be of no use, and gives a container
// that may use all devices the guest's own in the place of those that the client found on the host.
func convertDevices(linux *specs.Linux, m machine) error {
	if !allDevices(linux) {
		for i, d := range linux.Devices {
			if !m.has(d) {
				return invalid(fmt.Sprintf("linux.devices[%d]", i), "%s: the guest has no device %s %d:%d; a container gets devices of its VM, not of the host",
					d.Path, d.Type, d.Major, d.Minor)
			}
		}
		return nil
	}
	linux.Devices = slices.DeleteFunc(linux.Devices, func(d specs.LinuxDevice) bool { return !m.has(d) })
	for _, d := range m.devices() {
		if !slices.ContainsFunc(linux.Devices, func(o specs.LinuxDevice) bool { return o.Path == d.Path }) {
			linux.Devices = append(linux.Devices, d)
		}
	}
	return nil
}

// allDevices says whether a container may use every device, as privileged ones may.
func allDevices(l *specs.Linux) bool {
	return l.Resources != nil && slices.ContainsFunc(l.Resources.Devices, func(r specs.LinuxDeviceCgroup) bool {
		return r.Allow && (r.Type == "" || r.Type == "a") && r.Major == nil && r.Minor == nil
	})
}

// has looks in sysfs, which knows every device of the kernel's, with a node or without.
func (m machine) has(d specs.LinuxDevice) bool {
	kind := ""
	switch d.Type {
	case "c", "u":
		kind = "char"
	case "b":
		kind = "block"
	default: // a pipe needs none
		return true
	}
	_, err := os.Stat(filepath.Join(m.sys, "dev", kind, fmt.Sprintf("%d:%d", d.Major, d.Minor)))
	return err == nil
}

// devices lists the nodes in the guest's /dev. What is missing among them is missing in the container, too.
func (m machine) devices() (list []specs.LinuxDevice) {
	_ = filepath.WalkDir(m.dev, func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			return nil
		}
		if e.IsDir() {
			if path == filepath.Join(m.dev, "pts") || path == filepath.Join(m.dev, "shm") || path == filepath.Join(m.dev, "mqueue") {
				return fs.SkipDir // file systems of their own
			}
			return nil
		}
		var st unix.Stat_t
		if e.Type()&fs.ModeDevice == 0 || e.Name() == "console" || e.Name() == "ptmx" || unix.Lstat(path, &st) != nil {
			return nil // a container has a console and a ptmx of its own
		}
		kind := "b"
		if st.Mode&unix.S_IFMT == unix.S_IFCHR {
			kind = "c"
		}
		mode := fs.FileMode(st.Mode & 0o7777)
		list = append(list, specs.LinuxDevice{
			Path: filepath.Join("/dev", path[len(m.dev):]), Type: kind, Major: int64(unix.Major(st.Rdev)), Minor: int64(unix.Minor(st.Rdev)),
			FileMode: &mode, UID: &st.Uid, GID: &st.Gid,
		})
		return nil
	})
	return list
}
