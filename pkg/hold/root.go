package hold

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/fcshim/containerd-shim-fc-v2/pkg/nsthread"
)

// Mount is a file or folder of the owner's to be seen by the holder.
type Mount struct {
	Source string // in the owner's mount namespace
	Target string // in the container
}

// SetRoot makes the folder root, with every mount below it, the holder's root, and shows mounts in it where their targets
// exist; a target that is in no filesystem of the host's, because the guest has a tmpfs there, is left out. The owner's thread
// does it all, in the holder's mount namespace: pivot_root(2) takes the root of everybody there along. Targets are resolved
// below the new root, so that a link of the container's leads to nothing of the host's.
func (h *Holder) SetRoot(root string, mounts []Mount) (err error) {
	var trees []*os.File
	defer func() {
		for _, t := range trees {
			t.Close()
		}
	}()
	for _, source := range append([]Mount{{Source: root}}, mounts...) {
		t, err := openTree(source.Source)
		if err != nil {
			return err
		}
		trees = append(trees, t)
	}
	ns, err := h.Namespace("mnt")
	if err != nil {
		return err
	}
	defer ns.Close()
	return nsthread.Do(func() error {
		if err := pivot(trees[0], root); err != nil {
			return fmt.Errorf("give the container's process on the host its root: %w", err)
		}
		for i, m := range mounts {
			if err := moveMount(trees[i+1], m.Target); err != nil && !missing(err) {
				return fmt.Errorf("show %s in the root of the container's process on the host: %w", m.Target, err)
			}
		}
		return nil
	}, nsthread.Namespace{File: ns, Kind: unix.CLONE_NEWNS})
}

// missing tells a target that is not there, or of the other kind, from other errors. move_mount(2) has EINVAL for a file that is
// to go onto a folder, and for the reverse.
func missing(err error) bool {
	return errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP) || errors.Is(err, unix.EINVAL)
}

// openTree makes a copy, attached to nothing, of what is mounted at path and below.
func openTree(path string) (*os.File, error) {
	fd, err := unix.OpenTree(unix.AT_FDCWD, path, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_RECURSIVE)
	if err != nil {
		return nil, fmt.Errorf("copy the mounts at %s: %w", path, err)
	}
	return os.NewFile(uintptr(fd), path), nil
}

func moveMount(tree *os.File, target string) error {
	return unix.MoveMount(int(tree.Fd()), "", unix.AT_FDCWD, target, unix.MOVE_MOUNT_F_EMPTY_PATH|unix.MOVE_MOUNT_T_SYMLINKS)
}

// pivot makes a tree the root of this thread's mount namespace; at is any folder there, for it to be put for a moment.
func pivot(tree *os.File, at string) error {
	// Nothing that happens here may reach the host, and the new root must not be shared, for pivot_root.
	if err := unix.Mount("", "/", "", unix.MS_SLAVE|unix.MS_REC, ""); err != nil {
		return fmt.Errorf("make its mounts slaves: %w", err)
	}
	if err := moveMount(tree, at); err != nil {
		return fmt.Errorf("mount it: %w", err)
	}
	if err := unix.Mount("", at, "", unix.MS_SLAVE|unix.MS_REC, ""); err != nil {
		return fmt.Errorf("make the new mounts slaves: %w", err)
	}
	if err := unix.Chdir(at); err != nil {
		return err
	}
	// The old root comes to lie over the new one, and goes.
	if err := unix.PivotRoot(".", "."); err != nil {
		return fmt.Errorf("pivot_root: %w", err)
	}
	if err := unix.Unmount(".", unix.MNT_DETACH); err != nil {
		return fmt.Errorf("unmount the old root: %w", err)
	}
	return unix.Chdir("/")
}
