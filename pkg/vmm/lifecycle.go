package vmm

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"
	"golang.org/x/sys/unix"

	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/config"
	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/kvm"
	virtionet "github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/virtio/net"
)

// State says where the machine is in its life. It does not wait.
func (m *Machine) State() config.State { return m.state.Load().(config.State) }

func (m *Machine) wrongState(op string) error {
	return fmt.Errorf("%s: %w: %s: %w", op, ErrState, m.State(), errdefs.ErrFailedPrecondition)
}

// Start lets the vCPUs run. A machine starts once.
func (m *Machine) Start(context.Context) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.State() != config.NotStarted {
		return m.wrongState("start")
	}
	m.state.Store(config.Running)
	m.startedAt = time.Now()
	for _, v := range m.vcpus {
		go v.loop(m.handleExit, func(err error) { m.finish(Exit{Reason: Fault, Err: fmt.Errorf("vCPU %d: %w", v.id, err)}) })
	}
	if m.bootTimer == nil {
		m.logTimeline() // else the guest's boot is still to come
	}
	return nil
}

// Pause stops all vCPUs and returns when none executes guest code any more. Pausing a paused machine does nothing. On an
// error the machine runs on.
func (m *Machine) Pause(ctx context.Context) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	switch m.State() {
	case config.Paused:
		return nil
	case config.Running:
	default:
		return m.wrongState("pause")
	}
	ctx, cancel := awaitContext(ctx, kickTimeout, "stopping the vCPUs")
	defer cancel()
	for _, v := range m.vcpus {
		v.tell(commandPause)
	}
	for _, v := range m.vcpus {
		if err := v.await(ctx, v.parked); err != nil {
			for _, v := range m.vcpus {
				v.tell(commandRun)
			}
			return fmt.Errorf("pause: %w", err)
		}
	}
	m.state.Store(config.Paused)
	return nil
}

// Resume lets the vCPUs run on after Pause. Resuming a running machine does nothing.
func (m *Machine) Resume(context.Context) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	switch m.State() {
	case config.Running:
		return nil
	case config.Paused:
	default:
		return m.wrongState("resume")
	}
	for _, v := range m.vcpus {
		// Keeps the guest's watchdogs from taking the pause for a hang. A guest without kvm-clock has nothing to be told.
		if err := v.KVMClockCtrl(); err != nil && !errors.Is(err, unix.EINVAL) {
			v.counts.KVMClockCtrlFails.Inc()
			return fmt.Errorf("resume: vCPU %d: %w", v.id, err)
		}
	}
	for _, v := range m.vcpus {
		v.tell(commandRun)
	}
	m.state.Store(config.Running)
	return nil
}

// SendCtrlAltDel presses the keys on the guest's keyboard. A paused guest sees it once it is resumed.
func (m *Machine) SendCtrlAltDel(context.Context) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.canUpdate("Ctrl+Alt+Del"); err != nil {
		return err
	}
	return m.i8042.CtrlAltDel()
}

// Dup gives other descriptors of what the kernel destroys slowly, for it waits for RCU: of KVM's VM, and of each network interface's TAP,
// in their order. The caller closes them. If that is after the machine's end, and in another process, the end, and this process's, need not
// wait for it. Guest RAM is not part of them. An ended machine has none.
func (m *Machine) Dup() (fds []int, err error) {
	m.mu.Lock() // the end waits
	defer m.mu.Unlock()
	if err := m.canUpdate("duplicate of descriptors"); err != nil {
		return nil, err
	}
	fd, err := m.vm.Dup()
	if err == nil {
		fds = append(fds, fd)
	}
	for _, d := range m.devices {
		if n, ok := d.dev.(*virtionet.Device); ok && err == nil {
			if fd, err = n.Dup(); err == nil {
				fds = append(fds, fd)
			}
		}
	}
	if err != nil {
		for _, fd := range fds {
			unix.Close(fd)
		}
		return nil, err
	}
	return fds, nil
}

// Wait returns when the machine has ended and nothing of it is left.
func (m *Machine) Wait() Exit {
	<-m.ended
	return m.exit
}

// Done is closed when Wait would return at once.
func (m *Machine) Done() <-chan struct{} { return m.ended }

