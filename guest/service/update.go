package service

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"github.com/opencontainers/cgroups"
	"github.com/opencontainers/runc/libcontainer/configs"
	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/fcshim/containerd-shim-fc-v2/pkg/agent/agentpb"
)

// Update implements agentpb.AgentService. After an error the limits are what they were.
func (s *Service) Update(ctx context.Context, r *agentpb.UpdateRequest) (*agentpb.UpdateResponse, error) {
	c, err := s.get(r.ContainerId)
	if err != nil {
		return nil, err
	}
	var change specs.LinuxResources
	if err := json.Unmarshal(r.Resources, &change); err != nil {
		return nil, fmt.Errorf("resources: %w: %w", err, errdefs.ErrInvalidArgument)
	}
	for key := range change.Unified {
		if strings.ContainsRune(key, '/') || !strings.ContainsRune(key, '.') {
			return nil, fmt.Errorf("resources.unified: %q is not the name of a cgroup's file: %w", key, errdefs.ErrInvalidArgument)
		}
	}
	c.updates.Lock()
	defer c.updates.Unlock()
	config := withResources(c.lib.Config(), &change)
	// libcontainer puts back on an error what the container's configuration says, and so leaves a first limit set.
	before, err := readLimits(c.cgroup, change.Unified)
	if err != nil {
		return nil, err
	}
	if err := c.lib.Set(config); err != nil {
		if rerr := before.restore(c.cgroup); rerr != nil {
			log.G(ctx).WithError(rerr).WithField("container", c.id).Error("the limits are not what they were before a failed update")
		}
		return nil, classify(err)
	}
	return &agentpb.UpdateResponse{}, nil
}

// withResources is a container's configuration after a change; the rules for devices stay.
func withResources(config configs.Config, change *specs.LinuxResources) configs.Config {
	group, r := *config.Cgroups, *config.Cgroups.Resources
	config.Cgroups, group.Resources = &group, &r
	if m := change.Memory; m != nil {
		set(&r.Memory, m.Limit)
		set(&r.MemoryReservation, m.Reservation)
		set(&r.MemoryCheckBeforeUpdate, m.CheckBeforeUpdate)
	}
	if c := change.CPU; c != nil {
		if c.Idle != nil && c.Shares == nil {
			c.Shares = new(uint64) // an idle cgroup has no weight, and the kernel refuses one
		}
		if c.Shares != nil {
			r.CpuShares = *c.Shares
			r.CpuWeight = cgroups.ConvertCPUSharesToCgroupV2Value(*c.Shares)
		}
		// 0 stands for none given, as with runc.
		if c.Quota != nil && *c.Quota != 0 {
			r.CpuQuota = *c.Quota
		}
		if c.Period != nil && *c.Period != 0 {
			r.CpuPeriod = *c.Period
		}
		if c.Burst != nil {
			r.CpuBurst = c.Burst
		}
		if c.Idle != nil {
			r.CPUIdle = c.Idle
		}
	}
	if change.Pids != nil && change.Pids.Limit != nil {
		r.PidsLimit = change.Pids.Limit
	}
	if len(change.Unified) > 0 {
		r.Unified = maps.Clone(r.Unified)
		if r.Unified == nil {
			r.Unified = map[string]string{}
		}
		maps.Copy(r.Unified, change.Unified)
	}
	return config
}

// set assigns what has been given.
func set[T any](to, from *T) {
	if from != nil {
		*to = *from
	}
}

// limits are the contents of a cgroup's files, by name.
type limits map[string]string

// limitFiles are those that libcontainer writes for what withResources knows, in an order in which they can be written back:
// a weight is refused while the cgroup is idle.
var limitFiles = [...]string{"cpu.idle", "cpu.weight", "cpu.max", "cpu.max.burst", "memory.max", "memory.low", "pids.max"}

// readLimits reads what an update may change; files that this kernel does not have, or does not let read, are left out.
func readLimits(dir string, unified map[string]string) (limits, error) {
	l := limits{}
	read := func(name string) error {
		b, err := os.ReadFile(filepath.Join(dir, name))
		if err == nil {
			l[name] = strings.TrimSpace(string(b))
		} else if !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, fs.ErrPermission) {
			return fmt.Errorf("read the present limits: %w", err)
		}
		return nil
	}
	for _, name := range limitFiles {
		if err := read(name); err != nil {
			return nil, err
		}
	}
	for name := range unified {
		if err := read(name); err != nil {
			return nil, err
		}
	}
	return l, nil
}

// restore writes back what has changed.
func (l limits) restore(dir string) error {
	now, err := readLimits(dir, l)
	errs := []error{err}
	put := func(name string) {
		if was, ok := l[name]; ok && now[name] != was {
			errs = append(errs, os.WriteFile(filepath.Join(dir, name), []byte(was), 0))
			now[name] = was
		}
	}
	for _, name := range limitFiles {
		put(name)
	}
	for name := range l {
		put(name)
	}
	return errors.Join(errs...)
}
