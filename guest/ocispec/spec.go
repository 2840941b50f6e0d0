// Package ocispec turns an OCI runtime spec that the shim has rewritten for the guest into what libcontainer takes.
//
// The shim rewrites, for it knows the host; what names something of the host's and has come through all the same is refused
// here, never adapted: hooks, a network namespace, namespaces by path, AppArmor and SELinux labels, another cgroup than the
// one named after the container, resctrl. Only what depends on the guest itself is decided here:
//   - The network namespace is the guest's own: the VM is the boundary. net.* sysctls thus apply to the guest.
//     A container in a user namespace does not own it, and may thus not mount sysfs: it gets the guest's /sys bound instead.
//   - Devices must be there, and those of a container that may use all are the guest's.
//   - oomScoreAdj defaults to 0, for the agent's own, which a container would inherit, is -1000.
package ocispec

import (
	"encoding/json"
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/runc/libcontainer/configs"
	"github.com/opencontainers/runc/libcontainer/specconv"
	"github.com/opencontainers/runtime-spec/specs-go"
)

// Container is a container's configuration.
type Container struct {
	// Config is libcontainer's.
	Config *configs.Config
	// Process is the init process as the spec has it.
	Process *specs.Process
	// NetSysctls are to be set in the guest itself, by name ("net.ipv4.ip_forward").
	NetSysctls map[string]string
}

// invalid makes an error of class InvalidArgument that begins with the field's name.
func invalid(field, format string, args ...any) error {
	return fmt.Errorf("%s: %s: %w", field, fmt.Sprintf(format, args...), errdefs.ErrInvalidArgument)
}

// Parse reads a spec. The container's cgroup is that of its id.
func Parse(id string, b []byte) (*Container, error) {
	var spec specs.Spec
	if err := json.Unmarshal(b, &spec); err != nil {
		return nil, invalid("spec", "%v", err)
	}
	return Convert(id, &spec)
}

// Convert does the same with a spec that it may change.
func Convert(id string, spec *specs.Spec) (*Container, error) {
	if err := CheckProcess(spec.Process); err != nil {
		return nil, err
	}
	switch {
	case spec.Root == nil || spec.Root.Path == "":
		return nil, invalid("root.path", "a container needs a root file system")
	case !filepath.IsAbs(spec.Root.Path):
		return nil, invalid("root.path", "%q is not absolute", spec.Root.Path)
	case hasHostHooks(spec.Hooks):
		return nil, invalid("hooks", "but for startContainer, hooks run on the host, not in the guest")
	}
	if spec.Linux == nil {
		spec.Linux = &specs.Linux{}
	}
	c := &Container{Process: spec.Process}
	linux := spec.Linux
	if err := checkLinux(id, linux); err != nil {
		return nil, err
	}
	if err := convertDevices(linux, guestMachine()); err != nil {
		return nil, err
	}
	if hasNamespace(linux.Namespaces, specs.UserNamespace) {
		bindSysfs(spec.Mounts)
	}
	for name, value := range linux.Sysctl {
		if !strings.HasPrefix(name, "net.") {
			continue
		}
		if c.NetSysctls == nil {
			c.NetSysctls = map[string]string{}
		}
		c.NetSysctls[name] = value
		delete(linux.Sysctl, name)
	}
	if spec.Process.OOMScoreAdj == nil {
		spec.Process.OOMScoreAdj = new(int)
	}
	var err error
	c.Config, err = specconv.CreateLibcontainerConfig(&specconv.CreateOpts{CgroupName: id, Spec: spec})
	if err != nil {
		return nil, fmt.Errorf("spec: %w: %w", err, errdefs.ErrInvalidArgument)
	}
	return c, nil
}

// checkLinux refuses what names something of the host's.
func checkLinux(id string, linux *specs.Linux) error {
	switch {
	case linux.CgroupsPath != "" && linux.CgroupsPath != "/"+id:
		return invalid("linux.cgroupsPath", "%q is not /%s", linux.CgroupsPath, id)
	case linux.MountLabel != "":
		return invalid("linux.mountLabel", "the guest has no SELinux")
	case linux.IntelRdt != nil:
		return invalid("linux.intelRdt", "a guest has no resctrl")
	}
	for _, ns := range linux.Namespaces {
		switch {
		case ns.Type == specs.NetworkNamespace:
			return invalid("linux.namespaces", "the network is the guest's own")
		case ns.Path != "":
			return invalid("linux.namespaces", "%s: there is nothing to join at %s", ns.Type, ns.Path)
		}
	}
	linux.CgroupsPath = "/" + id
	return nil
}

func hasNamespace(namespaces []specs.LinuxNamespace, t specs.LinuxNamespaceType) bool {
	return slices.ContainsFunc(namespaces, func(ns specs.LinuxNamespace) bool { return ns.Type == t })
}

// bindSysfs turns mounts of sysfs into recursive binds of the guest's /sys; not recursive would be refused, for it would show
// what the mounts below cover.
func bindSysfs(mounts []specs.Mount) {
	for i, m := range mounts {
		if m.Type == "sysfs" {
			mounts[i].Type, mounts[i].Source, mounts[i].Options = "bind", "/sys", append([]string{"rbind"}, m.Options...)
		}
	}
}

func hasHostHooks(h *specs.Hooks) bool {
	//lint:ignore SA1019 prestart is deprecated, and refused like the others
	return h != nil && len(h.Prestart)+len(h.CreateRuntime)+len(h.CreateContainer)+len(h.Poststart)+len(h.Poststop) > 0
}

// SysctlPath is the file of a sysctl below /proc/sys, for which slashes and dots both separate.
func SysctlPath(name string) (string, error) {
	path := name
	if !strings.Contains(name, "/") { // else dots belong to names, as in net/ipv4/conf/eth0.1/forwarding
		path = strings.ReplaceAll(name, ".", "/")
	}
	if !filepath.IsLocal(path) {
		return "", invalid("linux.sysctl", "%q is no name of a sysctl", name)
	}
	return filepath.Join("/proc/sys", path), nil
}
