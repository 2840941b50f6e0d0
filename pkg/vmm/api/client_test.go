package api

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"

	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/config"
)

// serve has the bench answer on a socket.
func (b *bench) serve(t testing.TB) string {
	t.Helper()
	path := filepath.Join(b.dir, "api.sock")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- b.Serve(l) }()
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		b.Shutdown(ctx)
		if err := <-served; err != nil {
			t.Error(err)
		}
	})
	return path
}

func TestClient(t *testing.T) {
	b := newBench(t)
	c := NewClient(b.serve(t))
	defer c.Close()
	ctx := context.Background()
	check := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	args := "quiet"
	want := config.VM{
		Machine:           config.Machine{VCPUCount: 2, MemSizeMiB: 256, HugePages: "None"},
		BootSource:        &config.BootSource{KernelImagePath: b.dir + "/vmlinux", InitrdPath: b.dir + "/initrd", BootArgs: &args},
		Drives:            []config.Drive{{DriveID: "root", PathOnHost: b.dir + "/disk", IsRootDevice: true, IsReadOnly: true, CacheType: "Unsafe", IOEngine: "Sync", PartUUID: "a-1"}},
		Filesystems:       []config.Filesystem{{FSID: "s", Tag: "shared", PathOnHost: b.dir + "/shared", IsReadOnly: true}},
		NetworkInterfaces: []config.NetworkInterface{{IfaceID: "eth0", HostDevName: "tap0", GuestMAC: "02:00:00:00:00:01", MTU: 1400}},
		Vsock:             &config.Vsock{GuestCID: 3, UDSPath: b.dir + "/v.sock"},
		Entropy:           &config.Entropy{},
		Serial:            &config.Serial{SerialOutPath: b.dir + "/console", MaxBytes: 4096},
	}
	check(c.PutMachineConfig(ctx, want.Machine))
	check(c.PutBootSource(ctx, *want.BootSource))
	check(c.PutDrive(ctx, want.Drives[0]))
	check(c.PutFilesystem(ctx, want.Filesystems[0]))
	check(c.PutNetworkInterface(ctx, want.NetworkInterfaces[0]))
	check(c.PutVsock(ctx, *want.Vsock))
	check(c.PutEntropy(ctx, *want.Entropy))
	check(c.PutSerial(ctx, *want.Serial))
	if vm, err := c.VMConfig(ctx); err != nil || !reflect.DeepEqual(vm, want) {
		t.Errorf("got %+v, %v, want %+v", vm, err, want)
	}
	state := func(want config.State) {
		t.Helper()
		if s, err := c.State(ctx); err != nil || s != want {
			t.Fatalf("state %q, %v, want %q", s, err, want)
		}
	}
	state(config.NotStarted)
	check(c.Start(ctx))
	state(config.Running)
	check(c.Pause(ctx))
	state(config.Paused)
	check(c.Resume(ctx))
	state(config.Running)

	err := c.PutMachineConfig(ctx, config.Machine{VCPUCount: 99, MemSizeMiB: 64})
	var ae *Error
	if !errors.As(err, &ae) || ae.Status != 400 || ae.Fault != "vcpu_count is 99: want 1 to 32" || !errdefs.IsInvalidArgument(err) {
		t.Errorf("got %v", err)
	}
	if err := c.PutDrive(ctx, config.Drive{DriveID: "../vm/x?y"}); !errors.As(err, &ae) || ae.Status != 400 {
		t.Errorf("a drive id that is a path: %v", err)
	}
}

// A VMM that its guest has taken over may answer anything.
func TestClientDistrustsServer(t *testing.T) {
	head := func(status, length int) string {
		return fmt.Sprintf("HTTP/1.1 %d x\r\nContent-Length: %d\r\n\r\n", status, length)
	}
	tests := []struct{ name, answer, want string }{
		{"nothing", "", "EOF"},
		{"no HTTP", "hello\r\n\r\n", "malformed"},
		{"endless", head(200, 1<<30) + strings.Repeat("x", maxReply+1), "larger than"},
		{"no document", head(200, 2) + "xx", "no such document"},
		{"fault of many lines", head(400, 26) + `{"fault_message":"a\n\u001bb"}`, "a  b"},
		{"no fault", head(500, 2) + "{}", "HTTP status 500"},
		{"endless headers", "HTTP/1.1 200 x\r\n" + strings.Repeat("X: y\r\n", 1<<20), "header"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if strings.Contains(tt.answer, "fault_message") {
				tt.answer = strings.Replace(tt.answer, "26", fmt.Sprint(len(`{"fault_message":"a\n\u001bb"}`)), 1)
			}
			c := NewClientDial(func(context.Context) (net.Conn, error) {
				ours, theirs := net.Pipe()
				go func() {
					defer theirs.Close()
					http.ReadRequest(bufio.NewReader(theirs))
					io.WriteString(theirs, tt.answer)
				}()
				return ours, nil
			})
			_, err := c.State(context.Background())
			if err == nil || !strings.Contains(err.Error(), tt.want) || !strings.Contains(err.Error(), "GET /") {
				t.Errorf("got %v, want %q", err, tt.want)
			}
		})
	}
	c := NewClient("/nonexistent/api.sock")
	if err := c.Start(context.Background()); err == nil || !strings.Contains(err.Error(), "PUT /actions") {
		t.Errorf("no socket: %v", err)
	}
	silent := NewClientDial(func(context.Context) (net.Conn, error) { ours, _ := net.Pipe(); return ours, nil })
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Millisecond)
	defer cancel()
	if err := silent.Pause(ctx); !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "PATCH /vm") {
		t.Errorf("no answer: %v", err)
	}
}

