package fs_test

import (
	"bytes"
	"context"
	"debug/elf"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm"
	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/config"
	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/vmmtest"
)

// envKernel names the kernel that TestGuest boots; without it, the one that make built.
const envKernel = "FC_KERNEL"

// TestMain makes the test's program a guest's PID 1 too.
func TestMain(m *testing.M) {
	switch {
	case os.Getpid() == 1:
		guestMain()
	case len(os.Args) == 2 && os.Args[1] == guestChild:
		os.Exit(42)
	}
	os.Exit(m.Run())
}

// runGuest boots a real kernel with a share, which is served inside the VMM or not, has it work there, and returns the share's folder and the
// guest's report. The guest's part is guest_linux_test.go.
func runGuest(tb testing.TB, cmdline string, inside bool) (root string, report []string) {
	tb.Helper()
	vmmtest.NeedKVM(tb)
	kernel := os.Getenv(envKernel)
	if kernel == "" {
		kernel = "../../../../bin/vmlinux"
	}
	if _, err := os.Stat(kernel); err != nil {
		tb.Skip(err)
	}
	self, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		tb.Fatal(err)
	}
	if f, err := elf.NewFile(bytes.NewReader(self)); err != nil || f.Section(".interp") != nil {
		tb.Skip("needs a static test program: CGO_ENABLED=0")
	}
	dir := tb.TempDir()
	initrd, root := filepath.Join(dir, "initrd"), filepath.Join(dir, "root")
	mounted := filepath.Join(root, "mounted")
	for _, err := range []error{
		os.MkdirAll(mounted, 0o755),
		os.WriteFile(initrd, cpio(self), 0o600),
		os.WriteFile(filepath.Join(root, "program"), self, 0o755),
		os.WriteFile(filepath.Join(root, "live"), []byte("before"), 0o644),
		unix.Mount("tmpfs", mounted, "tmpfs", 0, ""),
	} {
		if err != nil {
			tb.Fatal(err)
		}
	}
	tb.Cleanup(func() { unix.Unmount(mounted, unix.MNT_DETACH) })

	args := "console=ttyS0 reboot=k panic=-1 quiet " + cmdline
	share := config.Filesystem{FSID: "shared", Tag: guestTag, PathOnHost: root}
	if !inside {
		share.PathOnHost, share.Socket = "", serve(tb, newDevice(tb, root, false))
	}
	var console bytes.Buffer
	m, err := vmm.New(context.Background(), config.VM{
		Machine:     config.Machine{VCPUCount: 1, MemSizeMiB: 256},
		BootSource:  &config.BootSource{KernelImagePath: kernel, InitrdPath: initrd, BootArgs: &args},
		Filesystems: []config.Filesystem{share},
	}, vmm.Options{Console: &console})
	if err != nil {
		tb.Fatal(err)
	}
	defer m.Close()
	if err := m.Start(context.Background()); err != nil {
		tb.Fatal(err)
	}
	go changeLive(root, m.Done())
	select {
	case <-m.Done():
	case <-time.After(5 * time.Minute):
		tb.Error("the guest did not end within 5 minutes")
	}
	m.Close()
	b, _ := os.ReadFile(filepath.Join(root, "report"))
	if !strings.HasSuffix(string(b), "done\n") {
		tb.Errorf("no full report; console:\n%s", console.String())
	}
	return root, strings.Split(strings.TrimSpace(string(b)), "\n")
}

// TestGuest has a real kernel mount a folder and work in it.
func TestGuest(t *testing.T) {
	t.Run("inside", func(t *testing.T) { testGuest(t, true) })
	t.Run("vhost-user", func(t *testing.T) { testGuest(t, false) })
}

func testGuest(t *testing.T, inside bool) {
	root, report := runGuest(t, "", inside)
	for _, line := range report {
		t.Log(line)
		if strings.HasPrefix(line, "FAIL") {
			t.Fail()
		}
	}
	if t.Failed() {
		return
	}
	// What the guest left behind, with the host's eyes.
	var st unix.Stat_t
	if err := unix.Lstat(filepath.Join(root, "left", "by-user"), &st); err != nil || st.Uid != 1000 || st.Gid != 1001 || st.Mode != unix.S_IFREG|0o640 {
		t.Errorf("owner %d:%d, mode %o, %v", st.Uid, st.Gid, st.Mode, err)
	}
	if b, err := os.ReadFile(filepath.Join(root, "left", "mapped")); err != nil || !bytes.HasPrefix(b, []byte("mapped")) {
		t.Errorf("%.10q, %v", b, err)
	}
	if b, err := os.ReadFile(filepath.Join(root, "mounted", "here")); err != nil || string(b) != "here" {
		t.Errorf("%q, %v", b, err)
	}
}

// BenchmarkGuest gives the times of requests as a guest sees them. It boots once, whatever b.N.
func BenchmarkGuest(b *testing.B) {
	_, report := runGuest(b, guestTimesArg, true)
	for _, line := range report {
		var what string
		var ns float64
		if n, _ := fmt.Sscanf(line, "time %s %f", &what, &ns); n == 2 {
			b.ReportMetric(ns, what+"-ns")
		}
	}
}

// changeLive rewrites a file in place when the guest has read it.
func changeLive(root string, done <-chan struct{}) {
	for {
		select {
		case <-done:
			return
		case <-time.After(10 * time.Millisecond):
		}
		if _, err := os.Stat(filepath.Join(root, "live-read")); err == nil {
			os.WriteFile(filepath.Join(root, "live"), []byte("after!"), 0o644)
			return
		}
	}
}

// cpio is an initrd (newc) of one program.
func cpio(init []byte) []byte {
	var b bytes.Buffer
	add := func(name string, mode, major, minor int, data []byte) {
		fmt.Fprintf(&b, "070701%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%s\x00",
			0, mode, 0, 0, 1, 0, len(data), 0, 0, major, minor, len(name)+1, 0, name)
		b.Write(make([]byte, -b.Len()&3))
		b.Write(data)
		b.Write(make([]byte, -b.Len()&3))
	}
	for _, dir := range []string{"dev", "proc", "mnt"} {
		add(dir, unix.S_IFDIR|0o755, 0, 0, nil)
	}
	add("dev/console", unix.S_IFCHR|0o600, 5, 1, nil)
	add("init", unix.S_IFREG|0o755, 0, 0, init)
	add("TRAILER!!!", 0, 0, 0, nil)
	return b.Bytes()
}
