package shim

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/fcshim/containerd-shim-fc-v2/pkg/nsthread"
	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/config"
)

// startVMM runs fc-vmm in the bundle, in the pod's network, where its TAPs shall be. It is given the VM's description and starts the VM by itself,
// beside what we do; how that has ended it says on the connection (readStartAnswer). The API's listener is there for whoever
// wants something of the VM later.
func startVMM(ctx context.Context, o vmOptions, desc *config.VM, api *net.UnixListener) (_ *child, answer *net.UnixConn, err error) {
	sock, err := api.File()
	if err != nil {
		return nil, nil, fmt.Errorf("hand the API's socket to fc-vmm: %w", err)
	}
	defer sock.Close()
	conn, theirs, err := connection()
	if err != nil {
		return nil, nil, fmt.Errorf("make a connection to fc-vmm: %w", err)
	}
	defer theirs.Close()
	r := role{
		name:  "fc-vmm",
		args:  []string{"--id", vmmID(o.ID), "--parent-fd", parentFD},
		words: vmmWords(),
		in: func(start func() error) error {
			return nsthread.Do(start, nsthread.Namespace{File: o.Network, Kind: unix.CLONE_NEWNET})
		},
	}
	r.hand("--api-fd", sock)
	r.hand("--config-fd", theirs)
	if !o.Settings.Debug {
		r.args = append(r.args, "--level", "warn") // the shim knows what it has asked for
	} else {
		var now unix.Timespec
		_ = unix.ClockGettime(unix.CLOCK_MONOTONIC, &now) // every kernel has it
		r.args = append(r.args, "--level", "debug", "--boot-timer", "--start-time-us", strconv.FormatInt(now.Nano()/1000, 10))
	}
	r.takeMetrics(o.Metrics)
	p, err := startChild(ctx, o, r)
	if err != nil {
		conn.Close()
		return nil, nil, err
	}
	// Now that it is in its cgroup, where it shall make the VM. A death before this is told like one after it.
	if err := sendDescription(conn, desc); err != nil && !errors.Is(err, unix.EPIPE) {
		conn.Close()
		return nil, nil, joinCleanup(fmt.Errorf("send fc-vmm the VM's description: %w", err), kill(p))
	}
	return p, conn, nil
}

// connection makes one, of which fc-vmm gets the other end (--config-fd).
func connection() (ours *net.UnixConn, theirs *os.File, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, os.NewSyscallError("socketpair", err)
	}
	f := os.NewFile(uintptr(fds[0]), "start")
	theirs = os.NewFile(uintptr(fds[1]), "start")
	c, err := net.FileConn(f)
	f.Close() // FileConn has a copy of its own
	if err != nil {
		theirs.Close()
		return nil, nil, err
	}
	return c.(*net.UnixConn), theirs, nil
}

// sendDescription need not wait: the socket's buffer has room for many such.
func sendDescription(conn *net.UnixConn, desc *config.VM) error {
	text, err := json.Marshal(desc)
	if err == nil {
		err = conn.SetWriteDeadline(time.Now().Add(time.Second))
	}
	if err == nil {
		_, err = conn.Write(text)
	}
	if err == nil {
		err = conn.CloseWrite()
	}
	return err
}

// maxStartAnswer bounds what is read of fc-vmm's answer, in bytes.
const maxStartAnswer = 16 << 10

// errNoAnswer is the start of a VM whose fc-vmm ended without a word about it.
var errNoAnswer = errors.New("fc-vmm gave no answer")

// readStartAnswer waits for fc-vmm's answer, which comes at the latest with its end. A refusal is of the class errdefs.ErrInvalidArgument if the
// description is at fault, else ErrUnavailable. kept is what comes with the answer, at most so many files.
func readStartAnswer(conn *net.UnixConn, most int) (kept keptFiles, refused error) {
	// What has come counts, however the connection ends. The kernel drops descriptors that there is no room for: a VMM may be in wrong hands.
	first, rights := make([]byte, maxStartAnswer), make([]byte, unix.CmsgLen(4*most))
	n, oobn, _, _, err := conn.ReadMsgUnix(first, rights)
	if err != nil {
		n, oobn = 0, 0
	}
	rest, _ := io.ReadAll(io.LimitReader(conn, int64(maxStartAnswer-n)))
	kept = takeFiles(rights[:oobn])
	var a config.StartAnswer
	if json.Unmarshal(append(first[:n], rest...), &a) != nil {
		return kept, errNoAnswer
	}
	switch {
	case a.Fault == "":
		return kept, nil
	case a.Invalid:
		return kept, &rpcError{"fc-vmm: " + oneLine(a.Fault), errdefs.ErrInvalidArgument}
	}
	return kept, &rpcError{"fc-vmm: " + oneLine(a.Fault), errdefs.ErrUnavailable}
}

// takeMetrics has a child write its metrics, if anybody wants them.
func (r *role) takeMetrics(to *os.File) {
	if to == nil {
		return
	}
	// It opens the pipe anew, by a way that does not wait for us.
	r.args = append(r.args, "--metrics-path", fmt.Sprintf("/proc/self/fd/%d", r.fd()))
	r.files = append(r.files, to)
}

// vmmWords is what fc-vmm's exit statuses mean.
func vmmWords() map[int]exitWords {
	return map[int]exitWords{
		config.StatusEnded:      {"the guest has ended (reset)", false},
		config.StatusPoweredOff: {"the guest has ended (power off)", false},
		config.StatusPanicked:   {"the guest's kernel has panicked", false},
		config.StatusBroken:     {"the VM has broken down (triple fault or an error of KVM)", true},
		config.StatusBadConfig:  {"the VM was not started", true},
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
		name: "fc-vmm fs",
		args: []string{"fs", "--parent-fd", parentFD, "--shared-dir", sharedName, "--fs-id", sharedName, "--id", vmmID(o.ID)},
	}
	r.hand("--fd", sock)
	r.takeMetrics(o.FileMetrics)
	return startChild(ctx, o, r)
}
