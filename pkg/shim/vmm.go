package shim

import (
	"context"
	"fmt"
	"net"
	"os"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/fcshim/containerd-shim-fc-v2/pkg/nsthread"
	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/config"
)

// startVMM runs fc-vmm in the bundle, in the pod's network, where its TAPs shall be, and with the API's listener, so that the
// first call to the API cannot come too early.
func startVMM(ctx context.Context, o vmOptions, api *net.UnixListener) (*child, error) {
	sock, err := api.File()
	if err != nil {
		return nil, fmt.Errorf("hand the API's socket to fc-vmm: %w", err)
	}
	defer sock.Close()
	r := role{
		name:  "fc-vmm",
		args:  []string{"--id", vmmID(o.ID), "--parent-fd", parentFD, "--api-fd", "4"},
		words: vmmWords(),
		files: []*os.File{sock},
		in: func(start func() error) error {
			return nsthread.Do(start, nsthread.Namespace{File: o.Network, Kind: unix.CLONE_NEWNET})
		},
	}
	if !o.Settings.Debug {
		r.args = append(r.args, "--level", "warn") // the shim knows what it has asked for
	} else {
		var now unix.Timespec
		_ = unix.ClockGettime(unix.CLOCK_MONOTONIC, &now) // every kernel has it
		r.args = append(r.args, "--level", "debug", "--boot-timer", "--start-time-us", strconv.FormatInt(now.Nano()/1000, 10))
	}
	r.takeMetrics(o.Metrics)
	return startChild(ctx, o, r)
}

// takeMetrics has a child write its metrics, if anybody wants them.
func (r *role) takeMetrics(to *os.File) {
	if to == nil {
		return
	}
	// It opens the pipe anew, by a way that does not wait for us.
	r.args = append(r.args, "--metrics-path", fmt.Sprintf("/proc/self/fd/%d", 4+len(r.files)))
	r.files = append(r.files, to)
}

// vmmWords is what fc-vmm's exit statuses mean.
func vmmWords() map[int]exitWords {
	return map[int]exitWords{
		config.StatusEnded:      {"the guest has ended (reset)", false},
		config.StatusPoweredOff: {"the guest has ended (power off)", false},
		config.StatusPanicked:   {"the guest's kernel has panicked", false},
		config.StatusBroken:     {"the VM has broken down (triple fault or an error of KVM)", true},
		config.StatusBadConfig:  {"fc-vmm refused its configuration", true},
	}
}

// startFiles runs the pod's file server, which alone looks into the shared tree: fc-vmm fs, with the listener that fc-vmm connects to.
func startFiles(ctx context.Context, o vmOptions, l *net.UnixListener) (*child, error) {
	sock, err := l.File()
	if err != nil {
		return nil, fmt.Errorf("hand the file server's socket over: %w", err)
	}
	defer sock.Close()
	r := role{
		name:  "fc-vmm fs",
		args:  []string{"fs", "--parent-fd", parentFD, "--fd", "4", "--shared-dir", sharedName, "--fs-id", sharedName, "--id", vmmID(o.ID)},
		files: []*os.File{sock},
	}
	r.takeMetrics(o.FileMetrics)
	return startChild(ctx, o, r)
}
