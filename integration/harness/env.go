// Package harness runs a containerd of its own and drives it as users do, through ctr and through containerd's Go client, and
// finds out what a test has left behind on the machine.
//
// It must never touch a containerd, a container or a file that it did not start or make itself.
package harness

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// Environment variables that the harness reads.
const (
	// EnvRuntime names the runtime under test. With RuncRuntime the tests try themselves: what they claim of every runtime
	// must hold for runc.
	EnvRuntime = "FC_RUNTIME"
	// EnvBinDir is the folder that `make build` and, in tools/, `make tools` fill; without it, bin here or a folder above.
	EnvBinDir = "FC_BIN_DIR"
	// EnvRequireKVM, when it is 1, makes a test fail where it would be skipped for want of KVM or of programs.
	EnvRequireKVM = "FC_REQUIRE_KVM"
	// EnvSlow is how many times slower than usual this machine is, for example because others use it, too.
	EnvSlow = "FC_SLOW"
	// EnvConsole, when it is 1, gives every guest a console, whose log is shown when a test fails.
	EnvConsole = "FC_CONSOLE"
	// EnvScratch is a folder on a file system that can hold overlayfs' upper layers; kvmhost sets it.
	EnvScratch = "FC_SCRATCH"
)

// The runtimes' names.
const (
	FCRuntime   = "io.containerd.fc.v2"
	RuncRuntime = "io.containerd.runc.v2"
)

// ErrNoKVM says that this machine has no KVM that can run an unmodified guest.
var ErrNoKVM = errors.New("no usable KVM")

// Env is what the tests find on the machine.
type Env struct {
	// Bin holds the product's programs and the guest's kernel and image; Tools holds containerd and ctr.
	Bin, Tools string
	// Runtime is the runtime under test.
	Runtime string
}

// FC tells whether the runtime under test is this project's.
func (e Env) FC() bool { return e.Runtime == FCRuntime }

// Need returns what the tests need, or skips t with the reason; with EnvRequireKVM set to 1 it fails t instead.
func Need(t testing.TB) Env {
	t.Helper()
	e, err := find()
	if err == nil {
		return e
	}
	if os.Getenv(EnvRequireKVM) == "1" {
		t.Fatal(err)
	}
	t.Skip(err)
	return Env{}
}

func find() (Env, error) {
	e := Env{Runtime: os.Getenv(EnvRuntime)}
	if e.Runtime == "" {
		e.Runtime = FCRuntime
	}
	if os.Geteuid() != 0 {
		return e, errors.New("containerd needs root")
	}
	if e.FC() {
		if err := UsableKVM(); err != nil {
			return e, err
		}
	}
	dirs := []string{os.Getenv(EnvBinDir)}
	if dirs[0] == "" {
		dirs = []string{"bin", "../bin", "../../bin"}
	}
	for _, dir := range dirs {
		abs, err := filepath.Abs(dir)
		if err != nil {
			return e, err
		}
		if _, err := os.Stat(filepath.Join(abs, "tools", "ctr")); err == nil {
			e.Bin, e.Tools = abs, filepath.Join(abs, "tools")
			return e, nil
		}
	}
	return e, fmt.Errorf("no tools/ctr in %s (run make build tools, or set %s)", strings.Join(dirs, ", "), EnvBinDir)
}

// Slow stretches a time limit as EnvSlow says. The limits of the tests suit a nested machine on two CPUs of its own.
func Slow(limit time.Duration) time.Duration {
	times, err := strconv.Atoi(os.Getenv(EnvSlow))
	if err != nil || times < 1 {
		return limit
	}
	return limit * time.Duration(times)
}

// UsableKVM returns nil if /dev/kvm makes virtual machines that run an unmodified guest. A device node alone proves nothing:
// on some paravirtualised hosts it exists and only runs kernels built for it; the CPU's flags tell.
func UsableKVM() error {
	cpuinfo, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		return err
	}
	if !hasVirtualisation(string(cpuinfo)) {
		return fmt.Errorf("%w: the CPU offers neither svm nor vmx (run the tests through integration/kvmhost)", ErrNoKVM)
	}
	fd, err := unix.Open("/dev/kvm", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("%w: open /dev/kvm: %w", ErrNoKVM, err)
	}
	defer unix.Close(fd)
	vm, err := unix.IoctlRetInt(fd, kvmCreateVM)
	for err == unix.EINTR { // Go's own signals interrupt it
		vm, err = unix.IoctlRetInt(fd, kvmCreateVM)
	}
	if err != nil {
		return fmt.Errorf("%w: KVM_CREATE_VM: %w", ErrNoKVM, err)
	}
	return unix.Close(vm)
}

// kvmCreateVM is KVM_CREATE_VM (KVM API §4.2), whose argument 0 asks for the default type of machine.
const kvmCreateVM = 0xae01

func hasVirtualisation(cpuinfo string) bool {
	for line := range strings.Lines(cpuinfo) {
		name, flags, _ := strings.Cut(line, ":")
		if strings.TrimSpace(name) != "flags" {
			continue
		}
		for flag := range strings.FieldsSeq(flags) {
			if flag == "svm" || flag == "vmx" {
				return true
			}
		}
		return false
	}
	return false
}
