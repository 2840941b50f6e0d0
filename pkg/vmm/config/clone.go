package config

import "slices"

// Clone is a copy that shares nothing with vm: what changes in one does not change in the other.
func (vm *VM) Clone() VM {
	c := *vm
	c.Drives = slices.Clone(vm.Drives)
	c.Filesystems = slices.Clone(vm.Filesystems)
	c.NetworkInterfaces = slices.Clone(vm.NetworkInterfaces)
	for i := range c.Drives {
		c.Drives[i].RateLimiter = c.Drives[i].RateLimiter.clone()
	}
	for i := range c.NetworkInterfaces {
		n := &c.NetworkInterfaces[i]
		n.RxRateLimiter, n.TxRateLimiter = n.RxRateLimiter.clone(), n.TxRateLimiter.clone()
	}
	c.CPUConfig = vm.CPUConfig.clone()
	c.BootSource = clone(vm.BootSource)
	if c.BootSource != nil {
		c.BootSource.BootArgs = clone(vm.BootSource.BootArgs)
	}
	c.Vsock, c.Entropy, c.Serial = clone(vm.Vsock), clone(vm.Entropy), clone(vm.Serial)
	if c.MMDS = clone(vm.MMDS); c.MMDS != nil {
		c.MMDS.NetworkInterfaces = slices.Clone(vm.MMDS.NetworkInterfaces)
	}
	c.Balloon = clone(vm.Balloon)
	if c.Entropy != nil {
		c.Entropy.RateLimiter = c.Entropy.RateLimiter.clone()
	}
	if c.Serial != nil {
		c.Serial.RateLimiter = clone(vm.Serial.RateLimiter)
	}
	return c
}

func clone[T any](p *T) *T {
	if p == nil {
		return nil
	}
	c := *p
	return &c
}
