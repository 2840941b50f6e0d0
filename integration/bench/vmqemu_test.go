package bench

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/fcshim/containerd-shim-fc-v2/integration/bench/guest/task"
)

// virtiofsd is where Debian's qemu-system-common has it, which no PATH leads to.
const virtiofsd = "/usr/lib/qemu/virtiofsd"

// qemu is QEMU's microvm machine as its documentation recommends it: no legacy devices but the port that the guest talks through, no
// option ROMs, modern virtio; but one I/O APIC, KVM's: from the second, which is QEMU's own, guests got no interrupts here. It is
// Debian's own build for this machine where that has what the machine needs.
func qemu(b *testing.B, name string) vmm {
	b.Helper()
	program, err := exec.LookPath("qemu-system-x86_64")
	if err != nil {
		b.Skip(err)
	}
	small, err := exec.LookPath("qemu-system-x86_64-microvm")
	if err != nil {
		small = program
	}
	intoMemory(b, program, small)
	return vmm{name, func(b *testing.B, m machine) *vm {
		v := newVM(b)
		p := program
		if m.share == "" && m.tap == "" && !m.vsock { // it has no vhost
			p = small
		}
		if m.share != "" {
			v.serveFiles(m.share)
		}
		v.runVMM(exec.Command(p, v.qemuArgs(m)...))
		v.started = v.began
		return v
	}}
}

// intoMemory has programs, their libraries and QEMU's firmware lie in memory: see inMemory. In a nested machine, whose root is an overlay
// in memory above the host's files, they are written anew, so that to open them asks the host for nothing. Elsewhere they are read, which
// brings them into the page cache.
func intoMemory(b *testing.B, programs ...string) {
	b.Helper()
	files := append([]string{"/etc/ld.so.cache"}, programs...)
	for _, p := range programs {
		libraries, err := exec.Command("ldd", p).Output()
		if err != nil {
			b.Fatalf("ldd %s: %v", p, err)
		}
		for word := range strings.FieldsSeq(string(libraries)) {
			if filepath.IsAbs(word) {
				files = append(files, word)
			}
		}
	}
	firmware, _ := filepath.Glob("/usr/share/*/bios-microvm.bin") // where it lies differs: what is missing is only slower
	done := map[string]bool{}
	for _, f := range append(files, firmware...) {
		f, err := filepath.EvalSymlinks(f)
		if err != nil {
			b.Fatal(err)
		}
		if done[f] {
			continue
		}
		done[f] = true
		data, err := os.ReadFile(f)
		if err == nil && rootInMemory() {
			err = renew(f, data)
		}
		if err != nil {
			b.Fatal(err)
		}
	}
}

// rootInMemory tells whether this is a nested machine, in which nothing stays that is written.
func rootInMemory() bool {
	var st unix.Statfs_t
	return os.Getenv("FC_KVMHOST") == "nested" && unix.Statfs("/", &st) == nil && st.Type == unix.OVERLAYFS_SUPER_MAGIC
}

// renew replaces a file by one with the same content.
func renew(path string, data []byte) error {
	st, err := os.Stat(path)
	if err != nil {
		return err
	}
	if err := os.WriteFile(path+".new", data, st.Mode().Perm()); err != nil {
		return err
	}
	return os.Rename(path+".new", path)
}

func (v *vm) qemuArgs(m machine) []string {
	bus := 8 // QEMU's ACPI tables begin with the last
	device := func(format string, a ...any) []string {
		bus--
		return []string{"-device", fmt.Sprintf(format, a...) + fmt.Sprintf(",bus=virtio-mmio-bus.%d", bus)}
	}
	// It has no keyboard controller that could reset it.
	args := strings.Replace(m.kernelArgs(), "reboot=k", "reboot=t", 1) + " root=/dev/vda ro"
	a := []string{
		"-M", "microvm,accel=kvm,acpi=on,pit=off,pic=off,rtc=off,x-option-roms=off,auto-kernel-cmdline=off,ioapic2=off", "-cpu", "host",
		"-smp", strconv.Itoa(max(m.vcpus, 1)), "-m", fmt.Sprintf("%dM", m.memMiB), "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
		"-global", "virtio-mmio.force-legacy=false",
		"-chardev", "file,id=com1,path=/proc/self/fd/1", "-serial", "chardev:com1",
		"-kernel", product("vmlinux"), "-append", args,
		"-drive", "if=none,id=root,format=raw,readonly=on,cache=unsafe,file=" + image(v.b),
	}
	a = append(a, device("virtio-blk-device,drive=root")...)
	if m.drive != "" {
		// Like fc-vmm's drives: through the host's page cache, and flushes are not waited for.
		a = append(a, "-object", "iothread,id=io", "-drive", "if=none,id=data,format=raw,cache=unsafe,aio=threads,file="+m.drive)
		a = append(a, device("virtio-blk-device,drive=data,iothread=io")...)
	}
	if m.share != "" {
		a = append(a, "-object", fmt.Sprintf("memory-backend-memfd,id=mem,share=on,size=%dM", m.memMiB), "-machine", "memory-backend=mem",
			"-chardev", "socket,id=fs,path="+v.filesSocket())
		a = append(a, device("vhost-user-fs-device,chardev=fs,tag=%s", task.Tag)...)
	}
	if m.tap != "" {
		vhost := "off"
		if _, err := os.Stat("/dev/vhost-net"); err == nil {
			vhost = "on"
		}
		a = append(a, "-netdev", fmt.Sprintf("tap,id=net,ifname=%s,script=no,downscript=no,vhost=%s", m.tap, vhost))
		a = append(a, device("virtio-net-device,netdev=net")...)
	}
	if m.vsock {
		a = append(a, device("vhost-vsock-device,guest-cid=%d", guestCID)...)
	}
	return a
}

func (v *vm) filesSocket() string { return filepath.Join(v.dir, "fs") }

// serveFiles starts Debian's virtiofsd. Its caches hold for a second, as fc-vmm's do, it has extended attributes, as fc-vmm has, and
// locks are the guest's own with both.
func (v *vm) serveFiles(share string) {
	v.b.Helper()
	v.run(exec.Command(virtiofsd, "--socket-path="+v.filesSocket(), "-f", "-o", strings.Join([]string{
		"source=" + share, "cache=auto", "xattr", "log_level=err",
	}, ",")))
	v.waitFor(v.filesSocket())
}
