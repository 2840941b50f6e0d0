package vmm

import (
	"bufio"
	"bytes"
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/config"
	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/vmmtest"
)

// TestKernelHugePages boots a kernel on every kind of guest RAM, and asks the host which pages it has.
func TestKernelHugePages(t *testing.T) {
	vmmtest.NeedKVM(t)
	const pool = "/proc/sys/vm/nr_hugepages"
	was, err := os.ReadFile(pool)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(pool, []byte("32"), 0); err != nil {
		t.Skipf("no pool of huge pages: %v", err)
	}
	defer os.WriteFile(pool, was, 0)
	if got, err := os.ReadFile(pool); err != nil || len(bytes.TrimSpace(got)) < 2 || string(bytes.TrimSpace(got)) < "32" {
		t.Skipf("the host has no room for a pool of 32 huge pages: %s %v", got, err)
	}
	setting, err := os.ReadFile("/sys/kernel/mm/transparent_hugepage/enabled")
	if err != nil {
		t.Fatal(err)
	}
	always, never := bytes.Contains(setting, []byte("[always]")), bytes.Contains(setting, []byte("[never]"))
	for _, c := range []struct {
		pages                string
		transparent, hugeTLB bool
	}{
		{config.HugePagesNone, always, false},
		{config.HugePagesTransparent, !never, false},
		{config.HugePages2M, false, true},
	} {
		t.Run(c.pages, func(t *testing.T) {
			initrd := vmmtest.Busybox(t, "exec >/dev/console; echo up; read line </dev/console; reboot -f")
			_, out := startKernel(t, config.VM{
				Machine:    config.Machine{VCPUCount: 1, MemSizeMiB: 64, HugePages: c.pages},
				BootSource: bootSource(vmmtest.Kernel(t), initrd),
			})
			waitFor(t, func() bool { return strings.Contains(out.String(), "up") })
			ram := smaps(t, "guest-ram")
			if got := !strings.Contains(ram, "ShmemPmdMapped:        0 kB"); got != c.transparent {
				t.Errorf("transparent huge pages: %v, want %v", got, c.transparent)
			}
			if got := regexp.MustCompile(`KernelPageSize: +2048 kB`).MatchString(ram); got != c.hugeTLB {
				t.Errorf("pages of the pool: %v, want %v", got, c.hugeTLB)
			}
			if t.Failed() {
				t.Log(ram)
			}
		})
	}
	t.Run("none left", func(t *testing.T) {
		if err := os.WriteFile(pool, []byte("0"), 0); err != nil {
			t.Fatal(err)
		}
		_, err := New(t.Context(), config.VM{
			Machine:    config.Machine{VCPUCount: 1, MemSizeMiB: 64, HugePages: config.HugePages2M},
			BootSource: bootSource(vmmtest.Kernel(t), ""),
		}, Options{})
		if err == nil || !strings.Contains(err.Error(), "mem_size_mib 64 with huge_pages") || !strings.Contains(err.Error(), "nr_hugepages") {
			t.Errorf("%v: want it to name the field and the pool", err)
		}
	})
}

// smaps returns what the host says of this process's mapping whose name has part in it.
func smaps(t *testing.T, part string) string {
	t.Helper()
	data, err := os.ReadFile("/proc/self/smaps")
	if err != nil {
		t.Fatal(err)
	}
	var found strings.Builder
	in := false
	for lines := bufio.NewScanner(bytes.NewReader(data)); lines.Scan(); {
		if key, _, _ := strings.Cut(lines.Text(), ":"); strings.Contains(key, " ") {
			in = strings.Contains(lines.Text(), part)
		}
		if in {
			found.WriteString(lines.Text() + "\n")
		}
	}
	if found.Len() == 0 {
		t.Fatalf("no mapping is called %s", part)
	}
	return found.String()
}
