package kvm

import (
	"errors"
	"fmt"
)

// Errors of MSRs and SetMSRs, which name the register.
var (
	// ErrNoMSR says that KVM does not have a model-specific register, or not on this host.
	ErrNoMSR = errors.New("this host's KVM has no such register")
	// ErrMSRValue says that KVM refuses a value, or has no such register.
	ErrMSRValue = errors.New("this host's KVM refuses it")
)

// MSR is struct kvm_msr_entry.
type MSR struct {
	Index uint32
	_     uint32
	Data  uint64
}

// maxMSRs is how many registers one call reads or writes; longer lists take several.
const maxMSRs = 64

// msrList is struct kvm_msrs with room for maxMSRs.
type msrList struct {
	N, _    uint32
	Entries [maxMSRs]MSR
}

// MSRs reads the data of the registers whose indices are given (KVM API 4.18, KVM_GET_MSRS). CPUID must have been set: what some
// of them say depends on it. An error names the first register that KVM does not have, and wraps ErrNoMSR.
func (v *VCPU) MSRs(msrs []MSR) error {
	return inBatches(msrs, func(l *msrList, batch []MSR) error {
		n, err := ioctlPtrValue(v.fd, "KVM_GET_MSRS", kvmGetMSRs, l)
		if err == nil && int(n) < len(batch) {
			err = fmt.Errorf("KVM_GET_MSRS: MSR %#x: %w", batch[n].Index, ErrNoMSR)
		}
		copy(batch, l.Entries[:])
		return err
	})
}

// SetMSRs writes model-specific registers in order (KVM API 4.19). An error names the first that KVM refuses, and wraps ErrMSRValue; those
// before it are written by then.
func (v *VCPU) SetMSRs(msrs []MSR) error {
	return inBatches(msrs, func(l *msrList, batch []MSR) error {
		n, err := ioctlPtrValue(v.fd, "KVM_SET_MSRS", kvmSetMSRs, l)
		if err == nil && int(n) < len(batch) {
			err = fmt.Errorf("KVM_SET_MSRS: MSR %#x = %#x: %w", batch[n].Index, batch[n].Data, ErrMSRValue)
		}
		return err
	})
}

// inBatches calls f for maxMSRs registers at a time, which are copied into the list that f is given.
func inBatches(msrs []MSR, f func(l *msrList, batch []MSR) error) error {
	var l msrList
	for len(msrs) > 0 {
		batch := msrs[:min(len(msrs), maxMSRs)]
		l.N = uint32(copy(l.Entries[:], batch))
		if err := f(&l, batch); err != nil {
			return err
		}
		msrs = msrs[len(batch):]
	}
	return nil
}
