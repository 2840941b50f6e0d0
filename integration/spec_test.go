package integration

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/core/containers"
	"github.com/containerd/containerd/v2/pkg/oci"
	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/fcshim/containerd-shim-fc-v2/integration/ociimage"
)

// TestSpecByCtr asks for things by flags of ctr run, as many in one container as do not disturb each other, and reads them back
// inside.
func TestSpecByCtr(t *testing.T) {
	c := containerd(t)
	profile := filepath.Join(t.TempDir(), "seccomp.json")
	writeJSON(t, profile, specs.LinuxSeccomp{
		DefaultAction: specs.ActAllow,
		Architectures: []specs.Arch{specs.ArchX86_64},
		Syscalls:      []specs.LinuxSyscall{{Names: []string{"mkdir", "mkdirat"}, Action: specs.ActErrno}},
	})
	type readBack struct{ what, script, want string }
	for _, tt := range []struct {
		name  string
		flags []string
		read  []readBack
	}{
		{"defaults", nil, []readBack{
			{"environment", `echo "$PATH"`, "/bin:/sbin:/usr/bin:/usr/sbin\n"},
			{"user", "id -u; id -g", "0\n0\n"},
			{"cwd", "pwd", "/\n"},
			{"root", "touch /new; echo $?", "0\n"},
			{"seccomp", "grep '^Seccomp:' /proc/self/status", "Seccomp:\t0\n"},
			{"no new privileges", "grep '^NoNewPrivs:' /proc/self/status", "NoNewPrivs:\t1\n"},
			{"masked path", "cat /proc/kcore | wc -c", "0\n"},
			{"read-only path", "echo 1 2>/dev/null >/proc/sys/kernel/panic; echo $?", "1\n"},
			{"pid namespace", "echo $$", "1\n"},
		}},
		{"ordinary user", []string{
			"--env", "A=one", "--env", "B=two words", "--user", ociimage.User, "--cwd", "/home/" + ociimage.User,
			"--rlimit-nofile", "123:456", "--hostname", "a-name",
		}, []readBack{
			{"environment", `echo "$A|$B"`, "one|two words\n"},
			{"user", "id -u; id -g; grep -c '^Groups:.*2000' /proc/self/status", "1000\n1000\n1\n"},
			{"cwd", "pwd; readlink /proc/self/cwd", "/home/tester\n/home/tester\n"},
			{"rlimit", "ulimit -Sn; ulimit -Hn", "123\n456\n"},
			{"hostname", "hostname", "a-name\n"},
			{"effective capabilities", "grep '^CapEff' /proc/self/status", "CapEff:\t0000000000000000\n"},
			{"owner of a new file", "touch f; stat -c '%u %g' f", "1000 1000\n"},
		}},
		{"no capabilities", append(dropAll(), "--read-only"), []readBack{
			{"capabilities", "grep '^Cap[EPB]' /proc/self/status",
				"CapPrm:\t0000000000000000\nCapEff:\t0000000000000000\nCapBnd:\t0000000000000000\n"},
			{"read-only root", "touch /new 2>/dev/null; echo $?; touch /dev/shm/new; echo $?", "1\n0\n"},
		}},
		{"one capability", append(dropAll(), "--cap-add", "CAP_SYS_TIME", "--seccomp", "--seccomp-profile", profile), []readBack{
			{"capabilities", "grep '^Cap[EPB]' /proc/self/status",
				"CapPrm:\t0000000002000000\nCapEff:\t0000000002000000\nCapBnd:\t0000000002000000\n"},
			{"seccomp", "grep '^Seccomp:' /proc/self/status; mkdir /tmp/d 2>/dev/null; echo $?", "Seccomp:\t2\n1\n"},
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			const border = "----\n"
			var script strings.Builder
			for _, r := range tt.read {
				fmt.Fprintf(&script, "%s\necho ----\n", r.script)
			}
			got := strings.Split(c.Sh(t, tt.flags, script.String()), border)
			if len(got) != len(tt.read)+1 {
				t.Fatalf("printed %q", got)
			}
			for i, r := range tt.read {
				if got[i] != r.want {
					t.Errorf("%s: %s\nprinted %q\n   want %q", r.what, r.script, got[i], r.want)
				}
			}
		})
	}
}

