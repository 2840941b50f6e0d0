// Package vmm is the machine: it builds a microVM from a config.VM, runs it, pauses it, and takes it apart again.
//
// The devices are an explicit list (devices.go), the bus an explicit table (bus_amd64.go); there is no registry, and the
// only thing that machines of a process share is the log: a Machine logs through New's context, devices that have none
// through log.L. What the guest does must never panic, block a caller without a bound, or leave anything behind: a Machine
// that has ended holds no thread, no file and no memory.
//
// How a guest has ended is known by what it does to the machine, so a panic is only told from a reboot by a kernel whose
// pvpanic driver runs. Earlier in its boot, or where the driver is a module that is not loaded (as in Debian's kernels), a
// kernel that panics reboots, with panic=1 on its command line, or hangs.
package vmm

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/fcshim/containerd-shim-fc-v2/pkg/timeline"
	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/config"
	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/mmds"
)

// Bounds of waits. None is reached unless a thread of the host's kernel hangs.
const (
	// kickTimeout is how long a vCPU may take to leave the guest.
	kickTimeout = 5 * time.Second
	// consoleTimeout is how long the end of the serial output may take.
	consoleTimeout = time.Second
	// closeTimeout is how long the devices may take to end.
	closeTimeout = 5 * time.Second
)

// ErrState is wrapped when a call does not fit the machine's state.
var ErrState = errors.New("wrong state of the microVM")

// Reason is why a machine ended.
type Reason int

const (
	// Stopped: the host stopped it, by Close.
	Stopped Reason = iota
	// Rebooted: the guest reset the machine (i8042 or ACPI).
	Rebooted
	// PoweredOff: the guest entered ACPI's S5.
	PoweredOff
	// Panicked: the guest's kernel said so (pvpanic). One without that driver does not say so: see the package's comment.
	Panicked
	// Fault: a triple fault, or KVM could not go on.
	Fault
)

// String is the reason in words, for logs.
func (r Reason) String() string {
	switch r {
	case Stopped:
		return "stopped"
	case Rebooted:
		return "guest rebooted"
	case PoweredOff:
		return "guest powered off"
	case Panicked:
		return "guest kernel panicked"
	case Fault:
		return "virtual CPU fault"
	}
	return fmt.Sprintf("reason %d", int(r))
}

// Status is the exit status of a process whose machine ended so: one of package config's.
func (r Reason) Status() int {
	switch r {
	case Stopped, Rebooted:
		return config.StatusEnded
	case PoweredOff:
		return config.StatusPoweredOff
	case Panicked:
		return config.StatusPanicked
	default:
		return config.StatusBroken
	}
}

// Exit is a machine's end.
type Exit struct {
	Reason Reason
	// Err says more of a Fault, and of what could not be taken apart in time.
	Err error
}

// Options are what a config.VM does not say. The zero value is fine.
type Options struct {
	// Console is where the serial port's output goes if the configuration names no file; nil drops it.
	Console io.Writer
	// KVMPath is the KVM device; empty for /dev/kvm.
	KVMPath string
	// Base is what Prepare has made; nil has New make it.
	Base *Base
	// ID names the microVM to its metadata service.
	ID string
	// Metadata are the data that the service gives to the guest, if the configuration has it be there; nil for none.
	Metadata *mmds.Store
	// Timeline, if there is one, takes down the phases of the start, and is logged at debug level when the last one is over.
	Timeline *timeline.Timeline
	// Latencies has single requests and exits timed, for Machine.Metrics.
	Latencies bool
}

// awaitContext gives up a wait by its own bound or by the caller's.
func awaitContext(ctx context.Context, d time.Duration, what string) (context.Context, context.CancelFunc) {
	return context.WithTimeoutCause(ctx, d, fmt.Errorf("%s took longer than %s: %w", what, d, context.DeadlineExceeded))
}