// Close ends the machine, whatever its state, and returns when nothing of it is left. The error is what could not be taken
// apart in time. A second Close returns the same.
func (m *Machine) Close() error {
	m.finish(Exit{Reason: Stopped})
	return m.Wait().Err
}

// handleExit does for a vCPU what KVM leaves to user space. It runs on the vCPU's thread.
func (m *Machine) handleExit(v *vcpu, reason kvm.ExitReason) {
	var err error
	switch reason {
	case kvm.ExitIO:
		var io kvm.IO
		if io, err = v.IO(); err == nil {
			timer := v.countExit(&v.counts.ExitIOIn, &v.counts.ExitIOInAgg, &v.counts.ExitIOOut, &v.counts.ExitIOOutAgg, io.Write)
			m.handleIO(io)
			timer.Stop()
			return
		}
	case kvm.ExitMMIO:
		var a kvm.MMIO
		if a, err = v.MMIO(); err == nil {
			timer := v.countExit(&v.counts.ExitMMIORead, &v.counts.ExitMMIOReadAgg, &v.counts.ExitMMIOWrite, &v.counts.ExitMMIOWriteAgg, a.Write)
			m.handleMMIO(a)
			timer.Stop()
			return
		}
	case kvm.ExitSystemEvent:
		switch v.SystemEvent() {
		case kvm.SystemEventShutdown:
			m.finish(Exit{Reason: PoweredOff})
			return
		case kvm.SystemEventReset:
			m.finish(Exit{Reason: Rebooted})
			return
		case kvm.SystemEventCrash:
			m.finish(Exit{Reason: Panicked})
			return
		}
		err = v.ExitError(reason)
	case kvm.ExitShutdown:
		err = fmt.Errorf("triple fault (%w)", v.ExitError(reason))
	default:
		err = v.ExitError(reason)
	}
	v.counts.Failures.Inc()
	if r, rerr := v.Regs(); rerr == nil {
		err = fmt.Errorf("%w at rip %#x, rsp %#x", err, r.RIP, r.RSP)
	}
	m.finish(Exit{Reason: Fault, Err: fmt.Errorf("vCPU %d: %w", v.id, err)})
}

// finish ends the machine for the first reason that anybody gives. It does not wait, and no vCPU of the caller's thread
// executes another instruction of the guest.
func (m *Machine) finish(e Exit) {
	m.finishOnce.Do(func() {
		m.exit = e
		for _, v := range m.vcpus {
			v.tell(commandStop)
		}
		go m.end()
	})
}

// end waits for the vCPUs and gives everything back.
func (m *Machine) end() {
	defer close(m.ended)
	m.mu.Lock()
	started := m.State() != config.NotStarted
	m.state.Store(config.Ended)
	m.mu.Unlock()
	var errs []error
	if started {
		ctx, cancel := awaitContext(context.Background(), kickTimeout, "ending the vCPUs")
		defer cancel()
		for _, v := range m.vcpus {
			errs = append(errs, v.await(ctx, nil))
		}
	}
	ran := time.Since(m.startedAt)
	stopped := errors.Join(errs...) == nil
	released := make(chan error, 1)
	go func() { released <- m.release(stopped) }()
	t := time.NewTimer(closeTimeout)
	defer t.Stop()
	select {
	case err := <-released:
		errs = append(errs, err)
	case <-t.C:
		errs = append(errs, fmt.Errorf("ending the devices took longer than %s: %w", closeTimeout, context.DeadlineExceeded))
	}
	m.report.pending.Wait() // for the log alone, as the lines below
	if started {
		m.logTimeline() // of a guest that never told of its boot
	}
	left := errors.Join(errs...)
	entry := m.log.WithField("reason", m.exit.Reason.String())
	if started {
		entry = entry.WithField("ran", ran)
	}
	if m.exit.Err != nil {
		entry = entry.WithError(m.exit.Err)
	}
	if left != nil {
		m.log.WithError(left).Error("machine was not taken apart cleanly")
	}
	m.exit.Err = errors.Join(m.exit.Err, left)
	level := log.InfoLevel
	if m.exit.Err != nil || m.exit.Reason == Panicked {
		level = log.WarnLevel
	}
	entry.Log(level, "machine has ended")
}
