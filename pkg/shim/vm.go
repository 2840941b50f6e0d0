package shim

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/log"

	"github.com/fcshim/containerd-shim-fc-v2/pkg/agent"
	"github.com/fcshim/containerd-shim-fc-v2/pkg/agent/agentpb"
	"github.com/fcshim/containerd-shim-fc-v2/pkg/shim/network"
	"github.com/fcshim/containerd-shim-fc-v2/pkg/timeline"
	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/config"
)

const (
	// startTimeout bounds fc-vmm's start of a VM, without the guest's part.
	startTimeout = time.Minute
	// reapTimeout is how long a process's exit status may come after the end of its connections.
	reapTimeout = 100 * time.Millisecond
	// partingTimeout is how long fc-vmm may outlive the agent's connection, to tell why the guest has ended.
	partingTimeout = time.Second
	// maxConsoleTail bounds what is read of a console log for an error, in bytes.
	maxConsoleTail = 4096
	// consoleLines is how many lines that are, if there is no panic.
	consoleLines = 3
)

// vm is a running VM with its agent.
type vm struct {
	bundle  string
	process *child
	files   *child // the file server
	streams *agent.StreamBroker
	sockets *sockets
	console consoleLog
	metrics *vmMetrics
	control *net.UnixListener

	killed      atomic.Bool // by this process, all of it
	filesKilled atomic.Bool // the file server did not end by itself

	mu       sync.Mutex
	agent    *agent.Client // nil until ready
	released bool

	answer    *net.UnixConn // on which fc-vmm says how the start ended; nil until it has been started
	answered  chan struct{} // closed when it has
	kept      keptFiles     // that came with it, valid after answered
	refused   error         // that there is no VM, valid after answered
	started   time.Time     // when it said that, valid after answered
	connected time.Time     // when the agent had called

	clockSet chan struct{} // closed when the guest's clock has been looked at for the first time

	ended chan struct{} // closed when process, connections and sockets are gone
	cause error         // why, valid after ended
	left  error         // that the file server has not ended, valid after ended
}

// vmOptions describe a VM to be booted.
type vmOptions struct {
	Namespace, ID string
	Bundle        string
	Settings      *Settings
	Size          size
	Network       *os.File // the network namespace that fc-vmm is started in
	Devices       []network.Device
	Cgroup        hostCgroup // that fc-vmm is started in
	// Metrics is where fc-vmm writes its metrics, and FileMetrics where the file server does; nil for nowhere.
	Metrics, FileMetrics *os.File
}

// startVM runs fc-vmm, which starts the VM: running waits for that, and ready for the agent. After an error nothing is left of it.
func startVM(ctx context.Context, o vmOptions, phases *timeline.Timeline) (_ *vm, err error) {
	v := &vm{bundle: o.Bundle, answered: make(chan struct{}), clockSet: make(chan struct{}), ended: make(chan struct{})}
	defer func() {
		if err != nil {
			err = joinCleanup(err, v.discard())
		}
	}()
	desc, err := v.describe(o)
	if err != nil {
		return nil, err
	}
	if v.sockets, err = openSockets(o.Bundle); err != nil {
		return nil, err
	}
	apiListener, err := v.sockets.listen(apiSocket)
	if err != nil {
		return nil, err
	}
	defer apiListener.Close() // ours; with fc-vmm's copy gone too, callers see the end at once
	if v.control, err = v.sockets.listen(fmt.Sprintf("%s_%d", vsockSocket, agent.ControlPort)); err != nil {
		return nil, err
	}
	streams, err := v.sockets.listen(fmt.Sprintf("%s_%d", vsockSocket, agent.StreamPort))
	if err != nil {
		return nil, err
	}
	v.streams = agent.NewStreamBroker(streams)
	go func() {
		if err := v.streams.Serve(); err != nil {
			log.G(ctx).WithError(err).Error("the guest's streams cannot be served any more")
		}
	}()
	filesListener, err := v.sockets.listen(filesSocket)
	if err != nil {
		return nil, err
	}
	defer filesListener.Close()
	var pipes []*os.File
	if v.metrics, pipes, err = openMetrics(ctx, o.Settings, o.Namespace, o.ID, 2); err != nil {
		return nil, err
	}
	if pipes != nil {
		o.Metrics, o.FileMetrics = pipes[0], pipes[1]
		defer o.Metrics.Close()
		defer o.FileMetrics.Close()
	}
	if v.process, v.answer, err = startVMM(ctx, o, desc, apiListener); err != nil {
		return nil, err
	}
	go v.hear(1 + len(o.Devices)) // until fc-vmm's end at most
	if v.files, err = startFiles(ctx, o, filesListener); err != nil {
		return nil, err
	}
	phases.Mark("spawn")
	go v.watchFiles(ctx)
	go v.watchProcess()
	return v, nil
}

