package shim

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/pkg/identifiers"
	"github.com/containerd/containerd/v2/pkg/shim"
	"github.com/containerd/log"
	"golang.org/x/sys/unix"
)

// containerd gives `delete` 5 s in all.
const (
	// stopTimeout bounds the wait for killed children, all of them together.
	stopTimeout = 3 * time.Second
	// endBudget bounds that together with what is said to the shim, so that there is time for the rest.
	endBudget = 4 * time.Second
)

// Stop implements shim.Shim (`delete`): it removes what a shim's death may have left of a container, and does nothing if
// there is nothing. It must not harm a pod that lives: it touches only what belongs to this container's bundle.
//
// containerd runs it whenever its connection to the shim has ended: after a task's Delete and Shutdown, when all is gone;
// after the shim's death; but also when only the connection broke, or when containerd died before it noted the shim's
// address. In the last two cases the shim lives on, with its VM, and nobody will ever call it again: containerd tells the
// world that the task has exited. So whatever of this container still runs at this point is ended: its VM, and then, by
// dismissShim, the shim itself.
func (*Manager) Stop(ctx context.Context, id string) (shim.StopStatus, error) {
	if err := identifiers.Validate(id); err != nil {
		return shim.StopStatus{}, fmt.Errorf("container id: %w", err)
	}
	bundle, err := bundleOf(ctx, id)
	if err != nil {
		return shim.StopStatus{}, err
	}
	endCtx, cancel := context.WithTimeout(ctx, endBudget)
	defer cancel()
	status := shim.StopStatus{ExitStatus: exitKilled, ExitedAt: time.Now()}
	pid, err := killChildren(bundle)
	status.Pid = pid
	derr := dismissShim(endCtx, bundle, id)
	if derr != nil {
		err = errors.Join(err, fmt.Errorf("end the shim that containerd has lost: %w", derr))
	}
	if r, err := readExit(bundle); err == nil {
		status = shim.StopStatus{Pid: int(r.Pid), ExitStatus: int(r.ExitStatus), ExitedAt: r.ExitedAt}
	}
	// Mounts live in the dead shim's namespace and have gone with it, unless somebody ran the shim in the host's.
	for _, name := range []string{rootfsName, sharedName} {
		err = errors.Join(err, unmountBelow(filepath.Join(bundle, name)))
	}
	err = errors.Join(err, removeSockets(bundle), removeDeadSocket(bundle))
	if derr == nil { // else it may be at it itself, or do it yet; the note stays
		err = errors.Join(err, undoHost(ctx, bundle, id))
	}
	if err != nil {
		log.G(ctx).WithError(err).WithField("container", id).Warn("something is left after a shim's death")
		return status, err
	}
	return status, nil
}

// bundleOf is the bundle that containerd names, or a sibling of the working directory, which is a bundle.
func bundleOf(ctx context.Context, id string) (string, error) {
	if o, ok := ctx.Value(shim.OptsKey{}).(shim.Opts); ok && o.BundlePath != "" {
		return o.BundlePath, nil
	}
	wd, err := os.Getwd()
	if err != nil {
		return "", err
	}
	return filepath.Join(filepath.Dir(wd), id), nil
}

// killChildren ends each child that works in the bundle and returns the pid of an fc-vmm among them, or 0.
func killChildren(bundle string) (int, error) {
	home, err := os.Stat(bundle)
	if err != nil {
		return 0, ignoreMissing(err)
	}
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return 0, err
	}
	found := 0
	var dying []dyingChild
	var errs []error
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || childName(pid, home) == "" {
			continue
		}
		c, err := signalChild(pid, home)
		if err != nil {
			errs = append(errs, fmt.Errorf("end a child (pid %d): %w", pid, err))
			continue
		}
		if c.name == "fc-vmm" {
			found = pid
		}
		dying = append(dying, c)
	}
	deadline := time.Now().Add(stopTimeout)
	for _, c := range dying {
		if err := c.wait(deadline); err != nil {
			errs = append(errs, fmt.Errorf("end %s (pid %d): %w", c.name, c.pid, err))
		}
	}
	return found, errors.Join(errs...)
}

// childName tells a child of this bundle by its working directory and by how it is called, so that neither a shell that happens to be
// there nor a shim is taken for one. It is empty for no child.
func childName(pid int, home os.FileInfo) string {
	proc := filepath.Join("/proc", strconv.Itoa(pid))
	wd, err := os.Stat(filepath.Join(proc, "cwd"))
	if err != nil || !os.SameFile(wd, home) {
		return ""
	}
	cmdline, err := os.ReadFile(filepath.Join(proc, "cmdline"))
	switch {
	case err != nil || !bytes.Contains(cmdline, []byte("\x00--parent-fd\x00")):
		return ""
	case bytes.Contains(cmdline, []byte("\x00--api-fd\x00")):
		return "fc-vmm"
	case bytes.Contains(cmdline, []byte("\x00fs\x00--parent-fd\x00")):
		return "fc-vmm fs"
	}
	return ""
}

// dyingChild is a child that has been sent SIGKILL.
type dyingChild struct {
	name string
	pid  int
	fd   int // of the process; -1 if it has gone
}

// signalChild goes by a pidfd, so that no other process which has got the pid meanwhile can be hit.
func signalChild(pid int, home os.FileInfo) (dyingChild, error) {
	c := dyingChild{pid: pid, fd: -1}
	fd, err := unix.PidfdOpen(pid, 0)
	if errors.Is(err, unix.ESRCH) {
		return c, nil
	}
	if err != nil {
		return c, err
	}
	if c.name = childName(pid, home); c.name == "" {
		return c, unix.Close(fd)
	}
	if err := unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		return c, errors.Join(err, unix.Close(fd))
	}
	c.fd = fd
	return c, nil
}

// wait waits for its end until the deadline.
func (c *dyingChild) wait(deadline time.Time) error {
	if c.fd < 0 {
		return nil
	}
	defer unix.Close(c.fd)
	for {
		left := max(time.Until(deadline), 0)
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(c.fd), Events: unix.POLLIN}}, int(left.Milliseconds()))
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return err
		case n > 0:
			return nil
		case left < time.Millisecond:
			return fmt.Errorf("it has not ended within %v of its SIGKILL", stopTimeout)
		}
	}
}

// removeDeadSocket removes the socket of the bundle's shim if nobody listens there any more.
func removeDeadSocket(bundle string) error {
	address, err := shim.ReadAddress(filepath.Join(bundle, addressFile))
	if err != nil || shim.CanConnect(address) {
		return nil
	}
	return ignoreMissing(shim.RemoveSocket(address))
}

// unmountBelow detaches every mount at and below dir that this mount namespace has.
func unmountBelow(dir string) error {
	if !exists(dir) {
		return nil
	}
	if err := mount.UnmountRecursive(dir, unix.MNT_DETACH); err != nil {
		return fmt.Errorf("unmount what is below %s: %w", dir, err)
	}
	return nil
}
