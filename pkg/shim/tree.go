package shim

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/containerd/containerd/v2/core/mount"

	"github.com/fcshim/containerd-shim-fc-v2/pkg/hold"
)

// Names in a bundle. The shared tree is <bundle>/shared; in it, a folder for each container holds rootfs and mounts/<n>.
const (
	sharedName = "shared"
	rootfsName = "rootfs"
	mountsName = "mounts"
)

// tree is the folder that the guest sees over virtio-fs. Everything in it is a mount, in the mount namespace that the shim
// shares with fc-vmm alone; nothing below a mount may ever be removed by path, so removal goes entry by entry.
type tree struct {
	root string
}

// newTree makes the empty tree of a bundle.
func newTree(bundle string) (*tree, error) {
	t := &tree{root: filepath.Join(bundle, sharedName)}
	// The root of a user namespace that the host maps to another user has to get through.
	if err := os.Mkdir(t.root, 0o711); err != nil && !errors.Is(err, os.ErrExist) {
		return nil, fmt.Errorf("make the shared tree: %w", err)
	}
	return t, nil
}

// add mounts a container's root filesystem and binds. On an error it leaves nothing of them.
func (t *tree) add(cid string, rootfs []mount.Mount, binds []bind) (err error) {
	dir := filepath.Join(t.root, cid)
	if err := os.Mkdir(dir, 0o711); err != nil {
		return fmt.Errorf("make the container's folder: %w", err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, t.remove(cid))
		}
	}()
	root := t.rootfs(cid)
	if err := os.Mkdir(root, 0o711); err != nil {
		return fmt.Errorf("make the root filesystem's folder: %w", err)
	}
	if err := mount.All(rootfs, root); err != nil {
		return fmt.Errorf("mount the root filesystem: %w", err)
	}
	if len(binds) > 0 {
		if err := os.Mkdir(filepath.Join(dir, mountsName), 0o711); err != nil {
			return fmt.Errorf("make the folder of bind mounts: %w", err)
		}
	}
	for _, b := range binds {
		if err := b.mount(filepath.Join(dir, b.Target)); err != nil {
			return fmt.Errorf("bind %s: %w", b.Source, err)
		}
	}
	return nil
}

// rootfs is where a container's root filesystem is mounted.
func (t *tree) rootfs(cid string) string { return filepath.Join(t.root, cid, rootfsName) }

// targets are a container's binds as they are mounted here, and where the container sees them.
func (t *tree) targets(cid string, binds []bind) []hold.Mount {
	mounts := make([]hold.Mount, len(binds))
	for i, b := range binds {
		mounts[i] = hold.Mount{Source: filepath.Join(t.root, cid, b.Target), Target: b.Destination}
	}
	return mounts
}

// remove takes a container's part of the tree away, whatever there is of it. Mounts go lazily: fc-vmm may still hold
// files of theirs, and lets go of them when it is told or ends.
func (t *tree) remove(cid string) error {
	dir := filepath.Join(t.root, cid)
	if err := unmountBelow(dir); err != nil {
		return err
	}
	return removeEntries(dir)
}

// close removes the tree, which must be empty.
func (t *tree) close() error { return ignoreMissing(os.Remove(t.root)) }

// removeEntries removes a container's folder from the shared tree: mount points only, by rmdir and unlink, so that a mount
// which is still there stops it instead of losing what is mounted.
func removeEntries(dir string) error {
	mounts := filepath.Join(dir, mountsName)
	entries, err := os.ReadDir(mounts)
	if ignoreMissing(err) != nil {
		return err
	}
	var errs []error
	for _, e := range entries {
		errs = append(errs, os.Remove(filepath.Join(mounts, e.Name())))
	}
	for _, p := range []string{mounts, filepath.Join(dir, rootfsName), dir} {
		errs = append(errs, ignoreMissing(os.Remove(p)))
	}
	return errors.Join(errs...)
}

func ignoreMissing(err error) error {
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return err
}
