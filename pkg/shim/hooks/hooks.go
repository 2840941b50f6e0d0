// Package hooks runs a container's OCI hooks on the host, each with the container's state on its standard input (OCI runtime
// spec, "POSIX-platform Hooks"). It must never run one that is of the guest's making.
package hooks

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/fcshim/containerd-shim-fc-v2/pkg/nsthread"
)

const (
	// DefaultTimeout bounds a hook that has no timeout of its own; runc would wait for ever.
	DefaultTimeout = 2 * time.Minute
	// outputTimeout is how long the children of a hook that has ended, or has been killed, may hold its output.
	outputTimeout = time.Second
	// maxOutput bounds what of a hook's output is kept for an error, in bytes.
	maxOutput = 2048
)

// Check refuses hooks that cannot be run, and those whose place is inside of the container's namespaces while it is being
// made: that is in the guest, where the host's programs are not.
func Check(h *specs.Hooks) error {
	if h == nil {
		return nil
	}
	if len(h.CreateContainer) > 0 {
		return fmt.Errorf("hooks.createContainer: not supported, as it runs a program of the host's in the container's namespaces, which are in a VM; use createRuntime: %w", errdefs.ErrInvalidArgument)
	}
	for _, p := range Points() {
		for i, hook := range p.of(h) {
			switch {
			case !filepath.IsAbs(hook.Path):
				return fmt.Errorf("hooks.%s[%d].path %q: must be absolute: %w", p, i, hook.Path, errdefs.ErrInvalidArgument)
			case hook.Timeout != nil && *hook.Timeout <= 0:
				return fmt.Errorf("hooks.%s[%d].timeout is %d: must be greater than zero: %w", p, i, *hook.Timeout, errdefs.ErrInvalidArgument)
			}
		}
	}
	return nil
}

// Point is a point of a container's life at which hooks run on the host.
type Point string

// Points of a container's life.
const (
	Prestart      Point = "prestart"
	CreateRuntime Point = "createRuntime"
	Poststart     Point = "poststart"
	Poststop      Point = "poststop"
)

// Points are all of them, in order.
func Points() []Point { return []Point{Prestart, CreateRuntime, Poststart, Poststop} }

func (p Point) of(h *specs.Hooks) []specs.Hook {
	switch p {
	case Prestart:
		//lint:ignore SA1019 deprecated, and still in use
		return h.Prestart
	case CreateRuntime:
		return h.CreateRuntime
	case Poststart:
		return h.Poststart
	case Poststop:
		return h.Poststop
	}
	return nil
}

// Any says whether there are hooks at one of the points.
func Any(h *specs.Hooks, points ...Point) bool {
	for _, p := range points {
		if h != nil && len(p.of(h)) > 0 {
			return true
		}
	}
	return false
}

// Runner runs the hooks of one container.
type Runner struct {
	Hooks *specs.Hooks
	// State is what a hook is told, but for status and pid.
	State specs.State
	// Mounts is the mount namespace to run in; nil for this process's own.
	Mounts *os.File
}

// Run runs the hooks of a point in their order, up to the first that fails. Poststop hooks run all, whatever becomes of the
// others.
func (r *Runner) Run(ctx context.Context, point Point, status specs.ContainerState, pid int) error {
	if r.Hooks == nil {
		return nil
	}
	state := r.State
	state.Status, state.Pid = status, pid
	input, err := json.Marshal(&state)
	if err != nil {
		return fmt.Errorf("encode the state for hooks: %w", err)
	}
	var first error
	for i, h := range point.of(r.Hooks) {
		if err := r.run(ctx, h, input); err != nil {
			err = fmt.Errorf("%s hook #%d (%s): %w", point, i, h.Path, err)
			if point != Poststop {
				return err
			}
			if first == nil {
				first = err
			}
		}
	}
	return first
}

// timeoutOf is a hook's timeout, and the error of one that takes longer.
func timeoutOf(h specs.Hook) (time.Duration, error) {
	if h.Timeout == nil {
		return DefaultTimeout, fmt.Errorf("it has not ended within %v, this runtime's default, as the spec has no timeout for it", DefaultTimeout)
	}
	timeout := time.Duration(*h.Timeout) * time.Second
	return timeout, fmt.Errorf("it has not ended within %v", timeout)
}

func (r *Runner) run(ctx context.Context, h specs.Hook, input []byte) error {
	timeout, late := timeoutOf(h)
	ctx, cancel := context.WithTimeoutCause(ctx, timeout, late)
	defer cancel()
	var out tail
	cmd := exec.CommandContext(ctx, h.Path)
	if len(h.Args) > 0 {
		cmd.Args = h.Args
	}
	cmd.Env = append([]string{}, h.Env...) // not nil, which would mean ours
	cmd.Dir = r.State.Bundle
	cmd.Stdin = bytes.NewReader(input)
	cmd.Stdout, cmd.Stderr = &out, &out
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return unix.Kill(-cmd.Process.Pid, unix.SIGKILL) }
	cmd.WaitDelay = outputTimeout
	var in []nsthread.Namespace
	if r.Mounts != nil {
		in = append(in, nsthread.Namespace{File: r.Mounts, Kind: unix.CLONE_NEWNS})
	}
	err := nsthread.Do(cmd.Start, in...)
	if err == nil {
		err = cmd.Wait()
	}
	switch {
	case err == nil || errors.Is(err, exec.ErrWaitDelay): // it has left a child, and succeeded
		return nil
	case ctx.Err() != nil:
		err = context.Cause(ctx)
	}
	if s := out.String(); s != "" {
		return fmt.Errorf("%w: %s", err, s)
	}
	return err
}

// tail keeps the last maxOutput bytes written to it.
type tail struct{ b []byte }

func (t *tail) Write(p []byte) (int, error) {
	t.b = append(t.b, p[max(0, len(p)-maxOutput):]...)
	t.b = t.b[max(0, len(t.b)-maxOutput):]
	return len(p), nil
}

func (t *tail) String() string {
	return strings.Join(strings.Fields(strings.ToValidUTF8(string(t.b), "?")), " ")
}
