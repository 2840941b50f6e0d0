package shim

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/containerd/errdefs"

	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/config"
)

// size is what a VM gets.
type size struct {
	VCPUs     int
	MemoryMiB int
}

// kvmProbe says how many vCPUs KVM allows a VM here, or why there is no KVM.
type kvmProbe func() (maxVCPUs int, err error)

// checkHost tells before anything is created whether a VM of this size can be built here. Its errors say in one line what
// is wrong and what would mend it.
func (s *Settings) checkHost(sz size, kvm kvmProbe) error {
	if err := checkVMM(s.VMM); err != nil {
		return fmt.Errorf("vmm %s: %w (set vmm in fc.toml, or put fc-vmm beside the shim): %w", s.VMM, err, errdefs.ErrFailedPrecondition)
	}
	if err := checkKernel(s.Kernel); err != nil {
		return fmt.Errorf("kernel %s: %w (set kernel in fc.toml, or build one with make kernel): %w", s.Kernel, err, errdefs.ErrFailedPrecondition)
	}
	if err := checkImage(s.Image); err != nil {
		return fmt.Errorf("image %s: %w (set image in fc.toml, or build one with make build): %w", s.Image, err, errdefs.ErrFailedPrecondition)
	}
	if sz.MemoryMiB < config.MinMemMiB {
		return fmt.Errorf("%d MiB of memory: a VM needs at least %d: %w", sz.MemoryMiB, config.MinMemMiB, errdefs.ErrInvalidArgument)
	}
	limit, err := kvm()
	if err != nil {
		return fmt.Errorf("KVM cannot be used: %w: %w", err, errdefs.ErrFailedPrecondition)
	}
	limit = min(limit, config.MaxVCPUs)
	if sz.VCPUs < 1 || sz.VCPUs > limit {
		return fmt.Errorf("%d vCPUs asked for: a VM can have 1 to %d here: %w", sz.VCPUs, limit, errdefs.ErrInvalidArgument)
	}
	return nil
}

func checkVMM(path string) error {
	fi, err := os.Stat(path)
	switch {
	case err != nil:
		return reason(err)
	case !fi.Mode().IsRegular() || fi.Mode()&0o111 == 0:
		return errors.New("not an executable file")
	}
	return nil
}

// checkKernel looks for an ELF header, or for the boot protocol's "HdrS" that a bzImage has at 0x202.
func checkKernel(path string) error {
	head, err := readAt(path, 0, 0x206)
	switch {
	case err != nil:
		return err
	case bytes.HasPrefix(head, []byte("\x7fELF")), len(head) == 0x206 && string(head[0x202:]) == "HdrS":
		return nil
	}
	return errors.New("neither an ELF kernel nor a bzImage")
}

// checkImage looks for the magic number of erofs, 0xE0F5E1E2 at byte 1024.
func checkImage(path string) error {
	magic, err := readAt(path, 1024, 4)
	switch {
	case err != nil:
		return err
	case len(magic) < 4 || binary.LittleEndian.Uint32(magic) != 0xE0F5E1E2:
		return errors.New("not an erofs image")
	}
	return nil
}

// readAt reads at most n bytes of the regular file or block device at path.
func readAt(path string, off int64, n int) ([]byte, error) {
	fi, err := os.Stat(path)
	if err != nil {
		return nil, reason(err)
	}
	if t := fi.Mode().Type(); t != 0 && t&os.ModeDevice == 0 {
		return nil, errors.New("not a file")
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, reason(err)
	}
	defer f.Close()
	buf := make([]byte, n)
	got, err := f.ReadAt(buf, off)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, reason(err)
	}
	return buf[:got], nil
}

// reason is a file error without the path, which the caller's message has already.
func reason(err error) error {
	var pe *os.PathError
	if errors.As(err, &pe) {
		return pe.Err
	}
	return err
}
