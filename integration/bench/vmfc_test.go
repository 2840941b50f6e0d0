package bench

import (
	"context"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"github.com/fcshim/containerd-shim-fc-v2/integration/bench/guest/task"
	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/api"
	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/config"
)

// guestCID is the guest's address on its VM sockets.
const guestCID = 3

// fcVMM is the project's VMM, as the shim uses it.
func fcVMM() vmm {
	return vmm{"fc", func(b *testing.B, m machine) *vm {
		v := newVM(b)
		if m.share != "" {
			v.run(exec.Command(product("fc-vmm"), "fs", "--socket-path", v.filesSocket(), "--shared-dir", m.share))
			v.waitFor(v.filesSocket())
		}
		v.runFC(m)
		return v
	}}
}

// fcInside is fcVMM, but for folders, which it serves itself.
func fcInside() vmm {
	return vmm{"fc-inside", func(b *testing.B, m machine) *vm {
		v := newVM(b)
		v.runFC(m)
		return v
	}}
}

// fcAsync is fcVMM with the other engine for drives.
func fcAsync() vmm {
	return vmm{"fc-async", func(b *testing.B, m machine) *vm {
		m.engine = config.IOAsync
		return fcVMM().start(b, m)
	}}
}

// runFC starts the project's VMM with a machine.
func (v *vm) runFC(m machine) {
	v.b.Helper()
	// It inherits its socket, as from the shim: nothing has to be waited for.
	l, err := net.Listen("unix", filepath.Join(v.dir, "api"))
	if err != nil {
		v.fatal(err)
	}
	defer l.Close()
	f, err := l.(*net.UnixListener).File()
	if err != nil {
		v.fatal(err)
	}
	defer f.Close()
	cmd := exec.Command(product("fc-vmm"), "--api-fd", "3")
	cmd.ExtraFiles = []*os.File{f}
	v.runVMM(cmd)
	v.configure(m)
}

// firecracker is the other one with this API, if it is there.
func firecracker() []vmm {
	program, err := exec.LookPath("firecracker")
	if err != nil {
		return nil
	}
	return []vmm{{"firecracker", func(b *testing.B, m machine) *vm {
		v := newVM(b)
		v.runVMM(exec.Command(program, "--api-sock", filepath.Join(v.dir, "api")))
		v.waitFor(filepath.Join(v.dir, "api"))
		v.configure(m)
		return v
	}}}
}

// configure describes the machine over Firecracker's API, and starts it.
func (v *vm) configure(m machine) {
	v.b.Helper()
	c := api.NewClient(filepath.Join(v.dir, "api"))
	defer c.Close()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	args := m.kernelArgs()
	steps := []func() error{
		func() error {
			return c.PutMachineConfig(ctx, config.Machine{VCPUCount: max(m.vcpus, 1), MemSizeMiB: m.memMiB})
		},
		func() error {
			return c.PutBootSource(ctx, config.BootSource{KernelImagePath: product("vmlinux"), BootArgs: &args})
		},
		func() error {
			return c.PutDrive(ctx, config.Drive{DriveID: "root", PathOnHost: image(v.b), IsRootDevice: true, IsReadOnly: true})
		},
	}
	if m.drive != "" {
		steps = append(steps, func() error {
			return c.PutDrive(ctx, config.Drive{DriveID: "data", PathOnHost: m.drive, IOEngine: m.engine})
		})
	}
	if m.share != "" {
		share := config.Filesystem{FSID: "share", Tag: task.Tag, PathOnHost: m.share}
		if len(v.processes) > 1 { // one of them serves it
			share.PathOnHost, share.Socket = "", v.filesSocket()
		}
		steps = append(steps, func() error { return c.PutFilesystem(ctx, share) })
	}
	if m.tap != "" {
		steps = append(steps, func() error {
			return c.PutNetworkInterface(ctx, config.NetworkInterface{IfaceID: "eth0", HostDevName: m.tap})
		})
	}
	if m.vsock {
		steps = append(steps, func() error { return c.PutVsock(ctx, config.Vsock{GuestCID: guestCID, UDSPath: v.vsockPath()}) })
	}
	if m.balloon != nil {
		steps = append(steps, func() error { return c.PutBalloon(ctx, *m.balloon) })
	}
	steps = append(steps, func() error {
		v.started = time.Now()
		return c.Start(ctx)
	})
	for i, step := range steps {
		if err := step(); err != nil {
			v.fatal(err)
		}
		if i == 0 {
			v.answered = time.Now()
		}
	}
}

// vsockPath is the socket of the machine's vsock device. A guest's connection to port N goes to the path with _N behind.
func (v *vm) vsockPath() string { return filepath.Join(v.dir, "vsock") }

func (v *vm) vsockPort() string { return v.vsockPath() + "_" + strconv.Itoa(task.Port) }
