package shim

import (
	"net"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
)

func emptySpec(mounts ...specs.Mount) *specs.Spec {
	return &specs.Spec{Process: &specs.Process{Args: []string{"a"}, Cwd: "/"}, Root: &specs.Root{Path: "rootfs"}, Linux: ownNetwork(), Mounts: mounts}
}

// ownNetwork is the least that a container needs.
func ownNetwork() *specs.Linux {
	return &specs.Linux{Namespaces: []specs.LinuxNamespace{{Type: specs.NetworkNamespace}}}
}

func TestGuestMounts(t *testing.T) {
	bundle := t.TempDir()
	file := filepath.Join(bundle, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("unix", filepath.Join(bundle, "s"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	const guest0 = "/run/shared/c1/mounts/0"
	for name, tt := range map[string]struct {
		in, want specs.Mount
		bind     *bind
		err      string
	}{
		"folder": {
			in:   specs.Mount{Destination: "/d", Type: "none", Source: bundle, Options: []string{"rbind", "rw"}},
			want: specs.Mount{Destination: "/d", Type: "bind", Source: guest0, Options: []string{"rbind", "rw"}},
			bind: &bind{Source: bundle, Target: "mounts/0", Dir: true, Recursive: true},
		},
		"file, read-only, relative": {
			in:   specs.Mount{Destination: "/f", Source: "file", Options: []string{"bind", "ro"}},
			want: specs.Mount{Destination: "/f", Type: "bind", Source: guest0, Options: []string{"bind", "ro"}},
			bind: &bind{Source: file, Target: "mounts/0", ReadOnly: true},
		},
		"recursively read-only": {
			in:   specs.Mount{Destination: "/f", Source: file, Options: []string{"rbind", "rro", "rprivate"}},
			want: specs.Mount{Destination: "/f", Type: "bind", Source: guest0, Options: []string{"rbind", "ro", "rprivate"}},
			bind: &bind{
				Source: file, Target: "mounts/0", Recursive: true, ReadOnly: true, RecursiveReadOnly: true, Private: true, RecursivePrivate: true,
			},
		},
		"read-only, with a mount below": {
			in:   specs.Mount{Destination: "/d", Source: "/dev", Options: []string{"rbind", "ro", "private"}},
			want: specs.Mount{Destination: "/d", Type: "bind", Source: guest0, Options: []string{"rbind", "private"}},
			bind: &bind{Source: "/dev", Target: "mounts/0", Dir: true, Recursive: true, ReadOnly: true, Private: true},
		},
		"the host's mounts to be seen": {
			in:   specs.Mount{Destination: "/d", Source: bundle, Options: []string{"rbind", "rprivate", "rslave"}},
			want: specs.Mount{Destination: "/d", Type: "bind", Source: guest0, Options: []string{"rbind", "rprivate", "rslave"}},
			bind: &bind{Source: bundle, Target: "mounts/0", Dir: true, Recursive: true},
		},
		"the guest's mounts to be seen": {
			in:  specs.Mount{Destination: "/d", Source: bundle, Options: []string{"rbind", "rshared"}},
			err: `mount /d: propagation "rshared": a mount that is made in a VM cannot appear on the host; use "rslave"`,
		},
		"bind by type only": {
			in:   specs.Mount{Destination: "/f", Type: "bind", Source: file},
			want: specs.Mount{Destination: "/f", Type: "bind", Source: guest0, Options: []string{"rbind"}},
			bind: &bind{Source: file, Target: "mounts/0", Recursive: true},
		},
		"tmpfs": {
			in:   specs.Mount{Destination: "/t", Type: "tmpfs", Source: "tmpfs", Options: []string{"size=1m"}},
			want: specs.Mount{Destination: "/t", Type: "tmpfs", Source: "tmpfs", Options: []string{"size=1m"}},
		},
		"the host's shm": {
			in:   specs.Mount{Destination: "/dev/shm/", Type: "bind", Source: "/dev/shm", Options: []string{"rbind"}},
			want: specs.Mount{Destination: "/dev/shm/", Type: "tmpfs", Source: "shm", Options: []string{"nosuid", "noexec", "nodev", "mode=1777", "size=65536k"}},
		},
		"data at the place of shm": {
			in:   specs.Mount{Destination: "/dev/shm", Type: "bind", Source: "/proc/self", Options: []string{"rbind"}},
			want: specs.Mount{Destination: "/dev/shm", Type: "bind", Source: guest0, Options: []string{"rbind"}},
			bind: &bind{Source: "/proc/self", Target: "mounts/0", Dir: true, Recursive: true},
		},
		"no source":     {in: specs.Mount{Destination: "/f", Source: "/no/such", Options: []string{"bind"}}, err: "mount /f: source /no/such: no such file"},
		"a disk":        {in: specs.Mount{Destination: "/f", Source: "/dev/vda", Type: "ext4"}, err: `mount /f: type "ext4" is not supported`},
		"id-mapped":     {in: specs.Mount{Destination: "/f", Source: file, Options: []string{"bind", "idmap"}}, err: "id-mapped"},
		"no type, none": {in: specs.Mount{Destination: "/f", Source: file}, err: `type ""`},
	} {
		t.Run(name, func(t *testing.T) {
			spec := emptySpec(tt.in)
			binds, _, err := guestSpec(spec, "c1", bundle)
			if tt.err != "" {
				if err == nil || !strings.Contains(err.Error(), tt.err) {
					t.Errorf("error %v, want %q", err, tt.err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if !reflect.DeepEqual(spec.Mounts[0], tt.want) {
				t.Errorf("mount %+v, want %+v", spec.Mounts[0], tt.want)
			}
			var want []bind
			if tt.bind != nil {
				want = []bind{*tt.bind}
				want[0].Destination = tt.in.Destination
			}
			if !reflect.DeepEqual(binds, want) {
				t.Errorf("binds %+v, want %+v", binds, want)
			}
			if spec.Root.Path != "/run/shared/c1/rootfs" {
				t.Errorf("root %s", spec.Root.Path)
			}
		})
	}
}

func TestGuestLinux(t *testing.T) {
	n, swap := int64(1<<30), uint64(50)
	spec := emptySpec()
	spec.Process.ApparmorProfile, spec.Process.SelinuxLabel = "cri-containerd", "label"
	spec.Linux = &specs.Linux{
		CgroupsPath: "/default/c1", IntelRdt: &specs.LinuxIntelRdt{}, MountLabel: "m",
		Namespaces: []specs.LinuxNamespace{{Type: specs.PIDNamespace}, {Type: specs.NetworkNamespace, Path: "/run/netns/x"}, {Type: specs.IPCNamespace}},
		Devices:    []specs.LinuxDevice{{Path: "/dev/sda", Type: "b"}, {Path: "/dev/fuse", Type: "c"}},
		Sysctl:     map[string]string{"net.ipv4.ip_forward": "1"},
		Resources: &specs.LinuxResources{
			Devices: []specs.LinuxDeviceCgroup{{Allow: true, Access: "rwm"}},
			CPU:     &specs.LinuxCPU{Cpus: "7", Mems: "1", Quota: &n},
			Memory:  &specs.LinuxMemory{Limit: &n, Swap: &n, Swappiness: &swap},
			BlockIO: &specs.LinuxBlockIO{}, Pids: &specs.LinuxPids{Limit: &n},
		},
	}
	if err := checkSpec(spec); err != nil {
		t.Fatal(err)
	}
	_, leftOut, err := guestSpec(spec, "c1", t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	if want := []string{"linux.intelRdt", "linux.devices /dev/sda", "linux.resources.blockIO"}; !slices.Equal(leftOut, want) {
		t.Errorf("left out: %q, want %q", leftOut, want)
	}
	want := &specs.Linux{
		CgroupsPath: "/c1",
		Namespaces:  []specs.LinuxNamespace{{Type: specs.PIDNamespace}, {Type: specs.IPCNamespace}},
		Devices:     []specs.LinuxDevice{{Path: "/dev/fuse", Type: "c"}},
		Sysctl:      map[string]string{"net.ipv4.ip_forward": "1"},
		Resources: &specs.LinuxResources{
			Devices: []specs.LinuxDeviceCgroup{{Allow: true, Access: "rwm"}},
			CPU:     &specs.LinuxCPU{Quota: &n}, Memory: &specs.LinuxMemory{Limit: &n}, Pids: &specs.LinuxPids{Limit: &n},
		},
	}
	if !reflect.DeepEqual(spec.Linux, want) {
		t.Errorf("linux %+v, want %+v", spec.Linux, want)
	}
	if spec.Process.ApparmorProfile+spec.Process.SelinuxLabel != "" {
		t.Error("the host's LSM profiles went to the guest")
	}
}

func TestCheckSpec(t *testing.T) {
	for name, tt := range map[string]struct {
		change func(*specs.Spec)
		want   string
	}{
		"good":               {func(*specs.Spec) {}, ""},
		"no args":            {func(s *specs.Spec) { s.Process.Args = nil }, "process.args is empty"},
		"cwd":                {func(s *specs.Spec) { s.Process.Cwd = "tmp" }, `process.cwd "tmp" is not an absolute path`},
		"no root":            {func(s *specs.Spec) { s.Root = nil }, "no root.path"},
		"no linux":           {func(s *specs.Spec) { s.Linux = nil }, "no linux section"},
		"no hooks":           {func(s *specs.Spec) { s.Hooks = &specs.Hooks{} }, ""},
		"the host's network": {func(s *specs.Spec) { s.Linux.Namespaces = nil }, "the host's network (--net-host, --network host) cannot be used"},
		"a network by path":  {func(s *specs.Spec) { s.Linux.Namespaces[0].Path = "/run/netns/x" }, ""},
		"another's ipc": {func(s *specs.Spec) {
			s.Linux.Namespaces = append(s.Linux.Namespaces, specs.LinuxNamespace{Type: specs.IPCNamespace, Path: "/proc/7/ns/ipc"})
		}, "linux.namespaces[1]: ipc namespace /proc/7/ns/ipc: joining"},
		"a disk": {func(s *specs.Spec) { s.Linux.Devices = []specs.LinuxDevice{{Path: "/dev/sda", Type: "b"}} }, "linux.devices[0]: /dev/sda: block devices are not supported"},
		"privileged": {func(s *specs.Spec) {
			s.Linux.Devices = []specs.LinuxDevice{{Path: "/dev/sda", Type: "b"}}
			s.Linux.Resources = &specs.LinuxResources{Devices: []specs.LinuxDeviceCgroup{{Access: "rwm"}, {Allow: true, Access: "rwm"}}}
		}, ""},
		"net devices": {func(s *specs.Spec) { s.Linux.NetDevices = map[string]specs.LinuxNetDevice{"eth1": {}} }, "linux.netDevices"},
	} {
		s := emptySpec()
		tt.change(s)
		err := checkSpec(s)
		if tt.want == "" && err != nil || tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
