package shim

import (
	"bytes"
	"context"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containerd/containerd/api/types/task"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/containerd/v2/pkg/shim"
	"github.com/containerd/ttrpc"
	"github.com/containerd/typeurl/v2"
	"github.com/opencontainers/runtime-spec/specs-go/features"
	"golang.org/x/sys/unix"
)

func stopContext(bundle string) context.Context {
	ctx := namespaces.WithNamespace(context.Background(), "test")
	return context.WithValue(ctx, shim.OptsKey{}, shim.Opts{BundlePath: bundle})
}

func TestStopCleansUp(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root, for mounts")
	}
	bundle := t.TempDir()
	for _, d := range []string{rootfsName, sharedName} {
		if err := os.Mkdir(filepath.Join(bundle, d), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := unix.Mount("tmpfs", filepath.Join(bundle, d), "tmpfs", 0, ""); err != nil {
			t.Fatal(err)
		}
	}
	// A VMM that nobody's pipe ends, and a shell that just happens to be here.
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("unix", filepath.Join(bundle, apiSocket))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	sock, err := l.(*net.UnixListener).File()
	if err != nil {
		t.Fatal(err)
	}
	defer sock.Close()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	defer r.Close()
	vmm := exec.Command(self, "--id", "c1", "--api-fd", "3", "--parent-fd", "4")
	vmm.Dir, vmm.ExtraFiles = bundle, []*os.File{sock, r}
	shell := exec.Command("sleep", "100")
	shell.Dir = bundle
	for _, c := range []*exec.Cmd{vmm, shell} {
		if err := c.Start(); err != nil {
			t.Fatal(err)
		}
		defer func() { _ = c.Process.Kill(); _ = c.Wait() }()
	}
	dead := filepath.Join(t.TempDir(), "shim.sock")
	if err := os.WriteFile(dead, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{addressFile: "unix://" + dead, vsockSocket: "", vsockSocket + "_1024": ""} {
		if err := os.WriteFile(filepath.Join(bundle, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	m := NewManager("v1")
	begin := time.Now()
	st, err := m.Stop(stopContext(bundle), "c1")
	if err != nil {
		t.Fatal(err)
	}
	if st.Pid != vmm.Process.Pid || st.ExitStatus != 137 || st.ExitedAt.Before(begin) {
		t.Errorf("%+v", st)
	}
	_ = vmm.Wait()
	if shell.Process.Signal(unix.Signal(0)) != nil {
		t.Error("a process that is no VMM was killed")
	}
	entries, _ := os.ReadDir(bundle)
	var left []string
	for _, e := range entries {
		left = append(left, e.Name())
	}
	if !slices.Equal(left, []string{addressFile, rootfsName, sharedName}) || exists(dead) {
		t.Errorf("left: %v", left)
	}
	for _, d := range []string{rootfsName, sharedName} {
		if err := os.Remove(filepath.Join(bundle, d)); err != nil {
			t.Errorf("still mounted: %v", err)
		}
	}
	// Again, with an exit that the shim had noted; and without a bundle.
	at := time.Now().Add(-time.Minute)
	if err := writeExit(bundle, processState{pid: 7, exitStatus: 3, exitedAt: at}); err != nil {
		t.Fatal(err)
	}
	if st, err := m.Stop(stopContext(bundle), "c1"); err != nil || st.ExitStatus != 3 || st.Pid != 7 || !st.ExitedAt.Equal(at) {
		t.Errorf("%+v %v", st, err)
	}
	if st, err := m.Stop(stopContext(filepath.Join(bundle, "gone")), "c1"); err != nil || st.ExitStatus != 137 {
		t.Errorf("%+v %v", st, err)
	}
}

// serveShim has a world's shim answer at an address that its bundle names, as containerd's library would, to the shim's end.
func (w *world) serveShim() (sock string) {
	w.Helper()
	sock = filepath.Join(w.TempDir(), "s")
	l, err := net.Listen("unix", sock)
	if err != nil {
		w.Fatal(err)
	}
	server, err := ttrpc.NewServer(ttrpc.WithUnaryServerInterceptor(w.UnaryServerInterceptor()))
	if err != nil {
		w.Fatal(err)
	}
	if err := w.RegisterTTRPC(server); err != nil {
		w.Fatal(err)
	}
	go func() { _ = server.Serve(w.ctx, l) }()
	go func() {
		<-w.sd.Done()
		server.Close()
	}()
	w.write(filepath.Join(w.bundle, addressFile), "unix://"+sock)
	return sock
}

// A shim that containerd has lost, by a broken connection or by its own death, must not live on.
func TestStopEndsALostShim(t *testing.T) {
	for name, run := range map[string]func(w *world){
		"before Create": func(*world) {},
		"with a task":   func(w *world) { w.run(nil) },
		"task not started": func(w *world) {
			if err := w.create(nil); err != nil {
				w.Fatal(err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, "", "sleep", "100")
			run(w)
			sock := w.serveShim()
			begin := time.Now()
			if st, err := NewManager("").Stop(stopContext(w.bundle), cid); err != nil || st.ExitStatus != 137 {
				t.Errorf("%+v %v", st, err)
			}
			if d := time.Since(begin); d > 4*time.Second {
				t.Errorf("it took %v", d)
			}
			select {
			case <-w.sd.Done():
			case <-time.After(time.Second):
				t.Error("the shim lives on")
			}
			if exists(sock) {
				t.Error("its socket is left")
			}
			if err := os.Remove(filepath.Join(w.bundle, addressFile)); err != nil {
				t.Error(err)
			}
		})
	}
}

// `delete` for a container whose shim has others takes nothing from those.
func TestStopSparesOthers(t *testing.T) {
	w := newWorld(t, "", "sleep", "100")
	w.run(nil)
	sock := w.serveShim()
	other := t.TempDir()
	w.write(filepath.Join(other, addressFile), "unix://"+sock)
	if _, err := NewManager("").Stop(stopContext(other), "c2"); err != nil || !exists(sock) {
		t.Errorf("%v", err)
	}
	if st := w.state(""); st.Status != task.Status_RUNNING {
		t.Errorf("the other's task: %v", st)
	}
	if err := os.Remove(filepath.Join(w.bundle, addressFile)); err != nil {
		t.Error(err)
	}
}

// A shim that accepts and says nothing does not hold `delete` for longer than containerd waits for it.
func TestStopOfASilentShim(t *testing.T) {
	bundle := t.TempDir()
	sock := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", sock)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if err := os.WriteFile(filepath.Join(bundle, addressFile), []byte("unix://"+sock), 0o600); err != nil {
		t.Fatal(err)
	}
	begin := time.Now()
	if _, err := NewManager("").Stop(stopContext(bundle), "c1"); err == nil || !strings.Contains(err.Error(), "does not answer within 3s") || !exists(sock) {
		t.Errorf("error %v; is the socket there: %v", err, exists(sock))
	}
	if d := time.Since(begin); d > 4500*time.Millisecond {
		t.Errorf("it took %v", d)
	}
	if _, err := NewManager("").Stop(stopContext(bundle), "../c1"); err == nil {
		t.Error("an id that is a path was taken")
	}
}

func TestInfo(t *testing.T) {
	info, err := NewManager("v1.2").Info(context.Background(), strings.NewReader("whatever"))
	if err != nil {
		t.Fatal(err)
	}
	var f features.Features
	if err := typeurl.UnmarshalTo(info.Features, &f); err != nil {
		t.Fatal(err)
	}
	if info.Name != RuntimeName || info.Version.Version != "v1.2" || !slices.Contains(f.MountOptions, "rro") {
		t.Errorf("%v %v", info, f)
	}
}

func TestGroup(t *testing.T) {
	dir := t.TempDir()
	for text, want := range map[string]string{
		`{}`: "c1",
		`{"annotations":{"io.kubernetes.cri.sandbox-id":"pod"}}`: "pod",
	} {
		name := filepath.Join(dir, "config.json")
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if g, err := groupOf(name, "c1"); err != nil || g != want {
			t.Errorf("%s: %s %v", text, g, err)
		}
	}
}

// A mount of the serving shim must not be seen outside, and one made outside must be seen by it.
func TestPrivateNamespace(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root, for mounts")
	}
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Unmount(dir, unix.MNT_DETACH) }()
	if err := unix.Mount("", dir, "", unix.MS_SHARED, ""); err != nil {
		t.Fatal(err)
	}
	for _, d := range []string{"in", "out"} {
		if err := os.Mkdir(filepath.Join(dir, d), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	var out bytes.Buffer
	cmd := exec.Command("sh", "-c", "mount -t tmpfs tmpfs in && touch in/x && read line && ls in out")
	cmd.Dir, cmd.Stdout, cmd.Stderr = dir, &out, &out
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := startPrivate(cmd); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("tmpfs", filepath.Join(dir, "out"), "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Unmount(filepath.Join(dir, "out"), unix.MNT_DETACH) }()
	if err := os.WriteFile(filepath.Join(dir, "out", "y"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	_, _ = stdin.Write([]byte("go\n"))
	if err := cmd.Wait(); err != nil {
		t.Fatal(err, out.String())
	}
	if got := strings.Fields(out.String()); !slices.Equal(got, []string{"in:", "x", "out:", "y"}) {
		t.Errorf("seen inside: %v", got)
	}
	if exists(filepath.Join(dir, "in", "x")) {
		t.Error("a mount has leaked out")
	}
}