func dial(t *testing.T, path string) net.Conn {
	t.Helper()
	c, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(5 * time.Second))
	return c
}

func TestSilentConnectionsMakeRoom(t *testing.T) {
	b := newBench(t)
	path := b.serve(t)
	for range 3 * maxConns {
		dial(t, path)
	}
	if s, err := NewClient(path).State(context.Background()); err != nil || s != config.NotStarted {
		t.Fatalf("beside silent connections: %q, %v", s, err)
	}
}

func TestBusyConnectionsAreKept(t *testing.T) {
	b := newBench(t)
	path := b.serve(t)
	c := NewClient(path)
	busy := make([]net.Conn, maxConns)
	for i := range busy {
		busy[i] = dial(t, path)
		io.WriteString(busy[i], "PUT /actions HTTP/1.1\r\nHost: x\r\nContent-Length: 17\r\nExpect: 100-continue\r\n\r\n")
		// The server asks for the body: it has the request.
		if line, err := bufio.NewReader(busy[i]).ReadString('\n'); err != nil || !strings.Contains(line, "100") {
			t.Fatalf("connection %d: %q, %v", i, line, err)
		}
	}
	_, err := c.State(context.Background())
	var ae *Error
	if !errors.As(err, &ae) || ae.Status != 503 || ae.Fault != "Too many open connections." {
		t.Errorf("one too many: %v", err)
	}
	io.WriteString(busy[0], `{"action_type":1}`)
	if line, err := bufio.NewReader(busy[0]).ReadString('\n'); err != nil || !strings.Contains(line, "400") {
		t.Errorf("a busy connection: %q, %v", line, err)
	}
	busy[1].Close()
	for deadline := time.Now().Add(5 * time.Second); ; {
		if _, err = c.State(context.Background()); err == nil || time.Now().After(deadline) {
			break
		}
	}
	if err != nil {
		t.Errorf("when one has gone: %v", err)
	}
}

// A start that takes long must not keep questions waiting.
func TestQuestionsDuringStart(t *testing.T) {
	b := newBench(t)
	release := make(chan struct{})
	entered := make(chan struct{})
	b.control.boot = func(context.Context, config.VM) (Machine, error) {
		close(entered)
		<-release
		return b.machine, nil
	}
	b.must(t, "PUT", "/boot-source", `{"kernel_image_path": "$D/vmlinux"}`)
	started := make(chan int)
	go func() {
		status, _ := b.do("PUT", "/actions", `{"action_type": "InstanceStart"}`)
		started <- status
	}()
	<-entered
	b.must(t, "GET", "/vm/config", "")
	if answer := b.must(t, "GET", "/", ""); answer != `{"id":"vm-1","state":"Not started","vmm_version":"1.2.3","app_name":"fc-vmm"}` {
		t.Errorf("GET / gave %s", answer)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Millisecond)
	defer cancel()
	if err := b.Retire(ctx); !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "waiting for the API request") {
		t.Errorf("retired during a start: %v", err)
	}
	paused := make(chan int)
	go func() {
		status, _ := b.do("PATCH", "/vm", `{"state": "Paused"}`)
		paused <- status
	}()
	close(release)
	if status := <-started; status != 204 {
		t.Errorf("start: %d", status)
	}
	if status := <-paused; status != 204 && status != 400 {
		t.Errorf("pause: %d", status)
	}
}

// After Retire nothing is booted any more.
func TestRetire(t *testing.T) {
	b := newBench(t)
	b.must(t, "PUT", "/boot-source", `{"kernel_image_path": "$D/vmlinux"}`)
	if err := b.Retire(context.Background()); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Millisecond)
	defer cancel()
	if err := b.Start(ctx); err == nil || len(b.booted) != 0 {
		t.Errorf("a start afterwards: %v, %d booted", err, len(b.booted))
	}
	b.must(t, "GET", "/", "")
}