// hear notes how fc-vmm's start of the VM has ended, and takes the files that come with that.
func (v *vm) hear(files int) {
	defer close(v.answered)
	defer v.answer.Close()
	v.kept, v.refused = readStartAnswer(v.answer, files)
	v.started = time.Now()
}

// running waits until the VM runs. A death of one of its processes ends the wait at once.
func (v *vm) running(ctx context.Context) error {
	t := time.NewTimer(startTimeout)
	defer t.Stop()
	select {
	case <-v.answered:
	case <-ctx.Done():
		return fmt.Errorf("waiting for fc-vmm to start the VM: %w", ctx.Err())
	case <-t.C:
		return fmt.Errorf("fc-vmm did not start the VM within %v: %w", startTimeout, context.DeadlineExceeded)
	}
	if v.refused == nil {
		return nil
	}
	v.awaitFiles()
	if v.refused != errNoAnswer && !v.filesLost() {
		return v.refused
	}
	return v.explain(errors.New(v.refused.Error())) // the class is that of a death
}

// describe says what machine a pod runs on.
func (v *vm) describe(o vmOptions) (*config.VM, error) {
	s := o.Settings
	// The defaults switch the serial port off: it costs a probe, and an exit for every character.
	args := config.LeanBootArgs + " quiet"
	desc := &config.VM{
		Machine:     config.Machine{VCPUCount: o.Size.VCPUs, MemSizeMiB: o.Size.MemoryMiB, HugePages: s.HugePages},
		Drives:      []config.Drive{{DriveID: "root", PathOnHost: s.Image, IsReadOnly: true}},
		Filesystems: []config.Filesystem{{FSID: agent.SharedTag, Tag: agent.SharedTag, Socket: filesSocket}},
		Vsock:       &config.Vsock{GuestCID: 3, UDSPath: vsockSocket},
		Entropy:     &config.Entropy{},
	}
	for _, d := range o.Devices {
		desc.NetworkInterfaces = append(desc.NetworkInterfaces, config.NetworkInterface{IfaceID: d.TAP, HostDevName: d.TAP, GuestMAC: d.MAC.String()})
	}
	if s.FreePageReporting {
		desc.Balloon = &config.Balloon{FreePageReporting: true}
		args += " fc_free_page_reporting=1"
	}
	if s.ConsoleLog != "" {
		if err := os.MkdirAll(s.ConsoleLog, 0o700); err != nil {
			return nil, fmt.Errorf("console_log: %w: %w", err, errdefs.ErrFailedPrecondition)
		}
		v.console = openConsole(filepath.Join(s.ConsoleLog, vmName(o.Namespace, o.ID)+".log"))
		args = strings.Replace(args, "8250.nr_uarts=0", "8250.nr_uarts=1 console=ttyS0", 1)
		desc.Serial = &config.Serial{SerialOutPath: v.console.path, MaxBytes: s.ConsoleLogKiB << 10}
	}
	args += " root=/dev/vda rootfstype=erofs ro init=/sbin/init"
	if s.Debug {
		args += " fc_boot_timer=1"
	}
	if s.KernelArgs != "" {
		args += " " + s.KernelArgs
	}
	if len(args) > config.MaxBootArgs {
		return nil, fmt.Errorf("kernel_args: the kernel command line has %d bytes, at most %d are allowed: %w", len(args), config.MaxBootArgs, errdefs.ErrInvalidArgument)
	}
	desc.BootSource = &config.BootSource{KernelImagePath: s.Kernel, BootArgs: &args}
	return desc, nil
}

