package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/config"
	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/vmmtest"
)

// virtiofsd is Debian's, a file server that others have written.
const virtiofsd = "/usr/lib/qemu/virtiofsd"

// TestServedFolder: a guest works in a folder that another process serves, into which fc-vmm itself never looks; that process dies, and the guest's
// next driver finds the one that has come in its place.
func TestServedFolder(t *testing.T) {
	vmmtest.NeedKVM(t)
	for name, serve := range map[string]func(t *testing.T, folder, sock string) *os.Process{
		"fc-vmm": func(t *testing.T, folder, sock string) *os.Process {
			return start(t, nil, "fs", "--shared-dir", folder, "--socket-path", sock).Process
		},
		"virtiofsd": func(t *testing.T, folder, sock string) *os.Process {
			if _, err := os.Stat(virtiofsd); err != nil {
				t.Skip(err)
			}
			cmd := exec.Command(virtiofsd, "--socket-path="+sock, "-f", "-o", "source="+folder+",log_level=err")
			cmd.Stderr = os.Stderr
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() {
				cmd.Process.Kill()
				cmd.Wait()
			})
			return cmd.Process
		},
	} {
		t.Run(name, func(t *testing.T) { testServedFolder(t, serve) })
	}
}

func testServedFolder(t *testing.T, serve func(t *testing.T, folder, sock string) *os.Process) {
	const script = `exec >/dev/console 2>&1
mkdir -p /control
mount -t virtiofs control /control
work() {
	mount -t virtiofs shared /mnt && echo "$1: $(cat /mnt/known)"
	head -c 3000000 /dev/zero >/mnt/zeros; echo "$1" >/mnt/by-guest; umount /mnt && echo "$1: unmounted"
}
work first
for d in /sys/bus/virtio/devices/*; do grep -q 0x001a $d/device && break; done
while ! grep -q 4f $d/status; do usleep 20000; done
echo "lost"
while ! [ -e /control/go ]; do usleep 20000; done
echo ${d##*/} >/sys/bus/virtio/drivers/virtiofs/unbind
echo ${d##*/} >/sys/bus/virtio/drivers/virtiofs/bind
work second`
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	must(t, os.MkdirAll(at("folder"), 0o755))
	must(t, os.MkdirAll(at("control"), 0o755))
	must(t, os.WriteFile(at("folder/known"), []byte("a known file"), 0o644))
	server := serve(t, at("folder"), at("fs.sock"))
	listens(t, at("fs.sock"))

	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	p := start(t, nil, "--api-sock", at("api.sock"), "--metrics-path", at("metrics"))
	c := answers(t, at("api.sock"))
	args := "console=ttyS0 reboot=k panic=-1 quiet"
	must(t, c.PutBootSource(ctx, config.BootSource{KernelImagePath: vmmtest.Kernel(t), InitrdPath: vmmtest.Busybox(t, script), BootArgs: &args}))
	must(t, c.PutSerial(ctx, config.Serial{SerialOutPath: at("console")}))
	must(t, c.PutFilesystem(ctx, config.Filesystem{FSID: "shared", Tag: "shared", Socket: at("fs.sock")}))
	must(t, c.PutFilesystem(ctx, config.Filesystem{FSID: "control", Tag: "control", PathOnHost: at("control")}))
	must(t, c.Start(ctx))
	says := func(text string) {
		t.Helper()
		consoleHas(ctx, t, at("console"), text)
	}
	says("first: a known file")
	says("first: unmounted")
	if seen := openBelow(t, p.Process.Pid, at("folder")); len(seen) > 0 {
		t.Errorf("fc-vmm has %q open", seen)
	}
	must(t, server.Kill())
	says("lost")
	os.Remove(at("fs.sock"))
	serve(t, at("folder"), at("fs.sock"))
	listens(t, at("fs.sock"))
	must(t, os.WriteFile(at("control/go"), nil, 0o600))
	says("second: unmounted")
	if ws, out := p.end(t); ws.ExitStatus() != config.StatusPoweredOff {
		t.Errorf("ended with %v:\n%s", ws, out)
	}
	if b, err := os.ReadFile(at("folder/by-guest")); err != nil || string(b) != "second\n" {
		t.Errorf("the guest has written %q, %v", b, err)
	}
	if fi, err := os.Stat(at("folder/zeros")); err != nil || fi.Size() != 3000000 {
		t.Errorf("%v, %v", fi, err)
	}
	if b, err := os.ReadFile(at("metrics")); err != nil || !strings.Contains(string(b), `"vhost_user_fs_shared":{"activate_fails":0,"cfg_fails":0,"init_time_us":`) {
		t.Errorf("metrics: %v\n%s", err, b)
	}
}

