package api

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"

	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/config"
)

// Firecracker's words for a request that comes too early or too late.
const (
	afterStart  = "The requested operation is not supported after starting the microVM."
	beforeStart = "The requested operation is not supported before starting the microVM."
	noKernel    = "Cannot start microvm without kernel configuration."
)

// control holds the machine's description and, after the start, the machine. Requests that change something take turns;
// questions are answered at once, also while a change is under way.
type control struct {
	boot func(context.Context, config.VM) (Machine, error)
	// described is called once, when the first piece of a description has come.
	described func()
	// turn is held by the request that is changing something.
	turn chan struct{}

	mu sync.Mutex
	// vm is replaced, never changed in place, so that a copy of it can be used without mu.
	vm      config.VM
	machine Machine // set once, by the start
}

func newControl(o Options) *control {
	c := &control{boot: o.Boot, described: func() {}, turn: make(chan struct{}, 1)}
	if o.Described != nil {
		c.described = sync.OnceFunc(o.Described)
	}
	c.vm.ApplyDefaults()
	return c
}

// takeTurn waits for the requests before this one. Call the function that it returns.
func (c *control) takeTurn(ctx context.Context) (func(), error) {
	t := time.NewTimer(turnTimeout)
	defer t.Stop()
	select {
	case c.turn <- struct{}{}:
		return func() { <-c.turn }, nil
	case <-ctx.Done():
		return nil, errdefs.ErrUnavailable.WithMessage("the client left before the API requests ahead of this one were done")
	case <-t.C:
		return nil, errdefs.ErrUnavailable.WithMessage(fmt.Sprintf("the API requests ahead of this one were not done after %v", turnTimeout))
	}
}

// snapshot gives the description, and the machine, which is nil before the start.
func (c *control) snapshot() (config.VM, Machine) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.vm, c.machine
}

// retire takes the last turn: when it has returned without an error, nothing is being changed, and nothing will be.
func (c *control) retire(ctx context.Context) error {
	select {
	case c.turn <- struct{}{}:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("waiting for the API request that is changing the microVM: %w", context.Cause(ctx))
	}
}

// configure changes a copy of the description, and records it if it is right as a whole.
func (c *control) configure(ctx context.Context, change func(*config.VM) error) error {
	done, err := c.takeTurn(ctx)
	if err != nil {
		return err
	}
	defer done()
	vm, m := c.snapshot()
	if m != nil {
		return errdefs.ErrFailedPrecondition.WithMessage(afterStart)
	}
	vm = vm.Clone()
	if err := change(&vm); err != nil {
		return err
	}
	vm.ApplyDefaults()
	if err := vm.ValidateParts(); err != nil {
		return err
	}
	c.mu.Lock()
	c.vm = vm
	c.mu.Unlock()
	c.described()
	return nil
}

// beforeStart calls f unless the machine has been started: for what is no part of its description.
func (c *control) beforeStart(ctx context.Context, f func() error) error {
	done, err := c.takeTurn(ctx)
	if err != nil {
		return err
	}
	defer done()
	if _, m := c.snapshot(); m != nil {
		return errdefs.ErrFailedPrecondition.WithMessage(afterStart)
	}
	return f()
}

// start boots the machine as described.
func (c *control) start(ctx context.Context) error {
	done, err := c.takeTurn(ctx)
	if err != nil {
		return err
	}
	defer done()
	vm, m := c.snapshot()
	if m != nil {
		return errdefs.ErrFailedPrecondition.WithMessage(afterStart)
	}
	if vm.BootSource == nil {
		return errdefs.ErrFailedPrecondition.WithMessage(noKernel)
	}
	if err := vm.Validate(); err != nil {
		return err
	}
	// What the machine logs is not the API's.
	m, err = c.boot(log.WithLogger(context.WithoutCancel(ctx), log.L), vm)
	if err != nil {
		log.G(ctx).WithError(err).Error("the microVM did not start")
		return err
	}
	c.mu.Lock()
	c.machine = m
	c.mu.Unlock()
	return nil
}

// update has the machine make a change that change makes in a copy of its description, which is then recorded.
func (c *control) update(ctx context.Context, change func(context.Context, *config.VM) error, f func(Machine, context.Context) error) error {
	return c.withMachine(ctx, func(m Machine, ctx context.Context) error {
		vm, _ := c.snapshot()
		vm = vm.Clone()
		if err := change(ctx, &vm); err != nil {
			return err
		}
		if err := vm.ValidateParts(); err != nil {
			return err
		}
		if err := f(m, ctx); err != nil {
			return err
		}
		c.mu.Lock()
		c.vm = vm
		c.mu.Unlock()
		return nil
	})
}

// withMachine lets f use the machine, for a bounded time.
func (c *control) withMachine(ctx context.Context, f func(Machine, context.Context) error) error {
	done, err := c.takeTurn(ctx)
	if err != nil {
		return err
	}
	defer done()
	_, m := c.snapshot()
	if m == nil {
		return errdefs.ErrFailedPrecondition.WithMessage(beforeStart)
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), runStateTimeout)
	defer cancel()
	return f(m, ctx)
}
