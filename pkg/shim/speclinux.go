package shim

import (
	"errors"
	"fmt"
	"path"
	"slices"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// errHostNetwork refuses the host's network, however it is asked for.
var errHostNetwork = errors.New("the host's network (--net-host, --network host) cannot be used from a VM; publish ports instead (nerdctl run -p), or give the container a network of its own (ctr run --cni)")

// checkLinux refuses, by name, what a container in a VM of its own cannot have: to run it without would not be what was
// asked for.
func checkLinux(l *specs.Linux) error {
	network := false
	for i, ns := range l.Namespaces {
		switch {
		case ns.Type == specs.NetworkNamespace:
			network = true // newHostPlan looks at its path
		case ns.Path != "":
			return fmt.Errorf("linux.namespaces[%d]: %s namespace %s: joining a namespace of the host's or of another container's is not supported: a container is in a VM of its own", i, ns.Type, ns.Path)
		}
	}
	if !network {
		return fmt.Errorf("linux.namespaces has no network: %w", errHostNetwork)
	}
	if len(l.NetDevices) > 0 {
		return fmt.Errorf("linux.netDevices: moving the host's network devices into a VM is not supported")
	}
	// A privileged container comes with all devices of the host's, asked for or not; guestLinux leaves the disks out.
	if !allDevices(l) {
		for i, d := range l.Devices {
			if d.Type == "b" {
				return fmt.Errorf("linux.devices[%d]: %s: block devices are not supported yet", i, d.Path)
			}
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

// guestLinux rewrites the Linux section for the guest, and returns the names of what it leaves out.
func guestLinux(l *specs.Linux, cid string) (leftOut []string) {
	leave := func(name string, set bool) {
		if set {
			leftOut = append(leftOut, "linux."+name)
		}
	}
	confined := l.CgroupsPath != ""
	l.CgroupsPath = path.Join("/", cid)
	l.MountLabel = ""
	leave("intelRdt", l.IntelRdt != nil)
	leave("memoryPolicy", l.MemoryPolicy != nil) // a guest has a single NUMA node
	l.IntelRdt, l.MemoryPolicy = nil, nil
	l.Namespaces = slices.DeleteFunc(l.Namespaces, func(ns specs.LinuxNamespace) bool {
		return ns.Type == specs.NetworkNamespace
	})
	l.Devices = slices.DeleteFunc(l.Devices, func(d specs.LinuxDevice) bool {
		leave("devices "+d.Path, d.Type == "b") // its number would be that of another device there
		return d.Type == "b"
	})
	if l.Resources == nil {
		return leftOut
	}
	return append(leftOut, guestResources(l.Resources, confined)...)
}
