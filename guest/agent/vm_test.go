package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/fcshim/containerd-shim-fc-v2/pkg/agent"
	"github.com/fcshim/containerd-shim-fc-v2/pkg/agent/agentpb"
	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/config"
	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/vmmtest"
)

// These tests boot the real image on the real VMM and speak to the agent in the shim's place. They need KVM, and the folder
// that `make build` fills in FC_BIN.

// consoleArgs give the guest a console, which boot args do without by default.
const consoleArgs = "8250.nr_uarts=1 console=ttyS0"

// Exit statuses of fc-vmm.
const (
	poweredOff = 80
	panicked   = 81
)

type vm struct {
	t       *testing.T
	dir     string
	cmd     *exec.Cmd
	console bytes.Buffer
	began   time.Time
}

// boot starts a VM. If call, something listens where the agent calls.
func boot(t *testing.T, ctx context.Context, call bool) (*vm, *agent.Client, *agent.StreamBroker) {
	t.Helper()
	vmmtest.NeedKVM(t)
	bin := os.Getenv("FC_BIN")
	if bin == "" {
		t.Skip("FC_BIN does not name the folder with fc-vmm, vmlinux and guest.img")
	}
	v := &vm{t: t, dir: t.TempDir()}
	shared := filepath.Join(v.dir, "shared")
	if err := os.MkdirAll(shared, 0o755); err != nil {
		t.Fatal(err)
	}
	args := config.LeanBootArgs + " quiet " + consoleArgs + " fc_boot_timer=1 root=/dev/vda rootfstype=erofs ro init=/sbin/init " + os.Getenv("FC_ARGS")
	desc := config.VM{
		Machine:     config.Machine{VCPUCount: 1, MemSizeMiB: 128},
		BootSource:  &config.BootSource{KernelImagePath: filepath.Join(bin, "vmlinux"), BootArgs: &args},
		Drives:      []config.Drive{{DriveID: "root", PathOnHost: filepath.Join(bin, "guest.img"), IsReadOnly: true}},
		Filesystems: []config.Filesystem{{FSID: "shared", Tag: agent.SharedTag, PathOnHost: shared}},
		Vsock:       &config.Vsock{GuestCID: 3, UDSPath: filepath.Join(v.dir, "v")},
		Entropy:     &config.Entropy{},
	}
	b, err := json.Marshal(desc)
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(v.dir, "vm.json")
	if err := os.WriteFile(file, b, 0o600); err != nil {
		t.Fatal(err)
	}
	listen := func(port int) net.Listener {
		l, err := net.Listen("unix", fmt.Sprintf("%s_%d", desc.Vsock.UDSPath, port))
		if err != nil {
			t.Fatal(err)
		}
		return l
	}
	v.cmd = exec.Command(filepath.Join(bin, "fc-vmm"), "--no-api", "--boot-timer", "--config-file", file)
	v.cmd.Stdout, v.cmd.Stderr = &v.console, &v.console
	var control net.Listener
	var streams *agent.StreamBroker
	if call {
		control, streams = listen(agent.ControlPort), agent.NewStreamBroker(listen(agent.StreamPort))
		go streams.Serve()
		t.Cleanup(func() { streams.Close() })
	}
	v.began = time.Now()
	if err := v.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		v.cmd.Process.Kill()
		v.cmd.Wait()
		if t.Failed() || os.Getenv("FC_ARGS") != "" {
			t.Logf("console:\n%s", v.console.String())
		}
	})
	if !call {
		return v, nil, nil
	}
	client, err := agent.Accept(ctx, control)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("the agent called after %v", time.Since(v.began))
	return v, client, streams
}

// exited waits for the VMM's end and checks its status.
func (v *vm) exited(status int) {
	v.t.Helper()
	timer := time.AfterFunc(time.Minute, func() { v.cmd.Process.Kill() })
	err := v.cmd.Wait()
	timer.Stop()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != status {
		v.t.Errorf("fc-vmm ended with %v, want %d", err, status)
	}
}

func deadline(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	t.Cleanup(cancel)
	return ctx
}

