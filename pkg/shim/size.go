package shim

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/config"
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
// to whole vCPUs, of which there are no more than CPUs in the container's cpuset, and as many if there is no other limit; a
// memory limit is rounded up to MiB and the guest's own need comes on top.
func vmSize(s *Settings, spec *specs.Spec) (size, error) {
	sz, err := sizeOf(s, spec)
	if s.HugePages == config.HugePages2M {
		sz.MemoryMiB += sz.MemoryMiB % 2 // whole huge pages
	}
	return sz, err
}

func sizeOf(s *Settings, spec *specs.Spec) (size, error) {
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
	set, err := cpusOf(spec.Linux)
	if err != nil {
		return size{}, err
	}
	// More vCPUs than CPUs to run on would wait for each other.
	if set > 0 && (q.quota <= 0 || set < sz.VCPUs) {
		sz.VCPUs = min(set, config.MaxVCPUs)
	}
	if mib := memoryMiBOf(r.Memory); mib > 0 {
		sz.MemoryMiB = int(mib+mib/structPageDivisor) + guestOverheadMiB
	}
	return sz, nil
}

// cpusOf counts the host's CPUs that a container is confined to; 0 means that it is not, be it for want of a cgroup.
func cpusOf(l *specs.Linux) (int, error) {
	if l.CgroupsPath == "" || l.Resources.CPU == nil || strings.TrimSpace(l.Resources.CPU.Cpus) == "" {
		return 0, nil
	}
	list := l.Resources.CPU.Cpus
	n, err := countCPUs(strings.TrimSpace(list))
	if err != nil {
		return 0, fmt.Errorf("linux.resources.cpu.cpus %q: %w; numbers and ranges such as 0-3,7 are allowed: %w", list, err, errdefs.ErrInvalidArgument)
	}
	return n, nil
}

// countCPUs counts the numbers in a list of cpuset(7)'s format.
func countCPUs(list string) (int, error) {
	seen := map[uint64]struct{}{} // of 16 bits, so its size is bounded
	for part := range strings.SplitSeq(list, ",") {
		first, last, isRange := strings.Cut(strings.TrimSpace(part), "-")
		if !isRange {
			last = first
		}
		from, err := strconv.ParseUint(first, 10, 16)
		if err != nil {
			return 0, fmt.Errorf("%q is no number of a CPU", first)
		}
		to, err := strconv.ParseUint(last, 10, 16)
		if err != nil {
			return 0, fmt.Errorf("%q is no number of a CPU", last)
		}
		if from > to {
			return 0, fmt.Errorf("%q is no range", part)
		}
		for i := from; i <= to; i++ {
			seen[i] = struct{}{}
		}
	}
	return len(seen), nil
}
