package api

import (
	"context"
	"encoding/json"
	"fmt"

	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/config"
)

// MaxConfigFile bounds a configuration file, in bytes.
const MaxConfigFile = 1 << 20

// Configure takes a document in the form of Firecracker's --config-file: the bodies of the requests, by the names of
// their endpoints. Firecracker's sections for what does not exist here may be there as long as they are null or empty.
// Nothing of a document with an error is recorded.
func (s *Server) Configure(ctx context.Context, text []byte) error {
	d := document{text: text}
	if err := d.check(); err != nil {
		return fmt.Errorf("configuration file: %w", err)
	}
	ms, err := d.members("", text, 0)
	if err != nil {
		return fmt.Errorf("configuration file: %w", err)
	}
	err = s.control.configure(ctx, func(vm *config.VM) error {
		var o observers
		for _, m := range ms {
			section := func() error { return d.section(vm, m) }
			if m.key == "logger" || m.key == "metrics" {
				section = func() error { return o.section(d, m) }
			}
			if err := section(); err != nil {
				return fmt.Errorf("%s: %w", shorten(m.key), err)
			}
		}
		if vm.CPUConfig != nil {
			vm.Machine.CPUTemplate = "" // as in Firecracker, whatever the order of the sections
		}
		if err := vm.Validate(); err != nil {
			return err
		}
		return s.observe(&o)
	})
	if err != nil {
		return fmt.Errorf("configuration file: %w", err)
	}
	return nil
}

// section is one member of the document. Unlike a request, it may not replace what another one has said.
func (d document) section(vm *config.VM, m member) error {
	null := string(m.raw) == "null"
	switch m.key {
	case "pmem", "memory-hotplug":
		if v := compact(m.raw); !null && v != "[]" && v != "{}" {
			return d.errorAt(m.at, "not supported: want null")
		}
		return nil
	case "balloon", "boot-source", "cpu-config", "machine-config", "drives", "filesystems", "network-interfaces", "vsock", "entropy", "serial", "mmds-config":
	default:
		return d.errorAt(m.keyAt, "unknown section, expected one of balloon, boot-source, cpu-config, drives, entropy, filesystems, logger, machine-config, metrics, mmds-config, network-interfaces, serial, vsock")
	}
	if null {
		return nil
	}
	switch m.key {
	case "boot-source":
		return setPart(vm, d, m, document.bootSource, setBootSource)
	case "vsock":
		return setPart(vm, d, m, document.vsock, setVsock)
	case "entropy":
		return setPart(vm, d, m, document.entropy, setEntropy)
	case "serial":
		return setPart(vm, d, m, document.serial, setSerial)
	case "mmds-config":
		return setPart(vm, d, m, document.mmds, setMMDS)
	case "balloon":
		return setPart(vm, d, m, document.balloon, setBalloon)
	case "machine-config":
		mach, err := d.machine(m, config.Machine{}, false)
		setMachine(vm, mach, false)
		return err
	case "cpu-config":
		return setPart(vm, d, m, document.cpuConfigOrPath, setCPUConfig)
	}
	es, err := d.elements(m)
	if err != nil {
		return err
	}
	for _, e := range es {
		switch m.key {
		case "drives":
			err = setPart(vm, d, e, document.drive, addDrive)
		case "filesystems":
			err = setPart(vm, d, e, document.filesystem, addFilesystem)
		default:
			err = setPart(vm, d, e, document.networkInterface, addNetworkInterface)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// cpuConfigOrPath is a CPU template, or the path of a file that has one.
func (d document) cpuConfigOrPath(m member) (*config.CPUConfig, error) {
	var path string
	if json.Unmarshal(m.raw, &path) != nil {
		return d.cpuConfig(m)
	}
	text, err := readFile("cpu-config", path)
	if err != nil {
		return nil, err
	}
	file := document{text: text}
	if err := file.check(); err != nil {
		return nil, fmt.Errorf("%s: %w", shorten(path), err)
	}
	c, err := file.cpuConfig(member{raw: text})
	if err != nil {
		return nil, fmt.Errorf("%s: %w", shorten(path), err)
	}
	return c, nil
}

func setPart[T any](vm *config.VM, d document, m member, as func(document, member) (T, error), into func(*config.VM, T) error) error {
	part, err := as(d, m)
	if err != nil {
		return err
	}
	return into(vm, part)
}

// addDrive, addFilesystem and addNetworkInterface are set.go's functions for a document, in which nothing replaces anything:
// that ids are unique is checked with the rest of the machine.
func addDrive(vm *config.VM, d config.Drive) error {
	vm.Drives = append(vm.Drives, d)
	return checkDrive(&d)
}

func addFilesystem(vm *config.VM, f config.Filesystem) error {
	vm.Filesystems = append(vm.Filesystems, f)
	return checkFilesystem(&f)
}

func addNetworkInterface(vm *config.VM, n config.NetworkInterface) error {
	vm.NetworkInterfaces = append(vm.NetworkInterfaces, n)
	return nil
}
