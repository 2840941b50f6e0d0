package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
)

// qemuBinary is a QEMU and what it needs to run from where it lies.
type qemuBinary struct {
	path string
	args []string // where its firmware is
}

// findQEMU prefers the QEMU that scripts/qemu.sh built into the cache over the system's, which lends its firmware.
func findQEMU(s settings) (qemuBinary, error) {
	if s.qemu != "" {
		return qemuBinary{path: s.qemu}, nil
	}
	if p := filepath.Join(s.cache, "qemu", "qemu-system-x86_64"); isFile(p) {
		return qemuBinary{path: p, args: []string{"-L", "/usr/share/qemu", "-L", "/usr/share/seabios"}}, nil
	}
	p, err := exec.LookPath("qemu-system-x86_64")
	if err != nil {
		return qemuBinary{}, fmt.Errorf("no QEMU (make deps installs it): %w", err)
	}
	return qemuBinary{path: p}, nil
}

func isFile(p string) bool {
	st, err := os.Stat(p)
	return err == nil && st.Mode().IsRegular()
}

// qemuArgs describes the machine. Descriptors 3 and 4 are CMD's standard output and error.
func qemuArgs(s settings, q qemuBinary, img images, work string) []string {
	in := func(name string) string { return filepath.Join(work, name) }
	a := append([]string{}, q.args...)
	cpu := "EPYC-Milan,+svm,+npt,-xsave"
	if s.icount {
		a = append(a, "-accel", "tcg", "-icount", "shift=0,sleep=off")
		// Each byte of a REP MOVSB counts as an instruction, which makes a copy thirty times as dear as it is. Without these two
		// flags kernels and libraries copy by eight or sixteen bytes an instruction.
		cpu += ",-erms,-fsrm"
	} else {
		a = append(a, "-accel", "tcg,thread="+s.threads)
	}
	a = append(a, "-smp", strconv.Itoa(s.cpus),
		"-M", "q35", "-cpu", cpu, "-m", s.mem,
		"-nodefaults", "-display", "none", "-no-reboot",
		"-object", "memory-backend-memfd,id=mem,share=on,size="+s.mem, "-numa", "node,memdev=mem",
		"-chardev", "socket,id=root,path="+in("root.sock"), "-device", "vhost-user-fs-pci,chardev=root,tag=root",
		"-drive", "file="+in("scratch.img")+",if=none,id=scratch,format=raw,cache=unsafe,discard=unmap",
		"-device", "virtio-blk-pci,drive=scratch",
		"-chardev", "file,id=console,path="+in("console.log"), "-serial", "chardev:console",
		// Output has channels of its own: eight bits clean, fast, and free of the kernel's messages.
		"-chardev", "file,id=out,path=/dev/fd/3", "-chardev", "file,id=err,path=/dev/fd/4",
		"-device", "virtio-serial-pci",
		"-device", "virtserialport,nr=1,chardev=out", "-device", "virtserialport,nr=2,chardev=err",
		"-kernel", img.kernel, "-initrd", img.initrd,
		// no_timer_check: on a busy host the kernel may not see the ten ticks in time that it wants to see before it trusts the timer.
		"-append", "console=ttyS0 panic=-1 mitigations=off no_timer_check quiet loglevel=4 kvmhost.run="+in("init"),
	)
	if s.out != "" {
		a = append(a, "-chardev", "socket,id=shared,path="+in("out.sock"), "-device", "vhost-user-fs-pci,chardev=shared,tag=out")
	}
	return a
}

// initScript is what the machine's PID 1 runs after the root has been put together: mounts, modules, CMD, the mark.
// CMD writes to FIFOs, which unlike the ports can be opened again through /dev/stdout; the marks follow the last byte.
func initScript(s settings, img images, cwd string, args []string, mark string) string {
	var b strings.Builder
	line := func(format string, a ...any) { fmt.Fprintf(&b, format+"\n", a...) }
	line("export PATH=/usr/sbin:/usr/bin:/sbin:/bin")
	line("mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t devtmpfs dev /dev")
	line("mkdir -p /dev/pts /dev/shm /dev/mqueue /scratch /lib/modules")
	line("mount -t devpts -o ptmxmode=666 devpts /dev/pts; mount -t tmpfs tmpfs /dev/shm; mount -t mqueue mqueue /dev/mqueue")
	line("mount -t tmpfs -o mode=755 tmpfs /run; mount -t cgroup2 cgroup2 /sys/fs/cgroup")
	line("mount -t ext4 /dev/vda /scratch; rmdir /scratch/lost+found")
	line("mount --bind %s /lib/modules", quote(img.modules))
	line("modprobe kvm_amd %s", s.kvmAMD)
	line("for m in tun veth bridge loop erofs overlay nft_compat; do modprobe $m 2>/dev/null; done")
	if s.out != "" {
		line("mkdir -p %[1]s && mount -t virtiofs out %[1]s", quote(s.out))
	}
	line("busybox ifconfig lo up; busybox hostname kvmhost; ulimit -n 524288")
	// The ports are numbered after the device, whose number follows the others'.
	line("mkfifo /run/out /run/err; cat </run/out >$(echo /dev/vport*p1) & cat </run/err >$(echo /dev/vport*p2) &")
	line("exec </dev/null >/run/out 2>/run/err")
	for _, kv := range append(s.env, "FC_SCRATCH=/scratch", "FC_KVMHOST=nested") {
		name, value, _ := strings.Cut(kv, "=")
		line("export %s=%s", name, quote(value))
	}
	line("cd %s &&", quote(cwd))
	for _, a := range args {
		b.WriteString(quote(a) + " ")
	}
	// printf's own octal escape stands for the NUL that no shell word can hold.
	tail := `\0` + mark[1:]
	line("\ns=$?; printf '%s%%d\\n' 0 >&2; printf '%s%%d\\n' $s; while :; do sleep 1000; done", tail, tail)
	return b.String()
}

// quote makes one shell word of any string.
func quote(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }
