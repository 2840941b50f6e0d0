package vmm

import (
	"strconv"

	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/config"
	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/kvm"
)

// capabilities says how a CPU template changes what the host's KVM is checked for: what of the machine's own list is left unchecked, and
// what else there must be.
func capabilities(t *config.CPUConfig) (unchecked, required []kvm.Capability) {
	if t == nil {
		return nil, nil
	}
	for _, c := range t.KVMCapabilities {
		if c.Remove {
			unchecked = append(unchecked, kvm.Capability(c.Number))
		} else {
			required = append(required, kvm.Capability(c.Number))
		}
	}
	return unchecked, required
}

// checkCapabilities names the first of a template's that is missing.
func checkCapabilities(sys *kvm.System, required []kvm.Capability) error {
	for _, c := range required {
		n, err := sys.CheckExtension(c)
		if err != nil {
			return err
		}
		if n <= 0 {
			return &config.FieldError{Field: "cpu-config/kvm_capabilities", Value: strconv.Itoa(int(c)), Want: "a capability that this host's KVM has"}
		}
	}
	return nil
}
