package api

import (
	"context"
	"slices"

	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/config"
)

// The functions below put one checked part into a description, after a look at the host.

func setBootSource(vm *config.VM, b *config.BootSource) error {
	vm.BootSource = b
	return checkBootSource(b)
}

// setMachine sets the size. A CPU template that it names takes a custom one's place.
func setMachine(vm *config.VM, m config.Machine, template bool) {
	vm.Machine = m
	if template {
		vm.CPUConfig = nil
	}
}

// setCPUConfig sets a custom CPU template, which takes a named one's place.
func setCPUConfig(vm *config.VM, c *config.CPUConfig) error {
	vm.CPUConfig, vm.Machine.CPUTemplate = c, ""
	return nil
}

// setDrive replaces the drive of the same id, or adds it.
func setDrive(vm *config.VM, d config.Drive) error {
	i := slices.IndexFunc(vm.Drives, func(old config.Drive) bool { return old.DriveID == d.DriveID })
	if i >= 0 {
		vm.Drives[i] = d
	} else {
		vm.Drives = append(vm.Drives, d)
	}
	return checkDrive(&d)
}

// setFilesystem replaces the filesystem of the same id, or adds it.
func setFilesystem(vm *config.VM, f config.Filesystem) error {
	i := slices.IndexFunc(vm.Filesystems, func(old config.Filesystem) bool { return old.FSID == f.FSID })
	if i >= 0 {
		vm.Filesystems[i] = f
	} else {
		vm.Filesystems = append(vm.Filesystems, f)
	}
	return checkFilesystem(&f)
}

// setNetworkInterface replaces the interface of the same id, or adds it. The TAP is a matter of the start: whoever makes it
// may do so after this request, and the machine makes it where nobody does.
func setNetworkInterface(vm *config.VM, n config.NetworkInterface) error {
	i := slices.IndexFunc(vm.NetworkInterfaces, func(old config.NetworkInterface) bool { return old.IfaceID == n.IfaceID })
	if i >= 0 {
		vm.NetworkInterfaces[i] = n
	} else {
		vm.NetworkInterfaces = append(vm.NetworkInterfaces, n)
	}
	return nil
}

// removeDrive takes a drive out of the description.
func removeDrive(vm *config.VM, id string) error {
	return drop(&vm.Drives, func(d config.Drive) bool { return d.DriveID == id }, "drive_id", id, "drive")
}

// removeFilesystem takes a filesystem out of the description.
func removeFilesystem(vm *config.VM, id string) error {
	return drop(&vm.Filesystems, func(f config.Filesystem) bool { return f.FSID == id }, "fs_id", id, "filesystem")
}

// removeNetworkInterface takes a network interface out of the description.
func removeNetworkInterface(vm *config.VM, id string) error {
	return drop(&vm.NetworkInterfaces, func(n config.NetworkInterface) bool { return n.IfaceID == id }, "iface_id", id, "network interface")
}

// drop takes the device of an id out of a list; field and kind are for the error if there is none.
func drop[T any](devices *[]T, is func(T) bool, field, id, kind string) error {
	i := slices.IndexFunc(*devices, is)
	if i < 0 {
		return config.UnknownID(field, id, kind)
	}
	*devices = slices.Delete(*devices, i, i+1)
	return nil
}

// updateDrive makes a change of a running machine's drive, whose new file, if there is one, must be there.
func updateDrive(ctx context.Context, vm *config.VM, u config.DriveUpdate) error {
	i := slices.IndexFunc(vm.Drives, func(d config.Drive) bool { return d.DriveID == u.DriveID })
	if i < 0 {
		return config.UnknownID("drive_id", u.DriveID, "drive")
	}
	if err := u.CheckFor(&vm.Drives[i]); err != nil {
		return err
	}
	u.Apply(&vm.Drives[i])
	if u.PathOnHost == "" {
		return nil
	}
	d := vm.Drives[i]
	return within(ctx, "drives/"+d.DriveID+"/path_on_host", d.PathOnHost, func() error { return checkDrive(&d) })
}

// updateNetworkInterface makes a change of a running machine's network interface.
func updateNetworkInterface(_ context.Context, vm *config.VM, u config.NetworkInterfaceUpdate) error {
	i := slices.IndexFunc(vm.NetworkInterfaces, func(n config.NetworkInterface) bool { return n.IfaceID == u.IfaceID })
	if i < 0 {
		return config.UnknownID("iface_id", u.IfaceID, "network interface")
	}
	u.Apply(&vm.NetworkInterfaces[i])
	return nil
}

func setVsock(vm *config.VM, v *config.Vsock) error {
	vm.Vsock = v
	return checkVsock(v)
}

func setEntropy(vm *config.VM, e *config.Entropy) error {
	vm.Entropy = e
	return nil
}

func setSerial(vm *config.VM, s *config.Serial) error {
	vm.Serial = s
	return checkSerial(s)
}