func TestContainerInVM(t *testing.T) {
	ctx := deadline(t)
	v, client, streams := boot(t, ctx, true)
	info, err := client.Info(ctx, &agentpb.InfoRequest{})
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%v: the agent began at %v of the guest's time", info, time.Duration(info.StartedNs))

	rootfs := filepath.Join(v.dir, "shared", "c", "rootfs")
	for _, d := range []string{"bin", "proc", "dev", "sys"} {
		if err := os.MkdirAll(filepath.Join(rootfs, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	busybox, err := os.ReadFile("/bin/busybox")
	if err != nil {
		t.Skip(err)
	}
	if err := os.WriteFile(filepath.Join(rootfs, "bin", "busybox"), busybox, 0o755); err != nil {
		t.Fatal(err)
	}
	spec, _ := json.Marshal(&specs.Spec{
		Root: &specs.Root{Path: agent.SharedDir + "/c/rootfs"},
		Process: &specs.Process{Cwd: "/", Args: []string{"/bin/busybox", "sh", "-c",
			"/bin/busybox cat; /bin/busybox cat /proc/meminfo /proc/mounts >&2; echo written >/file; exit 7"}},
		Mounts: []specs.Mount{
			{Destination: "/proc", Type: "proc", Source: "proc"},
			{Destination: "/dev", Type: "tmpfs", Source: "tmpfs"},
			{Destination: "/sys", Type: "sysfs", Source: "sysfs", Options: []string{"ro"}},
			{Destination: "/sys/fs/cgroup", Type: "cgroup", Source: "cgroup", Options: []string{"ro"}},
		},
		Linux: &specs.Linux{
			Namespaces: []specs.LinuxNamespace{{Type: "pid"}, {Type: "mount"}, {Type: "ipc"}, {Type: "uts"}, {Type: "cgroup"}},
			Resources:  &specs.LinuxResources{Devices: []specs.LinuxDeviceCgroup{{Access: "rwm"}}},
			Seccomp: &specs.LinuxSeccomp{DefaultAction: specs.ActAllow,
				Syscalls: []specs.LinuxSyscall{{Names: []string{"swapon"}, Action: specs.ActErrno}}},
		},
	})
	in, _ := streams.Expect()
	out, _ := streams.Expect()
	errs, _ := streams.Expect()
	began := time.Now()
	created, err := client.Create(ctx, &agentpb.CreateRequest{ContainerId: "c", Spec: spec,
		Streams: &agentpb.Streams{Stdin: in.ID(), Stdout: out.ID(), Stderr: errs.ID()}})
	if err != nil {
		t.Fatal(err)
	}
	if s := time.Duration(created.SetupNs); s <= 0 || s > time.Since(v.began) {
		t.Errorf("the agent says that it was connected %v after its start", s)
	}
	t.Logf("create took %v", time.Since(began))
	began = time.Now()
	if _, err := client.Start(ctx, &agentpb.StartRequest{ContainerId: "c"}); err != nil {
		t.Fatal(err)
	}
	t.Logf("start took %v", time.Since(began))
	take := func(e *agent.Expected) *net.UnixConn {
		conn, err := e.Wait(ctx)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close() })
		return conn.(*net.UnixConn)
	}
	stdin, stdout, stderr := take(in), take(out), take(errs)
	sent := make([]byte, 20<<20)
	rand.NewChaCha8([32]byte{3}).Read(sent)
	go func() { stdin.Write(sent); stdin.CloseWrite() }()
	began = time.Now()
	var seen bytes.Buffer
	read := make(chan error, 1)
	go func() { _, err := io.Copy(&seen, stderr); read <- err }()
	if got, err := io.ReadAll(stdout); err != nil || sha256.Sum256(got) != sha256.Sum256(sent) {
		t.Errorf("%d bytes of %d, %v", len(got), len(sent), err)
	}
	t.Logf("20 MiB there and back took %v", time.Since(began))
	wait, err := client.Wait(ctx, &agentpb.WaitRequest{ContainerId: "c"})
	if err != nil || wait.ExitStatus != 7 {
		t.Errorf("%v, %v", wait, err)
	}
	if err := <-read; err != nil || !strings.Contains(seen.String(), "MemAvailable") {
		t.Errorf("stderr %q, %v", seen.String(), err)
	}
	if strings.Contains(seen.String(), "nosuid") {
		t.Errorf("the root of the container does not honour setuid:\n%s", seen.String())
	}
	if _, err := client.Delete(ctx, &agentpb.DeleteRequest{ContainerId: "c"}); err != nil {
		t.Error(err)
	}
	if _, err := client.Shutdown(ctx, &agentpb.ShutdownRequest{}); err != nil {
		t.Error(err)
	}
	// As the shim does: what the container has written is the host's by now.
	v.cmd.Process.Kill()
	v.cmd.Wait()
	if !strings.Contains(v.console.String(), "Guest-boot-time = ") {
		t.Error("the boot timer was not told of the guest's boot; without CONFIG_DEVMEM in its kernel it cannot be")
	}
	if b, err := os.ReadFile(filepath.Join(rootfs, "file")); string(b) != "written\n" {
		t.Errorf("the container's file: %q, %v", b, err)
	}
}

func TestShimGoes(t *testing.T) {
	v, client, _ := boot(t, deadline(t), true)
	client.Close()
	v.exited(poweredOff)
}

func TestNobodyAnswers(t *testing.T) {
	v, _, _ := boot(t, deadline(t), false)
	v.exited(panicked)
	if !strings.Contains(v.console.String(), "dial the shim on host port 1024") {
		t.Error("the console does not say why")
	}
}