// openBelow lists what a process has open in or below a folder.
func openBelow(t *testing.T, pid int, folder string) (paths []string) {
	t.Helper()
	fds := fmt.Sprintf("/proc/%d/fd", pid)
	entries, err := os.ReadDir(fds)
	must(t, err)
	for _, e := range entries {
		if path, err := os.Readlink(filepath.Join(fds, e.Name())); err == nil && strings.HasPrefix(path, folder) {
			paths = append(paths, path)
		}
	}
	return paths
}

// TestServesQEMU: QEMU's guests find a folder of fc-vmm fs's, too.
func TestServesQEMU(t *testing.T) {
	vmmtest.NeedKVM(t)
	program, err := exec.LookPath("qemu-system-x86_64")
	if err != nil {
		t.Skip(err)
	}
	const script = `exec >/dev/console 2>&1
mount -t virtiofs shared /mnt && echo "read: $(cat /mnt/known)"
head -c 3000000 /dev/zero >/mnt/zeros; umount /mnt && echo "unmounted"
d=$(ls /sys/bus/virtio/drivers/virtiofs | grep virtio)
echo $d >/sys/bus/virtio/drivers/virtiofs/unbind
echo $d >/sys/bus/virtio/drivers/virtiofs/bind
mount -t virtiofs shared /mnt && echo "again: $(cat /mnt/known)"`
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	must(t, os.Mkdir(at("folder"), 0o755))
	must(t, os.WriteFile(at("folder/known"), []byte("a known file"), 0o644))
	server := start(t, nil, "fs", "--shared-dir", at("folder"), "--socket-path", at("fs.sock"))
	listens(t, at("fs.sock"))
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	out, err := exec.CommandContext(ctx, program,
		"-M", "microvm,accel=kvm,acpi=on,pit=off,pic=off,rtc=off,x-option-roms=off,auto-kernel-cmdline=off,ioapic2=off", "-cpu", "host", "-m", "128M",
		"-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-global", "virtio-mmio.force-legacy=false", "-serial", "stdio",
		"-kernel", vmmtest.Kernel(t), "-initrd", vmmtest.Busybox(t, script), "-append", "console=ttyS0 reboot=t panic=-1 quiet",
		"-object", "memory-backend-memfd,id=mem,share=on,size=128M", "-machine", "memory-backend=mem",
		"-chardev", "socket,id=fs,path="+at("fs.sock"), "-device", "vhost-user-fs-device,chardev=fs,tag=shared").CombinedOutput()
	if err != nil {
		t.Errorf("QEMU: %v", err)
	}
	for _, want := range []string{"read: a known file", "unmounted", "again: a known file"} {
		if !strings.Contains(string(out), want) {
			t.Errorf("the guest did not say %q", want)
		}
	}
	if fi, err := os.Stat(at("folder/zeros")); err != nil || fi.Size() != 3000000 {
		t.Errorf("%v, %v", fi, err)
	}
	if t.Failed() {
		t.Logf("the guest said:\n%s\nthe server said:\n%s", out, server.out)
	}
}
