package shim

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"

	"github.com/containerd/containerd/api/types/task"
	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/fcshim/containerd-shim-fc-v2/pkg/agent/agentpb"
)

// defaultCPUPeriod is the kernel's, in microseconds.
const defaultCPUPeriod = 100_000

// guestResources rewrites limits for the guest's cgroup, and returns the names of what it leaves out: what names host hardware,
// or what a guest or cgroup v2 does not have. The same holds for a new container and for one that is updated. confined says that the
// host's CPUs are chosen by a cgroup of the host's.
func guestResources(r *specs.LinuxResources, confined bool) (leftOut []string) {
	leave := func(name string, set bool) {
		if set {
			leftOut = append(leftOut, "linux.resources."+name)
		}
	}
	leave("blockIO", r.BlockIO != nil) // names host devices, and the guest's I/O is the shared tree's
	leave("network", r.Network != nil)
	leave("rdma", len(r.Rdma) > 0)
	leave("hugepageLimits", len(r.HugepageLimits) > 0)
	r.BlockIO, r.Network, r.Rdma, r.HugepageLimits = nil, nil, nil, nil
	if c := r.CPU; c != nil {
		leave("cpu.cpus", c.Cpus != "" && !confined) // numbers of host CPUs
		leave("cpu.mems", c.Mems != "" && !confined)
		leave("cpu.realtimePeriod", c.RealtimePeriod != nil) // not in cgroup v2
		leave("cpu.realtimeRuntime", c.RealtimeRuntime != nil)
		c.Cpus, c.Mems, c.RealtimePeriod, c.RealtimeRuntime = "", "", nil, nil
	}
	if r.Memory != nil {
		// The guest has no swap, so memory alone is the bound of both; kernels no longer have a limit of their own memory.
		r.Memory.Swap, r.Memory.Swappiness = nil, nil
		r.Memory.KernelTCP = nil
		//lint:ignore SA1019 some clients still send it
		r.Memory.Kernel = nil
	}
	return leftOut
}

// cpuQuota is the CPU time, in microseconds, that a container may have in each period. The zero value is no limit.
type cpuQuota struct {
	quota  int64 // 0 or less: no limit
	period uint64
}

// with is what the quota is after a change; what c leaves out stays as it is.
func (q cpuQuota) with(c *specs.LinuxCPU) cpuQuota {
	if c != nil && c.Quota != nil && *c.Quota != 0 {
		q.quota = *c.Quota
	}
	if c != nil && c.Period != nil && *c.Period != 0 {
		q.period = *c.Period
	}
	if q.period == 0 {
		q.period = defaultCPUPeriod
	}
	return q
}

// cpus is how many CPUs that needs, rounded up; 0 for no limit.
func (q cpuQuota) cpus() uint64 {
	if q.quota <= 0 {
		return 0
	}
	n := uint64(q.quota) / q.period
	if uint64(q.quota)%q.period != 0 {
		n++
	}
	return n
}

// memoryMiBOf is a memory limit, rounded up to MiB; 0 for no limit. Docker and Kubernetes write that as a number near 2^63.
func memoryMiBOf(m *specs.LinuxMemory) uint64 {
	if m == nil || m.Limit == nil || *m.Limit <= 0 {
		return 0
	}
	mib := uint64(*m.Limit) >> 20
	if *m.Limit&(1<<20-1) != 0 {
		mib++
	}
	if mib > maxMemoryMiB {
		return 0
	}
	return mib
}

// checkUpdate refuses limits that a running VM cannot give: its size is that of its start.
func (sz size) checkUpdate(m *specs.LinuxMemory, q cpuQuota) error {
	if mib := memoryMiBOf(m); mib > uint64(sz.MemoryMiB) {
		return fmt.Errorf("linux.resources.memory.limit: %d bytes, but the VM has %d MiB and cannot grow: at most %d bytes are allowed: %w",
			*m.Limit, sz.MemoryMiB, int64(sz.MemoryMiB)<<20, errdefs.ErrInvalidArgument)
	}
	if n := q.cpus(); n > uint64(sz.VCPUs) {
		return fmt.Errorf("linux.resources.cpu.quota: %d µs in a period of %d µs ask for %d CPUs, but the VM has %d and cannot grow: %w",
			q.quota, q.period, n, sz.VCPUs, errdefs.ErrInvalidArgument)
	}
	return nil
}

// update changes a container's limits; what data, OCI LinuxResources as JSON, does not name stays as it is.
func (c *container) update(ctx context.Context, data []byte) error {
	if c.init.state().status == task.Status_STOPPED {
		return fmt.Errorf("container %s is not running: %w", c.id, errdefs.ErrFailedPrecondition)
	}
	var r specs.LinuxResources
	if err := json.Unmarshal(data, &r); err != nil {
		return fmt.Errorf("resources: %w: %w", err, errdefs.ErrInvalidArgument)
	}
	c.updates.Lock()
	defer c.updates.Unlock()
	quota := c.quota.with(r.CPU)
	asked := quota
	if quota == c.quota {
		asked = cpuQuota{} // it may be more than the VM has, if a cpuset gave it less at the start
	}
	if err := c.size.checkUpdate(r.Memory, asked); err != nil {
		return err
	}
	undo, err := c.host.cgroup.update(quota, r.CPU)
	if err != nil {
		return err
	}
	leftOut := guestResources(&r, c.host.cgroup.set())
	if len(r.Devices) > 0 {
		leftOut = append(leftOut, "linux.resources.devices") // runc does not change them either
		r.Devices = nil
	}
	if len(leftOut) > 0 {
		log.G(ctx).WithField("container", c.id).Warnf("left out of an update: %s", strings.Join(leftOut, ", "))
	}
	if data, err = json.Marshal(&r); err != nil {
		return fmt.Errorf("encode the guest's resources: %w", err)
	}
	if _, err = ask(ctx, "Update", c.vm.agent.Update, &agentpb.UpdateRequest{ContainerId: c.id, Resources: data}); err != nil {
		undo()
		return c.vm.blame(err)
	}
	c.quota = quota
	return nil
}
