package integration

import (
	"fmt"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/pkg/oci"
	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/fcshim/containerd-shim-fc-v2/integration/harness"
)

// readSecurity prints what a process is allowed to do.
const readSecurity = `grep -E '^(Cap|NoNewPrivs|Seccomp:|Uid|Gid|Groups)' /proc/self/status | tr -s '\t ' ' '
`

// TestSecurityOptions starts the same container with runc and in a VM, for some sets of nerdctl's flags, and compares what it finds;
// of the most important lines it says what they are. The guest's kernel has no /proc/kcore, which runc masks.
func TestSecurityOptions(t *testing.T) {
	c := containerd(t)
	profile := filepath.Join(t.TempDir(), "seccomp.json")
	writeJSON(t, profile, specs.LinuxSeccomp{
		DefaultAction: specs.ActAllow,
		Architectures: []specs.Arch{specs.ArchX86_64},
		Syscalls:      []specs.LinuxSyscall{{Names: []string{"mkdir", "mkdirat"}, Action: specs.ActErrno}},
	})
	for _, tt := range []struct {
		name   string
		flags  []string
		script string
		want   []string // lines that there must be
	}{
		{
			name: "defaults",
			script: `for f in /proc/keys /proc/timer_list /proc/scsi /proc/acpi /sys/firmware; do
	[ -e $f ] && { echo "$f: $(ls -A $f 2>&1 | grep -v ^$f | wc -l) $(cat $f 2>/dev/null | wc -c)"; }; done
for f in /proc/sys/kernel/hostname /proc/sysrq-trigger /proc/irq /proc/bus /sys/kernel/mm; do
	[ -w $f ] && touch $f 2>/dev/null && echo "$f can be written"; done
ls -l /dev | awk '{print $1, $3, $4, $5, $6, $NF}' | grep ^[cl] | grep -vE ' console$|kcore$' | sort; mknod /tmp/x b 7 0 && echo mknod; cat /tmp/x 2>&1
mount -t tmpfs t /tmp 2>/dev/null || echo no mount; unshare -U true 2>/dev/null || echo no user namespace
awk '$2 ~ "^/(proc|sys|dev)" {print $2, $3, $4}' /proc/mounts | sed 's/,gid=5//; s/,inode64//; s/size=[0-9]*k,*//g' | grep -vE '^/(proc/(acpi|scsi|timer_list|keys|latency_stats|kcore|interrupts|sched_debug)|sys/(firmware|devices))' | sort`,
			want: []string{"CapEff: 00000000a80425fb", "CapBnd: 00000000a80425fb", "Seccomp: 2", "NoNewPrivs: 0", "no mount", "mknod"},
		},
		{
			name:  "privileged",
			flags: []string{"--privileged"},
			script: `mount -t tmpfs t /mnt 2>/dev/null || { mkdir -p /tmp/m; mount -t tmpfs t /tmp/m; } && echo mounts
grep -q ' /sys sysfs rw' /proc/mounts && echo sys can be written
touch /proc/sys/kernel/hostname && echo proc can be written
for d in null zero full random urandom tty fuse net/tun kmsg loop-control; do [ -c /dev/$d ] && stat -c "%n %t:%T" /dev/$d; done
: </dev/fuse && echo fuse opens; mknod /tmp/zero c 1 5 && head -c 3 /tmp/zero | wc -c`,
			want: []string{"CapEff: 000001ffffffffff", "Seccomp: 0", "mounts", "sys can be written", "proc can be written", "/dev/fuse a:e5", "fuse opens", "/dev/net/tun a:c8"},
		},
		{
			name: "strict",
			flags: []string{"--cap-drop", "ALL", "--cap-add", "NET_BIND_SERVICE", "--cap-add", "CHOWN", "--user", "1000:2000", "--group-add", "3000",
				"--group-add", "4000", "--security-opt", "no-new-privileges", "--security-opt", "seccomp=" + profile, "--device", "/dev/fuse",
				"--device", "/dev/null:/dev/nothing:rw", "--device", "/dev/net/tun"},
			script: `mkdir /tmp/d 2>/dev/null || echo no mkdir; chown 0 /tmp 2>/dev/null || echo no chown
stat -c '%n %t:%T %a' /dev/fuse /dev/nothing /dev/net/tun; echo x >/dev/nothing && echo written`,
			want: []string{"CapBnd: 0000000000000401", "CapEff: 0000000000000000", "NoNewPrivs: 1", "Seccomp: 2", "Uid: 1000 1000 1000 1000",
				"Gid: 2000 2000 2000 2000", "no mkdir", "no chown", "/dev/nothing 1:3 666", "written"},
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			outputs := map[string]string{}
			eachRuntime(t, c, func(t *testing.T, c *harness.Containerd) {
				_, out := c.Nerdctl(t, c.Runtime).Run(t, append([]string{"--rm", "--network", "none"}, tt.flags...), "sh", "-c", readSecurity+tt.script)
				outputs[c.Runtime] = out
				for _, line := range tt.want {
					if !strings.Contains("\n"+out, "\n"+line+"\n") {
						t.Errorf("no line %q", line)
					}
				}
			})
			if fc := outputs[harness.FCRuntime]; c.FC() && fc != outputs[harness.RuncRuntime] {
				t.Errorf("runc and the VM differ:\n%s", difference(outputs[harness.RuncRuntime], fc))
			}
		})
	}
}

// difference lists lines that only one of two texts has.
func difference(runc, fc string) string {
	var out strings.Builder
	only := func(who, a, b string) {
		for line := range strings.Lines(a) {
			if !strings.Contains("\n"+b, "\n"+line) {
				fmt.Fprintf(&out, "%s: %s", who, line)
			}
		}
	}
	only("runc", runc, fc)
	only("fc  ", fc, runc)
	return out.String()
}

// TestSecurityRefused asks for what a VM does not have, or takes no notice of.
func TestSecurityRefused(t *testing.T) {
	c := containerd(t)
	fcOnly(t, c)
	t.Run("device", func(t *testing.T) {
		// The host has it, as tests of VMs run here; the guest has not.
		wantError(t, c.Run(t, harness.Run{Flags: []string{"--device", "/dev/kvm"}, Args: []string{"true"}}),
			"linux.devices", "/dev/kvm", "the guest has no device c 10:232")
	})
	t.Run("labels", func(t *testing.T) {
		task := c.StartTask(t, "", nil, oci.WithApparmorProfile("no-such-profile"), oci.WithSelinuxLabel("system_u:system_r:no_such_t:s0"),
			oci.WithProcessArgs("sh", "-c", "ls /sys/kernel/security 2>/dev/null; cat /proc/self/attr/current 2>&1 | tail -c 60; echo; exit 3"))
		if code := task.Await(t, long); code != 3 {
			t.Errorf("status %d", code)
		}
		c.Delete(t, task)
		if out := task.Stdout.String(); strings.Contains(out, "no-such") || strings.Contains(out, "no_such") {
			t.Errorf("the guest takes notice of a label: %q", out)
		}
	})
}
