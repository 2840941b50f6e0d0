package vmm

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/kvm"
	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/metrics"
)

// command is what a vCPU is wanted to do.
type command uint64

const (
	commandRun command = iota
	commandPause
	commandStop

	commandBits = 2
	commandMask = 1<<commandBits - 1
)

// vcpu is a virtual CPU and the thread that runs it.
//
// It is told what to do through want, and made to look by a kick: immediate_exit and a signal, until it has acknowledged.
// It looks only when KVM_RUN has come back with EINTR, so that an I/O access that was under way is complete by then.
type vcpu struct {
	id int
	*kvm.VCPU
	counts metrics.VCPU
	timed  bool // its exits' latencies are wanted

	// want is a command in its low commandBits; the rest counts commands, so that each pause is acknowledged, also one
	// that follows a resume before the vCPU has noticed that.
	want atomic.Uint64
	tid  atomic.Int32
	// wake makes a parked vCPU look at want again; parked is its acknowledgement of a pause; done is closed when the thread
	// has left.
	wake, parked, done chan struct{}
}

func newVCPU(id int, fd *kvm.VCPU) *vcpu {
	return &vcpu{id: id, VCPU: fd, wake: make(chan struct{}, 1), parked: make(chan struct{}, 1), done: make(chan struct{})}
}

// loop runs the vCPU on a thread of its own until it is told to stop. exit handles whatever KVM_RUN wants of user space.
func (v *vcpu) loop(exit func(*vcpu, kvm.ExitReason), fault func(error)) {
	// Never unlocked: the thread ends with the goroutine.
	runtime.LockOSThread()
	defer close(v.done)
	nameThread(fmt.Sprintf("fc_vcpu %d", v.id))
	v.tid.Store(int32(unix.Gettid()))
	defer v.tid.Store(0)
	for {
		reason, err := v.Run()
		switch {
		case errors.Is(err, unix.EINTR):
			if v.look() == commandStop {
				return
			}
		case err != nil:
			v.counts.Failures.Inc()
			fault(err)
			v.waitForStop()
			return
		default:
			exit(v, reason)
		}
	}
}

// look carries out what is wanted: it parks through pauses, and returns commandRun or commandStop.
func (v *vcpu) look() command {
	var acknowledged uint64
	for {
		want := v.want.Load()
		switch c := command(want & commandMask); c {
		case commandStop:
			return c
		case commandRun:
			v.SetImmediateExit(false)
			// Whoever wants something else since has set the flag before or sets it after this: look once more.
			if v.want.Load() == want {
				return c
			}
		case commandPause:
			if acknowledged != want {
				acknowledged = want
				v.acknowledge()
			}
			<-v.wake
		}
	}
}

func (v *vcpu) acknowledge() {
	select {
	case v.parked <- struct{}{}:
	default: // an acknowledgement that nobody took; it says the same
	}
}

// waitForStop keeps a vCPU that cannot run any more until the machine ends, which is soon.
func (v *vcpu) waitForStop() {
	for {
		switch command(v.want.Load() & commandMask) {
		case commandStop:
			return
		case commandPause:
			v.acknowledge()
		}
		<-v.wake
	}
}

// tell changes what is wanted, a stop excepted, which is for ever. If the vCPU's own
// thread calls it, the guest executes nothing more before the vCPU has seen it. It does not wait.
func (v *vcpu) tell(c command) {
	if c == commandPause {
		select {
		case <-v.parked: // from a pause that was given up
		default:
		}
	}
	for {
		was := v.want.Load()
		if command(was&commandMask) == commandStop {
			break
		}
		if v.want.CompareAndSwap(was, (was>>commandBits+1)<<commandBits|uint64(c)) {
			break
		}
	}
	if c != commandRun {
		v.SetImmediateExit(true)
	}
	select {
	case v.wake <- struct{}{}:
	default:
	}
}

// await kicks the vCPU until it has acknowledged a pause, or has left.
func (v *vcpu) await(ctx context.Context, acknowledged <-chan struct{}) error {
	pause := time.Millisecond
	t := time.NewTimer(0)
	defer t.Stop()
	for {
		select {
		case <-acknowledged:
			return nil
		case <-v.done:
			return nil
		case <-ctx.Done():
			return fmt.Errorf("vCPU %d: %w", v.id, context.Cause(ctx))
		case <-t.C:
			// The first signal is enough unless it arrives before the thread exists.
			if tid := v.tid.Load(); tid != 0 {
				_ = unix.Tgkill(os.Getpid(), int(tid), unix.SIGURG)
			}
			t.Reset(pause)
			pause = min(2*pause, 100*time.Millisecond)
		}
	}
}