// ready waits for the agent's connection. The VM's death ends the wait at once.
func (v *vm) ready(ctx context.Context, timeout time.Duration) error {
	ctx, cancel := context.WithTimeoutCause(ctx, timeout, fmt.Errorf("guest agent did not connect within %v: %w", timeout, context.DeadlineExceeded))
	defer cancel()
	ctx, died := context.WithCancelCause(ctx)
	defer died(nil)
	go func() {
		select {
		case <-v.process.done:
			died(errors.New("before the guest's agent connected"))
		case <-ctx.Done():
		}
	}()
	client, err := agent.Accept(ctx, v.control)
	if err != nil {
		if cause := context.Cause(ctx); cause != nil {
			err = cause
		}
		return v.explain(err)
	}
	v.connected = time.Now()
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.released {
		client.Close()
	}
	v.agent = client
	go v.watchAgent(context.WithoutCancel(ctx), client)
	return nil
}

// markGuest adds to a timeline the two parts of the guest's boot, which went on beside other phases: until the agent's first
// instruction, and from there until it was connected. How long the latter took is what the guest says: more than all of its boot
// it cannot have been.
func (v *vm) markGuest(t *timeline.Timeline, setupNS uint64) {
	boot := v.connected.Sub(v.started)
	if setupNS == 0 || boot <= 0 || setupNS >= uint64(boot) {
		return
	}
	t.Set("kernel", boot-time.Duration(setupNS))
	t.Set("agent", time.Duration(setupNS))
}

// watchAgent ends a VM whose agent has gone: nobody could reach its containers any more.
func (v *vm) watchAgent(ctx context.Context, client *agent.Client) {
	select {
	case <-v.process.done:
	case <-client.Done():
		select {
		case <-v.process.done:
		case <-time.After(partingTimeout):
			if err := kill(v.process); err != nil {
				log.G(ctx).WithError(err).Error("the guest's agent has gone, its VM has not")
			}
		}
	}
}

// watchFiles ends a VM whose file server has gone: its containers would wait for their files for ever.
func (v *vm) watchFiles(ctx context.Context) {
	select {
	case <-v.process.done:
	case <-v.files.done:
		if err := kill(v.process); err != nil {
			log.G(ctx).WithError(err).Error("the VM's file server has gone, the VM has not")
		}
	}
}

func (v *vm) watchProcess() {
	<-v.process.done
	if v.process.status() == config.StatusBadConfig {
		v.awaitFiles()
	}
	v.cause = v.explain(nil)
	if !isClosed(v.files.done) {
		v.filesKilled.Store(true)
	}
	v.left = kill(v.files)
	v.release()
	_ = v.metrics.wait() // or `delete` removes the file
	close(v.ended)
}

// explain adds to an error why the VM has ended, if it has, and what its console said last.
func (v *vm) explain(err error) error {
	select {
	case <-v.process.done:
	case <-v.files.done:
	case <-time.After(reapTimeout):
	}
	if why := v.died(); why != nil && err == nil {
		err = why
	} else if why != nil {
		err = fmt.Errorf("%w (%w): %w", why, err, errdefs.ErrUnavailable)
	}
	if tail := v.console.tail(); tail != "" {
		err = fmt.Errorf("%w; console: %q", err, tail)
	}
	return err
}

// died is why the VM has ended: because of its file server, if that has ended by itself, for fc-vmm ends with it; the other way round, the
// server is killed. It is nil as long as both live.
func (v *vm) died() error {
	switch {
	case v.filesLost():
		return v.files.err
	case isClosed(v.process.done):
		return v.process.err
	}
	return nil
}

// filesLost tells whether the file server has ended by itself.
func (v *vm) filesLost() bool { return isClosed(v.files.done) && !v.filesKilled.Load() }

// awaitFiles gives the file server the time to be reaped, where its end would be the reason for what fc-vmm has come to.
func (v *vm) awaitFiles() {
	select {
	case <-v.files.done:
	case <-time.After(reapTimeout):
	}
}

func isClosed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

