package shim

import (
	"fmt"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"
)

// The guest needs memory of its own beside a container's limit: kernel, agent, page cache of the image, and a struct page
// (64 bytes) for each page of 4 KiB.
const (
	guestOverheadMiB  = 64
	structPageDivisor = 4096 / 64
)

// maxMemoryMiB keeps sums far from overflow; no host has 64 TiB to give.
const maxMemoryMiB = 64 << 20

// vmSize takes a VM's size from the container's limits, and from the settings what they leave open. CPU time is rounded up
// to whole vCPUs; a memory limit is rounded up to MiB and the guest's own need comes on top.
func vmSize(s *Settings, spec *specs.Spec) (size, error) {
	sz := size{VCPUs: s.VCPUs, MemoryMiB: s.MemoryMiB}
	if spec.Linux == nil || spec.Linux.Resources == nil {
		return sz, nil
	}
	r := spec.Linux.Resources
	q := cpuQuota{}.with(r.CPU)
	if n := q.cpus(); n > 1<<16 {
		return size{}, fmt.Errorf("linux.resources.cpu: quota %d in a period of %d µs asks for %d CPUs: %w", q.quota, q.period, n, errdefs.ErrInvalidArgument)
	} else if n > 0 {
		sz.VCPUs = int(n)
	}
	if mib := memoryMiBOf(r.Memory); mib > 0 {
		sz.MemoryMiB = int(mib+mib/structPageDivisor) + guestOverheadMiB
	}
	return sz, nil
}
