package vmmtest

import (
	"bytes"
	"debug/elf"
	"fmt"
	"os"
	"path/filepath"
	"testing"
)

// Kernel is the project's guest kernel: $FC_KERNEL, or bin/vmlinux at the top of the tree. The test is skipped without it.
func Kernel(tb testing.TB) string {
	tb.Helper()
	if p := os.Getenv("FC_KERNEL"); p != "" {
		return p
	}
	return find(tb, "the guest kernel (make kernel)", "bin/vmlinux")
}

// DebianKernel is Debian's kernel for clouds, a bzImage: $FC_DEBIAN_KERNEL, or the one that the KVM test machine boots, or an
// installed one. The test is skipped without it.
func DebianKernel(tb testing.TB) string {
	tb.Helper()
	if p := os.Getenv("FC_DEBIAN_KERNEL"); p != "" {
		return p
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		cache = "/nonexistent"
	}
	return find(tb, "Debian's cloud kernel", cache+"/fcshim/machine/kernel/boot/vmlinuz-*-cloud-amd64", "/boot/vmlinuz-*-cloud-amd64")
}

// find gives the first file that matches a pattern; relative ones count from the top of the source tree.
func find(tb testing.TB, what string, patterns ...string) string {
	tb.Helper()
	top, err := os.Getwd()
	if err != nil {
		tb.Fatal(err)
	}
	for top != "/" {
		if _, err := os.Stat(filepath.Join(top, "go.mod")); err == nil {
			break
		}
		top = filepath.Dir(top)
	}
	for _, p := range patterns {
		if !filepath.IsAbs(p) {
			p = filepath.Join(top, p)
		}
		if l, _ := filepath.Glob(p); len(l) > 0 {
			return l[0]
		}
	}
	tb.Skipf("needs %s: %v", what, patterns)
	return ""
}

// Busybox makes an initrd of a static busybox whose PID 1 mounts /dev, /proc and /sys and runs script, a shell script. Its
// output goes to the kernel's log unless it goes elsewhere. The test is skipped without /bin/busybox.
func Busybox(tb testing.TB, script string) string {
	tb.Helper()
	busybox, err := os.ReadFile("/bin/busybox")
	if err != nil {
		tb.Skipf("needs busybox-static: %v", err)
	}
	init := `#!/bin/busybox sh
/bin/busybox --install -s /bin
export PATH=/bin
mount -t devtmpfs dev /dev; mount -t proc proc /proc; mount -t sysfs sys /sys
exec </dev/null >/dev/kmsg 2>&1
` + script + "\npoweroff -f\n"
	path := filepath.Join(tb.TempDir(), "initrd")
	if err := os.WriteFile(path, archive([]entry{
		{"bin", 0o40755, nil}, {"dev", 0o40755, nil}, {"proc", 0o40755, nil}, {"sys", 0o40755, nil}, {"mnt", 0o40755, nil},
		{"bin/busybox", 0o100755, busybox}, {"init", 0o100755, []byte(init)},
	}), 0o600); err != nil {
		tb.Fatal(err)
	}
	return path
}

// Self makes an initrd whose PID 1 is the test's own program, which must be static: the test is skipped if it is not.
func Self(tb testing.TB) string {
	tb.Helper()
	self, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		tb.Fatal(err)
	}
	if f, err := elf.NewFile(bytes.NewReader(self)); err != nil || f.Section(".interp") != nil {
		tb.Skip("needs a static test program: CGO_ENABLED=0")
	}
	path := filepath.Join(tb.TempDir(), "initrd")
	if err := os.WriteFile(path, archive([]entry{
		{"dev", 0o40755, nil}, {"proc", 0o40755, nil}, {"sys", 0o40755, nil}, {"init", 0o100755, self},
	}), 0o600); err != nil {
		tb.Fatal(err)
	}
	return path
}

type entry struct {
	name string
	mode uint32
	data []byte
}

// archive is a cpio archive in the "newc" form (Documentation/driver-api/early-userspace/buffer-format.rst).
func archive(entries []entry) []byte {
	var b bytes.Buffer
	for i, e := range append(entries, entry{name: "TRAILER!!!"}) {
		fmt.Fprintf(&b, "070701%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%s\x00",
			i+1, e.mode, 0, 0, 1, 0, len(e.data), 0, 0, 0, 0, len(e.name)+1, 0, e.name)
		b.Write(make([]byte, -b.Len()&3))
		b.Write(e.data)
		b.Write(make([]byte, -b.Len()&3))
	}
	return b.Bytes()
}
