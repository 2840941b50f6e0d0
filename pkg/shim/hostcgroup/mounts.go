package hostcgroup

import (
	"fmt"
	"slices"
	"strings"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

// v1Controllers are the ones whose hierarchies a container's processes join: limits, and what tells how much they use.
var v1Controllers = [...]string{"cpu", "cpuacct", "cpuset", "memory", "blkio", "pids"}

// Mounted lists the hierarchies of this host: the one of cgroup v2, or those of v1 that matter here. On a host that has both, it is
// v1 that has the controllers.
func Mounted() ([]Hierarchy, error) {
	const usual = "/sys/fs/cgroup"
	var st unix.Statfs_t
	if err := unix.Statfs(usual, &st); err == nil && st.Type == unix.CGROUP2_SUPER_MAGIC {
		return []Hierarchy{{Dir: usual}}, nil // most hosts: no need to read a mount table that may be long
	}
	mounts, err := mountinfo.GetMounts(mountinfo.FSTypeFilter("cgroup", "cgroup2"))
	if err != nil {
		return nil, fmt.Errorf("look for cgroups: %w", err)
	}
	return choose(mounts), nil
}

func choose(mounts []*mountinfo.Info) []Hierarchy {
	var v1, v2 []Hierarchy
	seen := map[string]bool{}
	for _, m := range mounts {
		switch {
		case m.FSType == "cgroup2":
			v2 = append(v2, Hierarchy{Dir: m.Mountpoint})
		default:
			controllers := slices.DeleteFunc(strings.Split(m.VFSOptions, ","), func(o string) bool {
				return !slices.Contains(v1Controllers[:], o) || seen[o]
			})
			if len(controllers) > 0 {
				v1 = append(v1, Hierarchy{m.Mountpoint, controllers})
			}
			for _, c := range controllers {
				seen[c] = true
			}
		}
	}
	if len(v1) > 0 || len(v2) == 0 {
		return v1
	}
	return v2[:1]
}
