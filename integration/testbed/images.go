package main

import (
	"bytes"
	"compress/gzip"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// images is what the nested machine boots from.
type images struct {
	kernel  string // bzImage
	modules string // folder that goes to /lib/modules
	initrd  string
}

// initrdModules are the modules without which the machine cannot reach its root and its output.
var initrdModules = [...]string{"virtio_pci", "virtio_blk", "virtio_console", "virtiofs", "overlay", "ext4"}

// initrdInit puts the root together and goes on to the run's own script.
const initrdInit = `#!/bin/busybox sh
B=/bin/busybox
$B mount -t devtmpfs dev /dev; $B mount -t proc proc /proc
for m in $($B cat /m/order); do $B insmod /m/$m; done
$B mount -t virtiofs -o ro root /host || $B poweroff -f
$B mount -t tmpfs -o size=75% tmpfs /rw; $B mkdir /rw/u /rw/w
$B mount -t overlay -o lowerdir=/host,upperdir=/rw/u,workdir=/rw/w overlay /new
run=$($B sed 's/.*kvmhost.run=\([^ ]*\).*/\1/' /proc/cmdline)
exec $B switch_root /new /bin/sh "$run"
`

// prepareImages downloads Debian's kernel for virtual machines once and makes an initrd for it.
func prepareImages(ctx context.Context, cache string) (images, error) {
	dir := filepath.Join(cache, "machine")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return images{}, err
	}
	lock, err := lockPath(dir, unix.LOCK_EX)
	if err != nil {
		return images{}, err
	}
	defer lock.Close()
	kdir := filepath.Join(dir, "kernel")
	if _, err := os.Stat(kdir); err != nil {
		say("getting Debian's kernel for the nested machine")
		if err := downloadKernel(ctx, dir, kdir); err != nil {
			return images{}, err
		}
	}
	kernels, _ := filepath.Glob(filepath.Join(kdir, "boot", "vmlinuz-*"))
	if len(kernels) != 1 {
		return images{}, fmt.Errorf("%s holds %d kernels, expected 1: remove the folder and try again", kdir, len(kernels))
	}
	img := images{kernel: kernels[0], modules: filepath.Join(kdir, "lib", "modules"), initrd: filepath.Join(dir, "initrd.gz")}
	_, release, _ := strings.Cut(filepath.Base(img.kernel), "-")
	want, err := makeInitrd(filepath.Join(img.modules, release))
	if err != nil {
		return images{}, err
	}
	if have, err := os.ReadFile(img.initrd); err == nil && bytes.Equal(have, want) {
		return img, nil
	}
	return img, writeFile(img.initrd, want)
}

// writeFile replaces path at one stroke: another machine may be starting from it.
func writeFile(path string, data []byte) error {
	tmp := path + ".new"
	if err := os.WriteFile(tmp, data, 0o644); err != nil {
		return err
	}
	return os.Rename(tmp, path)
}

// downloadKernel unpacks the package behind linux-image-cloud-amd64 into kdir.
func downloadKernel(ctx context.Context, dir, kdir string) error {
	out, err := exec.CommandContext(ctx, "apt-cache", "depends", "--important", "linux-image-cloud-amd64").Output()
	if err != nil {
		return fmt.Errorf("apt-cache depends linux-image-cloud-amd64: %w", err)
	}
	_, rest, ok := strings.Cut(string(out), "Depends: ")
	pkg, _, _ := strings.Cut(rest, "\n")
	if !ok {
		return fmt.Errorf("linux-image-cloud-amd64 depends on no kernel (apt-get update first?)")
	}
	tmp, err := os.MkdirTemp(dir, "download-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(tmp)
	get := exec.CommandContext(ctx, "apt-get", "-q", "-o", "APT::Sandbox::User=root", "download", pkg)
	get.Dir = tmp
	if out, err := get.CombinedOutput(); err != nil {
		return fmt.Errorf("apt-get download %s: %w: %s", pkg, err, out)
	}
	debs, _ := filepath.Glob(filepath.Join(tmp, "*.deb"))
	if len(debs) != 1 {
		return fmt.Errorf("apt-get download %s left %d packages", pkg, len(debs))
	}
	root := filepath.Join(tmp, "root")
	if err := command(ctx, "dpkg", "-x", debs[0], root); err != nil {
		return err
	}
	release := strings.TrimPrefix(pkg, "linux-image-")
	if err := command(ctx, "depmod", "-b", root, release); err != nil {
		return err
	}
	return os.Rename(root, kdir)
}

// makeInitrd gives busybox, the modules in the order of their needs, and init.
func makeInitrd(modules string) ([]byte, error) {
	var buf bytes.Buffer
	z := gzip.NewWriter(&buf)
	w := &cpio{w: z}
	for _, d := range []string{"bin", "m", "proc", "dev", "host", "rw", "new"} {
		w.add(d, cpioDir, nil)
	}
	busybox, err := os.ReadFile("/bin/busybox")
	if err != nil {
		return nil, fmt.Errorf("busybox-static is needed: %w", err)
	}
	w.add("bin/busybox", cpioExec, busybox)
	w.add("init", cpioExec, []byte(initrdInit))
	order, err := moduleOrder(filepath.Join(modules, "modules.dep"), initrdModules[:])
	if err != nil {
		return nil, err
	}
	var names []string
	for _, p := range order {
		data, err := os.ReadFile(filepath.Join(modules, p))
		if err != nil {
			return nil, err
		}
		names = append(names, filepath.Base(p))
		w.add("m/"+filepath.Base(p), cpioExec, data)
	}
	w.add("m/order", cpioExec, []byte(strings.Join(names, "\n")))
	w.add("TRAILER!!!", 0, nil)
	if w.err != nil {
		return nil, w.err
	}
	if err := z.Close(); err != nil {
		return nil, err
	}
	return buf.Bytes(), nil
}

// moduleOrder gives the files of the modules and all that they need, needs first. modules.dep lists needs in reverse.
func moduleOrder(depFile string, names []string) ([]string, error) {
	text, err := os.ReadFile(depFile)
	if err != nil {
		return nil, err
	}
	byName := map[string][]string{}
	for line := range strings.Lines(string(text)) {
		file, needs, _ := strings.Cut(line, ":")
		name := strings.ReplaceAll(strings.TrimSuffix(filepath.Base(file), ".ko"), "-", "_")
		byName[name] = append([]string{file}, strings.Fields(needs)...)
	}
	var order []string
	seen := map[string]bool{}
	for _, n := range names {
		files := byName[n] // absent: built into the kernel
		for i := len(files) - 1; i >= 0; i-- {
			if !seen[files[i]] {
				seen[files[i]] = true
				order = append(order, files[i])
			}
		}
	}
	return order, nil
}
