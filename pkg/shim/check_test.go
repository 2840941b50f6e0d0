package shim

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// newCheckup is one of a host on which all is well, made of files below its root.
func newCheckup(t *testing.T) *checkup {
	t.Helper()
	root := t.TempDir()
	for name, text := range map[string]string{
		"proc/sys/kernel/osrelease":            "6.1.0-fc\n",
		"proc/meminfo":                         "MemTotal:  9999999 kB\nMemAvailable:  2097152 kB\n",
		"proc/77/environ":                      "A=b\x00PATH=/sbin:/usr/local/bin\x00C=d",
		"dev/net/tun":                          "",
		"sys/module/overlay/x":                 "",
		"lib/modules/6.1.0-fc/modules.dep":     "kernel/net/sched/sch_ingress.ko.xz:\nkernel/net/sched/act-mirred.ko: a b\n",
		"lib/modules/6.1.0-fc/modules.builtin": "kernel/net/sched/cls_matchall.ko\n",
		"usr/local/bin/containerd-shim-fc-v2":  "",
		"usr/local/bin/fc-vmm":                 "",
		"usr/local/bin/vmlinux":                "\x7fELF",
		"usr/local/bin/guest.img":              strings.Repeat("\x00", 1024) + "\xe2\xe1\xf5\xe0",
		"run/c.sock":                           "",
		"fc.toml":                              "",
	} {
		file := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(text), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink("/usr/bin/containerd", filepath.Join(root, "proc/77/exe")); err != nil {
		t.Fatal(err)
	}
	return &checkup{
		root: root, config: filepath.Join(root, "fc.toml"), address: "/run/c.sock", self: filepath.Join(root, "usr/local/bin/containerd-shim-fc-v2"),
		kvm:  func() (int, error) { return 8, nil },
		peer: func(string) (int, error) { return 77, nil },
		boot: func(context.Context, *Settings) (string, error) { return "boots", nil },
		run: func(_ context.Context, program string, _ ...string) (string, error) {
			if strings.HasSuffix(program, "fc-vmm") {
				return "fc-vmm 1", nil
			}
			return "containerd github.com/containerd/containerd/v2 v2.4.2 abcdef", nil
		},
	}
}

func TestCheck(t *testing.T) {
	write := func(name, text string) func(*testing.T, *checkup) {
		return func(t *testing.T, c *checkup) {
			if err := os.WriteFile(c.path(name), []byte(text), 0o755); err != nil {
				t.Fatal(err)
			}
		}
	}
	remove := func(name string) func(*testing.T, *checkup) {
		return func(t *testing.T, c *checkup) {
			if err := os.RemoveAll(c.path(name)); err != nil {
				t.Fatal(err)
			}
		}
	}
	says := func(version string) func(*testing.T, *checkup) {
		return func(_ *testing.T, c *checkup) {
			c.run = func(context.Context, string, ...string) (string, error) { return version, nil }
		}
	}
	bad := errors.New("it is broken")
	for _, tt := range []struct {
		name   string
		spoil  func(*testing.T, *checkup)
		status int
		want   []string // parts of what is printed, the advice among them
	}{
		{"all is well", func(*testing.T, *checkup) {}, 0, []string{
			"ok    host kernel: 6.1.0-fc\n", "ok    KVM: /dev/kvm makes VMs, of up to 8 vCPUs\n", ", fc-vmm 1\n", "ok    memory: 2048 MiB",
			"ok    tc ingress: sch_ingress is to be loaded\n", "ok    tc matchall: cls_matchall is built in\n", "ok    tc mirred: act_mirred is to be loaded\n",
			"ok    overlay: overlay is loaded\n", "containerd/v2 v2.4.2 at /run/c.sock\n", "ok    shim: containerd finds it: /usr/local/bin/containerd-shim-fc-v2\n",
			"ok    boot: boots\n", "can work here\n"}},
		{"not root", func(_ *testing.T, c *checkup) { c.uid = 1000 }, 1, []string{"FAIL  user: uid 1000\n", "as root", "warn  boot: not tried"}},
		{"old kernel", write("proc/sys/kernel/osrelease", "5.4.0\n"), 1, []string{"FAIL  host kernel: 5.4.0\n", "5.10 or newer"}},
		{"strange kernel", write("proc/sys/kernel/osrelease", "mine\n"), 0, []string{`warn  host kernel: "mine"`}},
		{"no KVM", func(_ *testing.T, c *checkup) { c.kvm = func() (int, error) { return 0, bad } }, 1, []string{"FAIL  KVM: it is broken\n", "modprobe", "warn  boot: not tried"}},
		{"bad settings", write("fc.toml", "vcpu = 1"), 1, []string{"FAIL  settings: ", `unknown key "vcpu"`, "configs/fc.toml"}},
		{"no settings", remove("fc.toml"), 1, []string{"FAIL  settings: ", "no such file"}},
		{"no fc-vmm", remove("usr/local/bin/fc-vmm"), 1, []string{"FAIL  fc-vmm: ", "no such file", "set vmm in fc.toml"}},
		{"broken fc-vmm", func(_ *testing.T, c *checkup) {
			c.run = func(context.Context, string, ...string) (string, error) { return "", bad }
		}, 1, []string{"FAIL  fc-vmm: ", "it is broken"}},
		{"no kernel", remove("usr/local/bin/vmlinux"), 1, []string{"FAIL  guest kernel: ", "set kernel in fc.toml"}},
		{"bad image", write("usr/local/bin/guest.img", "text"), 1, []string{"FAIL  guest image: ", "not an erofs image"}},
		{"little memory", write("proc/meminfo", "MemAvailable: 200000 kB\n"), 0, []string{"warn  memory: 195 MiB", "memory_mib"}},
		{"no memory", write("proc/meminfo", "MemAvailable: lots kB\n"), 0, []string{"warn  memory"}},
		{"no tun", remove("dev/net/tun"), 1, []string{"FAIL  network devices: no such file or directory: /dev/net/tun\n", "modprobe tun"}},
		{"no modules", remove("lib/modules"), 0, []string{"warn  tc mirred: no module act_mirred", "CONFIG_NET_ACT_MIRRED", "3 of"}},
		{"no containerd", remove("run/c.sock"), 0, []string{"warn  containerd: /run/c.sock: no such file", "--address"}},
		{"dead containerd", func(_ *testing.T, c *checkup) { c.peer = func(string) (int, error) { return 0, bad } }, 1, []string{"FAIL  containerd: /run/c.sock: it is broken"}},
		{"containerd in another pid namespace", func(_ *testing.T, c *checkup) { c.peer = func(string) (int, error) { return 0, nil } }, 0, []string{"warn  containerd: its process, pid 0"}},
		{"old containerd", says("containerd github.com/containerd/containerd 1.7.2 abc"), 1, []string{"FAIL  containerd: github.com/containerd/containerd 1.7.2", "2.0 or newer"}},
		{"strange containerd", says("k3s 7"), 0, []string{"warn  containerd: /usr/bin/containerd does not tell its version", "k3s 7"}},
		{"shim not in PATH", write("proc/77/environ", "PATH=/sbin"), 1, []string{"FAIL  shim: containerd-shim-fc-v2 is neither in containerd's PATH (/sbin) nor beside it (/usr/bin)", "ln -s "}},
		{"another shim in PATH", func(t *testing.T, c *checkup) {
			if err := os.Mkdir(c.path("sbin"), 0o755); err != nil {
				t.Fatal(err)
			}
			write("sbin/containerd-shim-fc-v2", "")(t, c)
		}, 0, []string{"warn  shim: containerd will use /sbin/containerd-shim-fc-v2, not "}},
		{"no boot", func(_ *testing.T, c *checkup) {
			c.boot = func(context.Context, *Settings) (string, error) { return "", bad }
		}, 1, []string{"FAIL  boot: it is broken\n", "console_log"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := newCheckup(t)
			tt.spoil(t, c)
			c.all(t.Context())
			var out bytes.Buffer
			status := c.print(&out)
			if status != tt.status {
				t.Errorf("status %d, want %d", status, tt.status)
			}
			for _, w := range tt.want {
				if !strings.Contains(out.String(), w) {
					t.Errorf("does not say %q", w)
				}
			}
			if t.Failed() {
				t.Log(out.String())
			}
		})
	}
}

func TestCheckArguments(t *testing.T) {
	for args, want := range map[string]int{"--help": 0, "--conf x": 2, "now": 2} {
		var stderr bytes.Buffer
		if got := Check(t.Context(), strings.Fields(args), io.Discard, &stderr); got != want || stderr.Len() == 0 {
			t.Errorf("%s: status %d, want %d; %q", args, got, want, &stderr)
		}
	}
}

func TestPeer(t *testing.T) {
	name := filepath.Join(t.TempDir(), "s")
	if _, err := peerOf(name); err == nil {
		t.Error("no socket, no error")
	}
	l, err := net.Listen("unix", name)
	if err != nil {
		t.Fatal(err)
	}
	if pid, err := peerOf(name); err != nil || pid != os.Getpid() {
		t.Errorf("pid %d, %v; want %d", pid, err, os.Getpid())
	}
	l.(*net.UnixListener).SetUnlinkOnClose(false)
	l.Close()
	if _, err := peerOf(name); err == nil || !strings.Contains(fmt.Sprint(err), "connection refused") {
		t.Errorf("nobody listens: %v", err)
	}
}

// TestBootGuest has the fake VMM boot, or not.
func TestBootGuest(t *testing.T) {
	for fake, want := range map[string]string{"": "a guest with Linux ", "panic": "the guest's kernel has panicked", "refuse": "not today"} {
		w := newWorld(t, fake, "true")
		s, err := loadSettings(w.settings)
		if err != nil {
			t.Fatal(err)
		}
		what, err := bootGuest(t.Context(), s)
		if (err != nil) != (fake != "") || !strings.Contains(fmt.Sprint(what, err), want) {
			t.Errorf("%q: %q, %v; want %q", fake, what, err, want)
		}
	}
}
