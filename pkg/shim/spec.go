package shim

import (
	"encoding/json"
	"fmt"
	"os"
	"path"
	"path/filepath"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/fcshim/containerd-shim-fc-v2/pkg/agent"
)

const maxSpecBytes = 3 << 20 // a ttrpc message holds 4 MiB

// loadSpec reads the bundle's config.json and refuses what cannot be run.
func loadSpec(bundle string) (*specs.Spec, error) {
	spec, err := readSpec(bundle)
	if err != nil {
		return nil, err
	}
	if err := checkSpec(spec); err != nil {
		return nil, fmt.Errorf("config.json: %w: %w", err, errdefs.ErrInvalidArgument)
	}
	return spec, nil
}

func readSpec(bundle string) (*specs.Spec, error) {
	name := filepath.Join(bundle, "config.json")
	data, err := os.ReadFile(name)
	if err != nil {
		return nil, fmt.Errorf("cannot read the bundle's spec: %w: %w", err, errdefs.ErrInvalidArgument)
	}
	if len(data) > maxSpecBytes {
		return nil, fmt.Errorf("config.json: %d bytes, at most %d are allowed: %w", len(data), maxSpecBytes, errdefs.ErrInvalidArgument)
	}
	var spec specs.Spec
	if err := json.Unmarshal(data, &spec); err != nil {
		return nil, fmt.Errorf("config.json: %w: %w", err, errdefs.ErrInvalidArgument)
	}
	return &spec, nil
}

func checkSpec(spec *specs.Spec) error {
	switch {
	case spec.Process == nil:
		return fmt.Errorf("no process: there is nothing to run")
	case len(spec.Process.Args) == 0:
		return fmt.Errorf("process.args is empty: there is nothing to run")
	case !path.IsAbs(spec.Process.Cwd):
		return fmt.Errorf("process.cwd %q is not an absolute path", spec.Process.Cwd)
	case spec.Root == nil || spec.Root.Path == "":
		return fmt.Errorf("no root.path: a container needs a root filesystem")
	case spec.Linux == nil:
		return fmt.Errorf("no linux section: only Linux containers can be run")
	}
	return checkLinux(spec.Linux)
}

// guestSpec rewrites spec, in place, from what holds on the host to what holds in the guest, and returns the binds that
// the shared tree must show for it, and the names of fields that are left out although somebody asked for something by them.
// This is the one place where a spec is rewritten: the guest checks it only.
//
// Rules: root and bind sources move to the shared tree; filesystems that a kernel makes are made by the guest's;
// namespaces are the guest's, and its network is that of the container; limits stay, for the guest's cgroups, but for those that
// name host hardware; the host's LSM profiles mean nothing in there, where the VM is what confines.
func guestSpec(spec *specs.Spec, cid, bundle string) (_ []bind, leftOut []string, _ error) {
	dir := path.Join(agent.SharedDir, cid)
	spec.Root.Path = path.Join(dir, rootfsName)
	var binds []bind
	for i := range spec.Mounts {
		m := &spec.Mounts[i]
		if !isBind(m) {
			if err := checkKernelMount(m); err != nil {
				return nil, nil, err
			}
			continue
		}
		b, err := newBind(m, bundle, len(binds))
		if err != nil {
			return nil, nil, err
		}
		if path.Clean(m.Destination) == "/dev/shm" && onTmpfs(b.Source) {
			*m = guestShm(m.Destination)
			continue
		}
		b.propagate(append([]string{spec.Linux.RootfsPropagation}, m.Options...)...)
		binds = append(binds, b)
		m.Type = "bind"
		m.Source = path.Join(dir, b.Target)
		if m.Options, err = b.guestOptions(m.Options); err != nil {
			return nil, nil, err
		}
		m.UIDMappings, m.GIDMappings = nil, nil
	}
	if spec.Hooks != nil {
		spec.Hooks = &specs.Hooks{StartContainer: spec.Hooks.StartContainer} // the others are the host's
	}
	spec.Process.ApparmorProfile, spec.Process.SelinuxLabel = "", ""
	if spec.Process.ExecCPUAffinity != nil {
		spec.Process.ExecCPUAffinity = nil
		leftOut = append(leftOut, "process.execCPUAffinity")
	}
	return binds, append(leftOut, guestLinux(spec.Linux, cid)...), nil
}

// checkKernelMount lets through what the guest's kernel makes of nothing; anything else has its source on the host.
func checkKernelMount(m *specs.Mount) error {
	switch m.Type {
	case "proc", "sysfs", "tmpfs", "devpts", "mqueue", "cgroup", "cgroup2", "ramfs":
		return nil
	}
	return fmt.Errorf("mount %s: type %q is not supported: %w", m.Destination, m.Type, errdefs.ErrInvalidArgument)
}

// onTmpfs says whether a source is the host's shared memory, /dev/shm or what containerd mounts for a pod, and not a folder
// with somebody's data on a disk.
func onTmpfs(source string) bool {
	var fs unix.Statfs_t
	return unix.Statfs(source, &fs) == nil && fs.Type == unix.TMPFS_MAGIC
}

// guestShm replaces a bind of the host's shared memory, which could not be shared coherently with a VM.
func guestShm(destination string) specs.Mount {
	return specs.Mount{
		Destination: destination, Type: "tmpfs", Source: "shm",
		Options: []string{"nosuid", "noexec", "nodev", "mode=1777", "size=65536k"},
	}
}
