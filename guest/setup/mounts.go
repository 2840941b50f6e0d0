// Package setup makes a bare kernel into a guest that can run containers: file systems, cgroups, limits, loopback. It is a
// list of what must be there, and the few functions that see to it. It runs once, first thing in PID 1, and must do nothing
// that a container does not need: every boot pays for it.
package setup

import (
	"errors"
	"fmt"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"

	"github.com/fcshim/containerd-shim-fc-v2/pkg/agent"
)

// CgroupRoot is where the cgroup v2 hierarchy is.
const CgroupRoot = "/sys/fs/cgroup"

// Mount is a file system that the guest needs.
type Mount struct {
	Source, Target, Type string
	Flags                uintptr
	Data                 string
	// Optional: the VM may lack what backs it; that is logged, and what needs it later says so.
	Optional bool
}

// Mounts lists the guest's file systems in the order in which they are mounted. The root stays read-only.
func Mounts() []Mount {
	const strict = unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC
	return []Mount{
		{Source: "proc", Target: "/proc", Type: "proc", Flags: strict},
		{Source: "sysfs", Target: "/sys", Type: "sysfs", Flags: strict},
		{Source: "devtmpfs", Target: "/dev", Type: "devtmpfs", Flags: unix.MS_NOSUID, Data: "mode=0755"},
		{Source: "devpts", Target: "/dev/pts", Type: "devpts", Flags: unix.MS_NOSUID | unix.MS_NOEXEC, Data: "gid=5,mode=0620,ptmxmode=0666"},
		{Source: "shm", Target: "/dev/shm", Type: "tmpfs", Flags: strict, Data: "mode=1777"},
		{Source: "mqueue", Target: "/dev/mqueue", Type: "mqueue", Flags: strict},
		{Source: "tmpfs", Target: "/run", Type: "tmpfs", Flags: unix.MS_NOSUID | unix.MS_NODEV, Data: "mode=0755"},
		{Source: "tmpfs", Target: "/tmp", Type: "tmpfs", Flags: unix.MS_NOSUID | unix.MS_NODEV, Data: "mode=1777"},
		{Source: "cgroup2", Target: CgroupRoot, Type: "cgroup2", Flags: strict},
		// No flags: a container's root is a bind mount of a part of this one and would inherit them, and with them setuid
		// programs and device nodes would be dead in it.
		{Source: agent.SharedTag, Target: agent.SharedDir, Type: "virtiofs", Optional: true},
	}
}

// Mount mounts all of them, making mount points where the file system allows. A target that has its file system already, as
// /dev has on a kernel with CONFIG_DEVTMPFS_MOUNT, is left as it is. missing names the optional ones that failed, with the
// reason.
func MountAll(mounts []Mount) (missing []error, err error) {
	for _, m := range mounts {
		if err := m.mount(); err == nil {
			continue
		} else if err = fmt.Errorf("mount %s (%s) on %s: %w", m.Source, m.Type, m.Target, err); m.Optional {
			missing = append(missing, err)
		} else {
			return missing, err
		}
	}
	return missing, nil
}

func (m Mount) mount() error {
	err := unix.Mount(m.Source, m.Target, m.Type, m.Flags, m.Data)
	if errors.Is(err, unix.ENOENT) {
		if err := os.Mkdir(m.Target, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
		err = unix.Mount(m.Source, m.Target, m.Type, m.Flags, m.Data)
	}
	if errors.Is(err, unix.EBUSY) {
		return nil
	}
	return err
}
