package vmm

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/config"
	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/kvm"
	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/vmmtest"
)

// TestBase: a base is the first machine's, a second one gets its own, one that fails or that nobody takes leaves nothing behind.
func TestBase(t *testing.T) {
	vmmtest.NeedKVM(t)
	before := openFiles(t)
	source := &config.BootSource{KernelImagePath: vmmtest.Kernel(t)}
	base := Prepare("")
	<-base.made
	vm := base.vm // the machine takes it away
	for _, name := range []string{"first", "second"} {
		m, err := New(t.Context(), config.VM{BootSource: source}, Options{Base: base})
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if got := m.vm == vm; got != (name == "first") {
			t.Errorf("%s: it is the base's VM: %v", name, got)
		}
		if err := m.Close(); err != nil {
			t.Error(err)
		}
	}
	if err := base.Close(); err != nil {
		t.Errorf("a base that was taken: %v", err)
	}
	base = Prepare("")
	<-base.made
	vm = base.vm
	less := &config.CPUConfig{KVMCapabilities: []config.KVMCapability{{Number: uint32(kvm.CapPIT2), Remove: true}}}
	m, err := New(t.Context(), config.VM{BootSource: source, CPUConfig: less}, Options{Base: base})
	if err != nil {
		t.Fatal(err)
	}
	if m.vm == vm {
		t.Error("a machine that less of KVM is to be checked for has a base that was checked for all")
	}
	if err := errors.Join(m.Close(), base.Close()); err != nil {
		t.Error(err)
	}
	if err := Prepare("").Close(); err != nil {
		t.Errorf("a base that was not taken: %v", err)
	}
	if _, err := New(t.Context(), config.VM{BootSource: &config.BootSource{KernelImagePath: "/dev/null"}}, Options{Base: Prepare("")}); err == nil {
		t.Error("no error for a kernel that is none")
	}
	if after := openFiles(t); after > before {
		t.Errorf("%d files are open, %d were", after, before)
	}
}

func TestBaseWithoutKVM(t *testing.T) {
	kernel := filepath.Join(t.TempDir(), "kernel")
	if err := os.WriteFile(kernel, vmmtest.ELF(halt), 0o600); err != nil {
		t.Fatal(err)
	}
	base := Prepare(t.TempDir() + "/kvm")
	if _, err := New(t.Context(), config.VM{BootSource: &config.BootSource{KernelImagePath: kernel}}, Options{Base: base}); !errors.Is(err, kvm.ErrUnusable) {
		t.Errorf("%v, want %v", err, kvm.ErrUnusable)
	}
	if err := base.Close(); err != nil {
		t.Error(err)
	}
}

func openFiles(t *testing.T) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}
