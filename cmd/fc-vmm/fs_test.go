package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/config"
	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/virtio/vhostuser"
	vt "github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/virtio/virtiotest"
)

// TestFSOptions: what cannot be is told by its option, and nothing is made.
func TestFSOptions(t *testing.T) {
	dir := t.TempDir()
	sock, file := filepath.Join(dir, "fs.sock"), filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	good := func(more ...string) []string {
		return append([]string{"fs", "--shared-dir", dir, "--socket-path", sock}, more...)
	}
	long := strings.Repeat("x", 65)
	for _, tt := range []struct {
		args   []string
		status int
		output string
	}{
		{[]string{"fs", "--help"}, 0, "--shared-dir DIR"},
		{[]string{"fs"}, 1, "fc-vmm fs: --shared-dir is missing: want a folder"},
		{[]string{"fs", "--shared-dir", dir}, 1, "want either --socket-path or --fd"},
		{good("--fd", "7"), 1, "want either --socket-path or --fd"},
		{[]string{"fs", "--shared-dir", dir, "--fd", "7"}, 1, "--fd is 7: want an inherited, listening socket"},
		{[]string{"fs", "--shared-dir", dir, "--fd", "seven"}, 1, "invalid value"},
		{[]string{"fs", "--shared-dir", dir, "--socket-path", "@x"}, 1, `--socket-path is "@x"`},
		{[]string{"fs", "--shared-dir", dir, "--socket-path", file}, 1, "and that exists: want a path where nothing is"},
		{[]string{"fs", "--shared-dir", dir, "--socket-path", filepath.Join(dir, "none", "sock")}, 1, "no such file or directory"},
		{[]string{"fs", "--shared-dir", filepath.Join(dir, "none"), "--socket-path", sock}, 1, "--shared-dir: shared folder"},
		{[]string{"fs", "--shared-dir", file, "--socket-path", sock}, 1, "not a directory"},
		{good("--readonly", "--readonly"), 1, "given more than once"},
		{good("more"), 1, `argument "more" is not expected`},
		{good("--id", "a/b"), 1, `--id is "a/b"`},
		{good("--fs-id", "a-b"), 1, `--fs-id is "a-b"`},
		{good("--fs-id", long), 1, "--fs-id is"},
		{good("--tag", long), 1, "--tag is"},
		{good("--metrics-path", dir), 1, "--metrics-path is"},
		{good("--parent-fd", "9"), 1, "--parent-fd 9"},
		{good("--sandbox", "none"), 1, "flag provided but not defined: -sandbox"},
	} {
		ws, out := start(t, nil, tt.args...).end(t)
		if ws.ExitStatus() != tt.status || !strings.Contains(out, tt.output) {
			t.Errorf("%q: status %d, want %d; %q in\n%s", tt.args, ws.ExitStatus(), tt.status, tt.output, out)
		}
		if _, err := os.Lstat(sock); err == nil {
			t.Fatalf("%q: the socket is there", tt.args)
		}
	}
}

// TestFSProcess talks to a file server as a VMM does, and ends it in each way.
func TestFSProcess(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root")
	}
	dir := t.TempDir()
	sock, numbers := filepath.Join(dir, "fs.sock"), filepath.Join(dir, "metrics")
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	p := start(t, []*os.File{r}, "fs", "--shared-dir", dir, "--socket-path", sock, "--metrics-path", numbers, "--fs-id", "files", "--parent-fd", "3")
	r.Close()
	listens(t, sock)
	if fi, err := os.Stat(sock); err != nil || fi.Mode().Perm() != 0o700 {
		t.Errorf("the socket: %v, %v", fi, err)
	}
	// Two VMMs, one after the other; a request of nonsense is a request.
	for n := 1; n <= 2; n++ {
		d, err := vhostuser.NewFilesystem(t.Context(), config.Filesystem{FSID: "files", Tag: "files", Socket: sock})
		if err != nil {
			t.Fatal(err)
		}
		m := vt.Start(t, d, 1<<20)
		m.Do(m.Rings[1], []vt.Span{m.Arena.Alloc(40)}, []vt.Span{m.Arena.Alloc(64)})
		if err := d.Close(); err != nil {
			t.Error(err)
		}
	}
	if err := p.Process.Signal(unix.SIGUSR1); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		b, _ := os.ReadFile(numbers)
		if bytes.Contains(b, []byte(`"fs_files":{`)) && bytes.Contains(b, []byte(`"request_count":2`)) {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("metrics: %s", b)
		}
	}
	w.Close()
	if ws, out := p.end(t); !ws.Signaled() || ws.Signal() != syscall.SIGKILL {
		t.Errorf("when its parent has gone: %v\n%s", ws, out)
	}
	if err := os.Remove(sock); err != nil {
		t.Error(err) // killed, so it is there
	}
	for _, sig := range []unix.Signal{unix.SIGTERM, unix.SIGINT} {
		p := start(t, nil, "fs", "--shared-dir", dir, "--socket-path", sock, "--readonly")
		listens(t, sock)
		if err := p.Process.Signal(sig); err != nil {
			t.Fatal(err)
		}
		if ws, out := p.end(t); ws.ExitStatus() != 0 {
			t.Errorf("%v: %v\n%s", sig, ws, out)
		}
		if _, err := os.Lstat(sock); err == nil {
			t.Errorf("%v: the socket is left", sig)
		}
	}
}
