package vmm

import (
	"errors"
	"fmt"
	"sync/atomic"

	"github.com/containerd/errdefs"

	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/kvm"
)

// Base is KVM's side of a machine as far as it does not depend on the description: an empty VM with its interrupt controllers and
// timer. It takes some milliseconds, and many on a busy host, nearly all of which KVM_CREATE_VM waits, for RCU: it starts a kernel thread
// and moves it to the caller's cgroups. There is something else to be done meanwhile.
//
// The first New that it is given to has it. A caller that gives it to none calls Close.
type Base struct {
	owned atomic.Bool
	made  chan struct{} // closed when the rest is set
	sys   *kvm.System
	vm    *kvm.VM // nil when the machine has it
	err   error
}

// Prepare begins to make a Base. Errors are New's to return. path is the KVM device; empty for /dev/kvm.
func Prepare(path string) *Base { return prepare(path, nil) }

// prepare is Prepare without the check for some of KVM's capabilities.
func prepare(path string, unchecked []kvm.Capability) *Base {
	b := &Base{made: make(chan struct{})}
	go func() {
		defer close(b.made)
		b.err = b.open(path, unchecked)
	}()
	return b
}

func (b *Base) open(path string, unchecked []kvm.Capability) (err error) {
	if b.sys, err = kvm.Open(path, unchecked...); err != nil {
		return fmt.Errorf("%w: %w", errdefs.ErrUnavailable, err)
	}
	if b.vm, err = b.sys.CreateVM(); err != nil {
		return fmt.Errorf("%w: %w: %w", errdefs.ErrUnavailable, kvm.ErrUnusable, err)
	}
	return createChips(b.vm)
}

// own gives the base to its first caller, and others one of their own, as if it were nil. So it does where less of KVM is to be checked for.
func (b *Base) own(path string, unchecked []kvm.Capability) *Base {
	if b != nil && b.owned.CompareAndSwap(false, true) {
		if len(unchecked) == 0 {
			return b
		}
		_ = b.release() // nothing that it could tell matters to the other
	}
	b = prepare(path, unchecked)
	b.owned.Store(true)
	return b
}

// wait waits until the base has been made, and gives its VM away. Only its owner calls it.
func (b *Base) wait() (sys *kvm.System, vm *kvm.VM, err error) {
	<-b.made
	vm, b.vm = b.vm, nil
	return b.sys, vm, b.err
}

// release closes all but what wait has given away. Only its owner calls it.
func (b *Base) release() error {
	<-b.made
	var errs []error
	if b.vm != nil {
		errs = append(errs, b.vm.Close())
	}
	if b.sys != nil {
		errs = append(errs, b.sys.Close())
	}
	return errors.Join(errs...)
}

// Close takes a base apart that no New has got.
func (b *Base) Close() error {
	if b.owned.CompareAndSwap(false, true) {
		return b.release()
	}
	return nil
}
