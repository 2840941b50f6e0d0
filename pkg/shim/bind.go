package shim

import (
	"fmt"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/moby/sys/mountinfo"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// bind is a host file or folder to be shown in the shared tree, below the container's folder.
type bind struct {
	Source      string
	Target      string // below the container's folder in the shared tree
	Destination string // in the container
	Dir         bool
	Recursive   bool
	// ReadOnly makes the mount itself read-only on the host, RecursiveReadOnly also every mount below it.
	ReadOnly, RecursiveReadOnly bool
	// Private hides what is mounted later below the source on the host, RecursivePrivate also what is mounted in the mounts there.
	// Otherwise such mounts are seen in the container.
	Private, RecursivePrivate bool
}

// isBind goes by the options, as runc does; the type of a bind mount is free, "none" and "bind" are usual.
func isBind(m *specs.Mount) bool {
	return m.Type == "bind" || slices.Contains(m.Options, "bind") || slices.Contains(m.Options, "rbind")
}

// newBind makes the n-th bind of a container.
func newBind(m *specs.Mount, bundle string, n int) (bind, error) {
	fail := func(format string, args ...any) (bind, error) {
		return bind{}, fmt.Errorf("mount %s: %w: %w", m.Destination, fmt.Errorf(format, args...), errdefs.ErrInvalidArgument)
	}
	if len(m.UIDMappings) > 0 || len(m.GIDMappings) > 0 || slices.Contains(m.Options, "idmap") || slices.Contains(m.Options, "ridmap") {
		return fail("id-mapped mounts are not supported")
	}
	source := m.Source
	if !filepath.IsAbs(source) {
		source = filepath.Join(bundle, source) // OCI runtime spec, mounts: relative to the bundle
	}
	fi, err := os.Stat(source)
	if err != nil {
		return fail("source %s: %w", source, reason(err))
	}
	if fi.Mode()&(os.ModeDevice|os.ModeCharDevice) == os.ModeDevice {
		return fail("source %s: block devices are not supported yet", source)
	}
	if i := slices.IndexFunc(m.Options, func(o string) bool { return o == "shared" || o == "rshared" }); i >= 0 {
		return fail("propagation %q: a mount that is made in a VM cannot appear on the host; use %q, with which the host's mounts appear in the container", m.Options[i], "rslave")
	}
	rro := slices.Contains(m.Options, "rro")
	return bind{
		Source: source, Target: path.Join(mountsName, fmt.Sprint(n)), Destination: m.Destination, Dir: fi.IsDir(),
		Recursive: !slices.Contains(m.Options, "bind") || slices.Contains(m.Options, "rbind"),
		ReadOnly:  rro || slices.Contains(m.Options, "ro"), RecursiveReadOnly: rro,
	}, nil
}

// propagate obeys the last option that is about what is mounted later.
func (b *bind) propagate(options ...string) {
	for _, o := range options {
		switch o {
		case "private", "unbindable":
			b.Private, b.RecursivePrivate = true, false
		case "rprivate", "runbindable":
			b.Private, b.RecursivePrivate = true, true
		case "slave", "rslave":
			b.Private, b.RecursivePrivate = false, false
		}
	}
}

// guestOptions are for a guest whose kernel mounts what is mounted in the shared tree when somebody first goes there, with the flags of
// the mount around it: so plain flags do what recursive ones do, and come in their place, and "ro" is left to the host where a mount
// below is writable. The host, whose mounts have all flags of their own, enforces read-only in any case.
func (b *bind) guestOptions(options []string) ([]string, error) {
	writable := false
	if b.ReadOnly && !b.RecursiveReadOnly && b.Recursive && b.Dir {
		below, err := mountsBelow(b.Source)
		if err != nil {
			return nil, fmt.Errorf("mount %s: %w", b.Destination, err)
		}
		writable = below
	}
	out := make([]string, 0, len(options)+1)
	bound := false
	for _, o := range options {
		switch o {
		case "rro":
			o = "ro"
		case "rrw":
			o = "rw"
		case "bind", "rbind":
			bound = true
		}
		if o == "ro" && writable {
			continue
		}
		out = append(out, o)
	}
	if !bound {
		out = append(out, "rbind")
	}
	return out, nil
}

// mountsBelow says whether anything is mounted somewhere in a folder.
func mountsBelow(dir string) (bool, error) {
	dir, err := filepath.EvalSymlinks(dir)
	if err != nil {
		return false, err
	}
	dir = strings.TrimSuffix(dir, "/") + "/"
	below, err := mountinfo.GetMounts(func(i *mountinfo.Info) (skip, stop bool) {
		found := strings.HasPrefix(i.Mountpoint, dir) && len(i.Mountpoint) > len(dir)
		return !found, found
	})
	return len(below) > 0, err
}

// mount shows the bind at target, which it makes.
func (b *bind) mount(target string) error {
	if b.Dir {
		if err := os.Mkdir(target, 0o711); err != nil {
			return err
		}
	} else {
		f, err := os.OpenFile(target, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
		if err != nil {
			return err
		}
		f.Close()
	}
	flags := uintptr(unix.MS_BIND)
	if b.Recursive {
		flags |= unix.MS_REC
	}
	if err := unix.Mount(b.Source, target, "", flags, ""); err != nil {
		return fmt.Errorf("mount: %w", err)
	}
	set := func(recursive bool, attr unix.MountAttr) error {
		how := uint(unix.AT_SYMLINK_NOFOLLOW)
		if recursive {
			how |= unix.AT_RECURSIVE
		}
		return unix.MountSetattr(unix.AT_FDCWD, target, how, &attr)
	}
	if b.Private {
		if err := set(b.RecursivePrivate, unix.MountAttr{Propagation: unix.MS_PRIVATE}); err != nil {
			return fmt.Errorf("make it private: %w", err)
		}
	}
	if b.ReadOnly {
		if err := set(b.RecursiveReadOnly, unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY}); err != nil {
			return fmt.Errorf("make it read-only: %w", err)
		}
	}
	return nil
}