// consoleLog is the file with a guest's console.
type consoleLog struct {
	path string // empty for none
	from int64  // where this VM's part begins: an earlier one of the same name may have written there
}

func openConsole(path string) consoleLog {
	l := consoleLog{path: path}
	if fi, err := os.Stat(path); err == nil {
		l.from = fi.Size()
	}
	return l
}

// tail is what a guest has said of its end: its panic, or else its last lines.
func (l consoleLog) tail() string {
	if l.path == "" {
		return ""
	}
	f, err := os.Open(l.path)
	if err != nil {
		return ""
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		return ""
	}
	from := l.from
	if from > fi.Size() { // fc-vmm has made room by dropping what is old
		from = 0
	}
	off := max(from, fi.Size()-maxConsoleTail)
	buf := make([]byte, fi.Size()-off)
	n, _ := f.ReadAt(buf, off)
	lines := strings.FieldsFunc(strings.ToValidUTF8(string(buf[:n]), "?"), func(r rune) bool { return r == '\n' || r == '\r' })
	for _, l := range lines {
		if strings.Contains(l, "Kernel panic") {
			return l
		}
	}
	return strings.Join(lines[max(0, len(lines)-consoleLines):], " | ")
}

// release closes what connects a dead process with this one, and removes its sockets.
func (v *vm) release() {
	if v.answer != nil {
		// The process's end has ended the connection, unless an fc-vmm in wrong hands has sent us its end.
		_ = v.answer.SetReadDeadline(time.Now().Add(reapTimeout))
		<-v.answered
		v.kept.close()
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	v.released = true
	if v.control != nil {
		v.control.Close()
	}
	if v.streams != nil {
		v.streams.Close()
	}
	if v.agent != nil {
		v.agent.Close()
	}
	_ = removeSockets(v.bundle)
	if v.sockets != nil {
		v.sockets.close()
	}
}

// discard gives up a VM whose start has failed.
func (v *vm) discard() (err error) {
	err = kill(v.process, v.files)
	v.release()
	if err == nil {
		err = v.metrics.wait()
	}
	return err
}

// kill ends the VM without asking it and returns when nothing of it is left. An error means that one of its processes is still there.
func (v *vm) kill() error {
	v.killed.Store(true)
	v.filesKilled.Store(true)
	if err := kill(v.process, v.files); err != nil {
		return err
	}
	<-v.ended // watchProcess has only to close things
	return v.left
}

// stop has the guest end its containers and write back what is dirty, and ends the VM then, or when the time for that is up. There is no
// power-off: it would take the guest's kernel longer than all the rest, for nothing but its last words on the console.
func (v *vm) stop(ctx context.Context) error {
	if v.dead() {
		return v.left
	}
	ctx = context.WithoutCancel(ctx)
	v.mu.Lock()
	client := v.agent
	v.mu.Unlock()
	if client != nil {
		if _, err := askWithin(ctx, agent.ShutdownTimeout, "Shutdown", client.Shutdown, &agentpb.ShutdownRequest{}); err != nil {
			log.G(ctx).WithError(v.blame(err)).Warn("the guest did not shut down in order: what it has not written back is lost")
		}
	}
	return v.kill()
}

// vmmID makes an id for fc-vmm, which takes letters, digits and dashes, at most 64 of them.
func vmmID(id string) string {
	id = strings.Map(func(r rune) rune {
		if r == '-' || r >= '0' && r <= '9' || r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' {
			return r
		}
		return '-'
	}, id)
	return id[:min(len(id), 64)]
}

// dead reports whether the VM has ended.
func (v *vm) dead() bool { return isClosed(v.ended) }

// blame adds to an agent's error that the VM has ended, if that is why.
func (v *vm) blame(err error) error {
	select {
	case <-v.ended:
		return fmt.Errorf("%w (%w): %w", v.cause, err, errdefs.ErrUnavailable)
	case <-v.agent.Done():
	default:
		return err
	}
	select {
	case <-v.ended:
		return fmt.Errorf("%w (%w): %w", v.cause, err, errdefs.ErrUnavailable)
	case <-time.After(partingTimeout + time.Second):
		return err
	}
}
