package shim

import (
	"context"
	"fmt"
	"io"

	"github.com/containerd/containerd/api/types"
	"github.com/containerd/typeurl/v2"
	"github.com/opencontainers/runtime-spec/specs-go"
	"github.com/opencontainers/runtime-spec/specs-go/features"
)

// Info implements shim.Shim: the runtime's version and its OCI features.
func (m *Manager) Info(_ context.Context, options io.Reader) (*types.RuntimeInfo, error) {
	// The options change nothing in the answer, but whoever writes them must not find a broken pipe.
	if _, err := io.Copy(io.Discard, io.LimitReader(options, 10<<20)); err != nil {
		return nil, fmt.Errorf("read the runtime options: %w", err)
	}
	f, err := typeurl.MarshalAnyToProto(ociFeatures())
	if err != nil {
		return nil, fmt.Errorf("encode the OCI features: %w", err)
	}
	return &types.RuntimeInfo{Name: RuntimeName, Version: &types.RuntimeVersion{Version: m.version}, Features: f}, nil
}

// ociFeatures says what specs may ask for. CRI looks for rro before it sends recursively read-only mounts.
func ociFeatures() *features.Features {
	yes, no := true, false
	return &features.Features{
		OCIVersionMin: "1.0.0",
		OCIVersionMax: specs.Version,
		MountOptions: []string{
			"async", "atime", "bind", "defaults", "dev", "diratime", "dirsync", "exec", "mand", "noatime", "nodev",
			"nodiratime", "noexec", "nomand", "norelatime", "nostrictatime", "nosuid", "nosymfollow", "private", "rbind",
			"relatime", "remount", "ro", "rprivate", "rro", "rshared", "rslave", "runbindable", "rw", "shared", "slave",
			"strictatime", "suid", "symfollow", "sync", "unbindable",
		},
		Linux: &features.Linux{
			Namespaces:      []string{"cgroup", "ipc", "mount", "pid", "user", "uts"},
			Cgroup:          &features.Cgroup{V1: &no, V2: &yes, Systemd: &no, SystemdUser: &no, Rdma: &no},
			Seccomp:         &features.Seccomp{Enabled: &yes},
			Apparmor:        &features.Apparmor{Enabled: &no},
			Selinux:         &features.Selinux{Enabled: &no},
			IntelRdt:        &features.IntelRdt{Enabled: &no},
			MountExtensions: &features.MountExtensions{IDMap: &features.IDMap{Enabled: &no}},
		},
	}
}
