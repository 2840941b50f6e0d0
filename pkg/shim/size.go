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
	if c := spec.Linux.Resources.CPU; c != nil && c.Quota != nil && *c.Quota > 0 {
		period := uint64(100_000) // the kernel's default, in µs
		if c.Period != nil && *c.Period > 0 {
			period = *c.Period
		}
		quota := uint64(*c.Quota)
		n := quota / period
		if quota%period != 0 {
			n++
		}
		if n > 1<<16 {
			return size{}, fmt.Errorf("linux.resources.cpu: quota %d in a period of %d µs asks for %d CPUs: %w", quota, period, n, errdefs.ErrInvalidArgument)
		}
		sz.VCPUs = int(n)
	}
	if m := spec.Linux.Resources.Memory; m != nil && m.Limit != nil && *m.Limit > 0 {
		limit := uint64(*m.Limit)
		mib := limit >> 20
		if limit&(1<<20-1) != 0 {
			mib++
		}
		if mib > maxMemoryMiB {
			// Docker and Kubernetes write "no limit" as a number near 2^63.
			return sz, nil
		}
		sz.MemoryMiB = int(mib+mib/structPageDivisor) + guestOverheadMiB
	}
	return sz, nil
}
