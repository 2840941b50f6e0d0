package shim

import (
	"errors"
	"os/exec"

	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/fcshim/containerd-shim-fc-v2/pkg/shim/hostcgroup"
)

// A container's cgroup on the host bounds its VM from outside. It gets:
//   - memory: what the VM can have, that is its size and cgroupAllowanceMiB plus a share for page tables, if the container has
//     a limit at all. The container's own limit is enforced in the guest, where its processes can be told apart; a VM that
//     reaches the one out here is broken, or reads files through the shared tree, whose cache the kernel takes back first;
//   - CPU time and shares, and the set of CPUs, as they are: vCPUs are threads of fc-vmm's;
//   - no limit of processes: the guest's are not the host's.

// cgroupAllowanceMiB is for fc-vmm itself, beside the guest's memory: code, heap, threads and the buffers of its devices.
const cgroupAllowanceMiB = 128

// hostCgroup is the place on the host of a container's VM and of the process that stands for it. The zero value is for a spec
// that names no cgroup: then they stay in the shim's.
type hostCgroup struct {
	*hostcgroup.Cgroup
	limits hostcgroup.Limits // the last ones set
}

// planCgroup reads a spec before guestSpec rewrites it.
func planCgroup(l *specs.Linux, sz size) (h hostCgroup, err error) {
	if l.CgroupsPath == "" {
		return h, nil
	}
	path, err := hostcgroup.Path(l.CgroupsPath)
	if err != nil {
		return h, err
	}
	mounted, err := hostcgroup.Mounted()
	if err != nil {
		return h, err
	}
	if h.Cgroup, err = hostcgroup.New(mounted, path); err != nil {
		return h, err
	}
	if r := l.Resources; r != nil {
		if memoryMiBOf(r.Memory) > 0 {
			h.limits.MemoryBytes = int64(sz.MemoryMiB+sz.MemoryMiB/structPageDivisor+cgroupAllowanceMiB) << 20
		}
		h.limits = withCPU(h.limits, cpuQuota{}.with(r.CPU), r.CPU)
	}
	return h, nil
}

// withCPU is what limits are after a change; what c leaves out stays as it is.
func withCPU(l hostcgroup.Limits, q cpuQuota, c *specs.LinuxCPU) hostcgroup.Limits {
	if q.quota != 0 {
		l.CPUQuotaUS, l.CPUPeriodUS = q.quota, q.period
	}
	if c == nil {
		return l
	}
	if c.Shares != nil && *c.Shares > 0 {
		l.CPUShares = *c.Shares
	}
	if c.Cpus != "" {
		l.CPUs = c.Cpus
	}
	if c.Mems != "" {
		l.Mems = c.Mems
	}
	return l
}

func (h *hostCgroup) set() bool { return h.Cgroup != nil }

// missing lists the folders that make will make.
func (h *hostCgroup) missing() []string {
	if !h.set() {
		return nil
	}
	return h.Missing()
}

func (h *hostCgroup) make() error {
	if !h.set() {
		return nil
	}
	return h.Make(h.limits)
}

// start has a command begin in the cgroup: with v2 from its first instruction, with v1 before anybody asks anything of it.
func (h *hostCgroup) start(cmd *exec.Cmd, start func() error) error {
	if !h.set() {
		return start()
	}
	dir, err := h.Open()
	if err != nil {
		return err
	}
	if dir != nil {
		defer dir.Close()
		cmd.SysProcAttr.UseCgroupFD, cmd.SysProcAttr.CgroupFD = true, int(dir.Fd())
		return start()
	}
	if err := start(); err != nil {
		return err
	}
	if err := h.Add(cmd.Process.Pid); err != nil {
		return giveUp(cmd, err)
	}
	return nil
}

func ignoreKilled(err error) error {
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return nil
	}
	return err
}

// update changes the limits that concern CPUs. undo takes that back, as well as it can.
func (h *hostCgroup) update(q cpuQuota, c *specs.LinuxCPU) (undo func(), err error) {
	if !h.set() || c == nil {
		return func() {}, nil
	}
	before, after := h.limits, withCPU(h.limits, q, c)
	if err := h.Set(after); err != nil {
		_ = h.Set(before)
		return nil, err
	}
	h.limits = after
	return func() {
		_ = h.Set(before)
		h.limits = before
	}, nil
}
