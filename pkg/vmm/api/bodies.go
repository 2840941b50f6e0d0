package api

import (
	"slices"
	"strings"

	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/config"
)

// One function for each kind of body, from a request or from a configuration file: decode, then check all that depends
// neither on the rest of the machine nor on the host.

// machine is a body for /machine-config. As in Firecracker, a PUT starts from the defaults but for the CPU template, which stays what it
// is until the body names another, "None" included.
func (d document) machine(m member, current config.Machine, patch bool) (config.Machine, error) {
	var s schema
	if !patch {
		current = config.Machine{CPUTemplate: current.CPUTemplate}
		s.required = []string{"vcpu_count", "mem_size_mib"}
	}
	if err := d.fill(m.raw, m.at, &current, s); err != nil {
		return current, err
	}
	return current, current.Validate()
}

// says lists the keys of an object whose values are not null.
func (d document) says(m member) (keys []string, err error) {
	ms, err := d.members("", m.raw, m.at)
	for _, v := range ms {
		if string(v.raw) != "null" {
			keys = append(keys, v.key)
		}
	}
	return keys, err
}

// cpuConfig is a body for /cpu-config. What is for ARM CPUs asks for something else here.
func (d document) cpuConfig(m member) (*config.CPUConfig, error) {
	var c config.CPUConfig
	if err := d.fill(m.raw, m.at, &c, schema{inert: map[string][]string{"reg_modifiers": {"[]"}, "vcpu_features": {"[]"}}}); err != nil {
		return nil, err
	}
	return &c, c.Validate()
}

func (d document) bootSource(m member) (*config.BootSource, error) {
	var b config.BootSource
	if err := d.fill(m.raw, m.at, &b, schema{required: []string{"kernel_image_path"}}); err != nil {
		return nil, err
	}
	return &b, b.Validate()
}

func (d document) drive(m member) (config.Drive, error) {
	var v config.Drive
	s := schema{required: []string{"drive_id", "is_root_device"}}
	if err := d.fill(m.raw, m.at, &v, s); err != nil {
		return v, err
	}
	return v, v.Validate()
}

func (d document) driveUpdate(m member) (config.DriveUpdate, error) {
	var u config.DriveUpdate
	if err := d.fill(m.raw, m.at, &u, schema{required: []string{"drive_id"}}); err != nil {
		return u, err
	}
	if err := u.Validate(); err != nil || u.PathOnHost != "" {
		return u, err
	}
	ms, err := d.members("", m.raw, m.at)
	for _, v := range ms {
		if v.key == "path_on_host" && string(v.raw) != "null" {
			err = &config.FieldError{Field: "drives/" + u.DriveID + "/path_on_host", Value: `""`, Want: "the path of a file or block device, or null for no change"}
		}
	}
	return u, err
}

func (d document) networkInterfaceUpdate(m member) (config.NetworkInterfaceUpdate, error) {
	var u config.NetworkInterfaceUpdate
	if err := d.fill(m.raw, m.at, &u, schema{required: []string{"iface_id"}}); err != nil {
		return u, err
	}
	return u, u.Validate()
}

func (d document) filesystem(m member) (config.Filesystem, error) {
	var f config.Filesystem
	if err := d.fill(m.raw, m.at, &f, schema{required: []string{"fs_id", "tag"}}); err != nil {
		return f, err
	}
	return f, f.Validate()
}

func (d document) networkInterface(m member) (config.NetworkInterface, error) {
	var n config.NetworkInterface
	if err := d.fill(m.raw, m.at, &n, schema{required: []string{"iface_id", "host_dev_name"}}); err != nil {
		return n, err
	}
	return n, n.Validate()
}

func (d document) vsock(m member) (*config.Vsock, error) {
	var v config.Vsock
	if err := d.fill(m.raw, m.at, &v, schema{required: []string{"guest_cid", "uds_path"}}); err != nil {
		return nil, err
	}
	return &v, v.Validate()
}

func (d document) entropy(m member) (*config.Entropy, error) {
	var e config.Entropy
	if err := d.fill(m.raw, m.at, &e, schema{}); err != nil {
		return nil, err
	}
	return &e, e.Validate()
}

func (d document) serial(m member) (*config.Serial, error) {
	var v config.Serial
	if err := d.fill(m.raw, m.at, &v, schema{}); err != nil {
		return nil, err
	}
	return &v, v.Validate()
}

// action is the body of PUT /actions.
type action struct {
	Type string `json:"action_type"`
}

func (d document) action(m member) (action, error) {
	var a action
	if err := d.fill(m.raw, m.at, &a, schema{required: []string{"action_type"}}); err != nil {
		return a, err
	}
	return a, d.oneOf(m, "action_type", a.Type, "InstanceStart", "FlushMetrics", "SendCtrlAltDel")
}

// runState is the body of PATCH /vm.
type runState struct {
	State string `json:"state"`
}

func (d document) runState(m member) (runState, error) {
	var r runState
	if err := d.fill(m.raw, m.at, &r, schema{required: []string{"state"}}); err != nil {
		return r, err
	}
	return r, d.oneOf(m, "state", r.State, "Paused", "Resumed")
}

// oneOf is for enumerations; the place that it gives is the end of the object.
func (d document) oneOf(m member, field, value string, allowed ...string) error {
	if slices.Contains(allowed, value) {
		return nil
	}
	return d.errorAt(m.at+len(m.raw), "unknown variant: %s is %q: want %s", field, shorten(value), strings.Join(allowed, " or "))
}