// dropAll are the flags that drop every capability that ctr gives by default.
func dropAll() []string {
	var flags []string
	for _, name := range []string{
		"AUDIT_WRITE", "CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID", "KILL", "MKNOD", "NET_BIND_SERVICE", "NET_RAW", "SETFCAP",
		"SETGID", "SETPCAP", "SETUID", "SYS_CHROOT",
	} {
		flags = append(flags, "--cap-drop", "CAP_"+name)
	}
	return flags
}

// TestSpecWhole asks for much at once, among it what ctr has no flag for.
func TestSpecWhole(t *testing.T) {
	c := containerd(t)
	const script = `
echo "env $X"; echo "cwd $(pwd)"; echo "uid $(id -u) gid $(id -g) umask $(umask)"
grep -E '^(CapEff|CapAmb|Seccomp|Groups):' /proc/self/status | tr -s '\t ' ' '
for l in 'Max open files' 'Max processes' 'Max core file size'; do grep "^$l" /proc/self/limits | tr -s ' '; done
echo "oom $(cat /proc/self/oom_score_adj)"; echo "somaxconn $(cat /proc/sys/net/core/somaxconn)"
grep ' /scratch tmpfs ' /proc/self/mounts | grep -o 'size=[0-9]*k'
touch /x 2>/dev/null || echo 'root is read-only'
`
	umask := uint32(0o27)
	score := 321
	task := c.StartTask(t, "", nil,
		oci.WithProcessArgs("sh", "-c", script),
		oci.WithEnv([]string{"X=y"}),
		oci.WithProcessCwd("/tmp"),
		oci.WithRootFSReadonly(),
		oci.WithCapabilities([]string{"CAP_NET_ADMIN"}),
		oci.WithAmbientCapabilities([]string{"CAP_NET_ADMIN"}),
		oci.WithMounts([]specs.Mount{{
			Destination: "/scratch", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "size=8m"},
		}}),
		withSpec(func(s *oci.Spec) {
			s.Process.User = specs.User{UID: 1000, GID: 2000, AdditionalGids: []uint32{3000, 3001}, Umask: &umask}
			s.Process.OOMScoreAdj = &score
			s.Process.Rlimits = []specs.POSIXRlimit{
				{Type: "RLIMIT_NOFILE", Soft: 1000, Hard: 2000},
				{Type: "RLIMIT_NPROC", Soft: 300, Hard: 400},
				{Type: "RLIMIT_CORE", Soft: 0, Hard: 0},
			}
			s.Linux.Sysctl = map[string]string{"net.core.somaxconn": "77"}
			s.Linux.Seccomp = &specs.LinuxSeccomp{DefaultAction: specs.ActAllow, Architectures: []specs.Arch{specs.ArchX86_64},
				Syscalls: []specs.LinuxSyscall{{Names: []string{"acct"}, Action: specs.ActErrno}}}
		}))
	if code := task.Await(t, long); code != 0 {
		t.Errorf("status %d", code)
	}
	c.Delete(t, task)
	const want = `env y
cwd /tmp
uid 1000 gid 2000 umask 0027
Groups: 3000 3001 
CapEff: 0000000000001000
CapAmb: 0000000000001000
Seccomp: 2
Max open files 1000 2000 files 
Max processes 300 400 processes 
Max core file size 0 0 bytes 
oom 321
somaxconn 77
size=8192k
root is read-only
`
	if got := task.Stdout.String(); got != want {
		t.Errorf("read back inside:\n%s\nwant:\n%s\nstderr:\n%s", got, want, task.Stderr.String())
	}
}

func withSpec(change func(*oci.Spec)) oci.SpecOpts {
	return func(_ context.Context, _ oci.Client, _ *containers.Container, s *oci.Spec) error {
		change(s)
		return nil
	}
}

func writeJSON(t *testing.T, path string, v any) {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, b, 0o644); err != nil {
		t.Fatal(err)
	}
}

// TestNamespaces looks whether a container is apart from the machine that its kernel runs: it sees its own processes only.
func TestNamespaces(t *testing.T) {
	c := containerd(t)
	got := c.Sh(t, nil, "ls /proc | grep -c '^[0-9]'; for n in ipc mnt net pid uts cgroup; do readlink /proc/self/ns/$n | cut -d: -f1; done")
	lines := strings.Fields(got)
	if len(lines) != 7 || strings.Join(lines[1:], " ") != "ipc mnt net pid uts cgroup" {
		t.Fatalf("printed %q", got)
	}
	var n int
	if _, err := fmt.Sscan(lines[0], &n); err != nil || n > 6 {
		t.Errorf("the container sees %s processes, more than its own", lines[0])
	}
}
