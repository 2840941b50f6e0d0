// Package kvm is Linux' KVM API (Documentation/virt/kvm/api.rst) as Go types: file descriptors, ioctls and structures.
//
// It holds no policy: it does not decide what a machine looks like, it does not log, it never retries an operation that
// may have had an effect, and it must not know of any device. Every error names the ioctl that failed.
package kvm

import (
	"errors"
	"fmt"
	"os"
	"slices"

	"golang.org/x/sys/unix"
)

// APIVersion is the only KVM API version there is (KVM API 4.1).
const APIVersion = 12

// Capability is an extension number for CheckExtension (KVM API 4.4).
type Capability uintptr

// Capabilities that a machine of any architecture needs, or asks about.
const (
	CapIrqchip       Capability = 0
	CapUserMemory    Capability = 3
	CapNrVCPUs       Capability = 9
	CapIoeventfd     Capability = 36
	CapMaxVCPUs      Capability = 66
	CapImmediateExit Capability = 136
)

// ErrUnusable says that KVM is there and cannot be used for this project's machines.
var ErrUnusable = errors.New("KVM is not usable")

// System is an open /dev/kvm.
type System struct {
	f *os.File
}

// Open opens /dev/kvm and checks the API's version and the capabilities that every machine uses, those in unchecked excepted.
// path is "/dev/kvm" when empty. Errors wrap ErrUnusable.
func Open(path string, unchecked ...Capability) (*System, error) {
	if path == "" {
		path = "/dev/kvm"
	}
	// Not os.OpenFile: it would try to register the node with the poller.
	fd, err := unix.Open(path, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("%w: open %s: %w", ErrUnusable, path, err)
	}
	s := &System{f: os.NewFile(uintptr(fd), path)}
	v, err := ioctl(fd, "KVM_GET_API_VERSION", kvmGetAPIVersion, 0)
	if err == nil && v != APIVersion {
		err = fmt.Errorf("KVM_GET_API_VERSION: got %d, want %d", v, APIVersion)
	}
	if err == nil {
		err = checkRequired(s.CheckExtension, unchecked)
	}
	if err != nil {
		s.Close()
		return nil, fmt.Errorf("%w: %s: %w", ErrUnusable, path, err)
	}
	return s, nil
}

// checkRequired names the first capability that is missing.
func checkRequired(check func(Capability) (int, error), unchecked []Capability) error {
	for _, r := range required {
		if slices.Contains(unchecked, r.cap) {
			continue
		}
		n, err := check(r.cap)
		if err == nil && n <= 0 {
			err = errors.New("missing, so this kernel is too old or built without it")
		}
		if err != nil {
			return fmt.Errorf("%s: %w", r.name, err)
		}
	}
	return nil
}

// Close closes /dev/kvm. VMs made from it live on.
func (s *System) Close() error { return s.f.Close() }

// CheckExtension gives the value of a capability; 0 is "not there" (KVM API 4.4).
func (s *System) CheckExtension(c Capability) (int, error) {
	v, err := ioctl(int(s.f.Fd()), "KVM_CHECK_EXTENSION", kvmCheckExtension, uintptr(c))
	return int(v), err
}

// MaxVCPUs is the largest number of vCPUs that a VM may have here (KVM API 4.7).
func (s *System) MaxVCPUs() (int, error) {
	for _, c := range []Capability{CapMaxVCPUs, CapNrVCPUs} {
		n, err := s.CheckExtension(c)
		if err != nil {
			return 0, err
		}
		if n > 0 {
			return n, nil
		}
	}
	return 4, nil // what the API says to assume
}

// CreateVM makes an empty VM (KVM API 4.2).
func (s *System) CreateVM() (*VM, error) {
	size, err := ioctl(int(s.f.Fd()), "KVM_GET_VCPU_MMAP_SIZE", kvmGetVCPUMmapSize, 0)
	if err != nil {
		return nil, err
	}
	if size < runMinSize {
		return nil, fmt.Errorf("KVM_GET_VCPU_MMAP_SIZE: %d bytes: want at least %d", size, runMinSize)
	}
	for {
		fd, err := ioctl(int(s.f.Fd()), "KVM_CREATE_VM", kvmCreateVM, 0)
		if errors.Is(err, unix.EINTR) {
			continue // the kernel gives up on any signal, the runtime's preemption signal included, before it made anything
		}
		if err != nil {
			return nil, err
		}
		return &VM{fd: int(fd), runSize: int(size)}, nil
	}
}
