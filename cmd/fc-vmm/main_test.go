package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/api"
	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/config"
)

// beMain has the test binary be fc-vmm.
const beMain = "FC_VMM_TEST_MAIN"

func TestMain(m *testing.M) {
	if os.Getenv(beMain) != "" {
		if os.Getenv(envProbe) != "" {
			go answerProbes()
		}
		os.Exit(run(os.Args[1:], os.Stdout, os.Stderr))
	}
	os.Exit(m.Run())
}

// process is a running fc-vmm.
type process struct {
	*exec.Cmd
	out *strings.Builder
}

func start(t *testing.T, files []*os.File, args ...string) *process {
	t.Helper()
	p := &process{exec.Command(os.Args[0], args...), &strings.Builder{}}
	p.Env = append(os.Environ(), beMain+"=1")
	p.Stdout, p.Stderr, p.ExtraFiles = p.out, p.out, files
	if err := p.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Process.Kill() })
	return p
}

// end waits for the process, and gives its status and what it has printed.
func (p *process) end(t *testing.T) (syscall.WaitStatus, string) {
	t.Helper()
	done := make(chan struct{})
	go func() {
		defer close(done)
		p.Wait()
	}()
	select {
	case <-done:
	case <-time.After(10 * time.Second):
		p.Process.Kill()
		<-done
		t.Fatalf("fc-vmm %q did not end:\n%s", p.Args, p.out)
	}
	return p.ProcessState.Sys().(syscall.WaitStatus), p.out.String()
}

// answers waits until the API does.
func answers(t *testing.T, sock string) *api.Client {
	t.Helper()
	c := api.NewClient(sock)
	t.Cleanup(c.Close)
	var err error
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		if _, err = c.State(context.Background()); err == nil {
			return c
		}
	}
	t.Fatal(err)
	return nil
}

// listens waits until a socket is listened on: it is there a moment before. The kernel is asked, so the server sees no connection.
func listens(t *testing.T, path string) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		sockets, err := os.ReadFile("/proc/thread-self/net/unix") // the test may be in a network namespace of its own
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(sockets)) {
			// Num RefCount Protocol Flags Type St Inode Path; the one flag is __SO_ACCEPTCON.
			if f := strings.Fields(line); len(f) == 8 && f[3] == "00010000" && f[7] == path {
				return
			}
		}
		if time.Now().After(deadline) {
			t.Fatalf("nothing listens on %s after 10 s", path)
		}
	}
}

func TestEndsAtOnce(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	here := write("here", "")
	bad := write("bad.json", "{\n\"boot-source\": {\"kernel_image_path\": 7}}")
	none := write("none.json", `{"boot-source": {"kernel_image_path": "`+dir+`/none"}}`)
	sock := filepath.Join(dir, "fc.sock")
	tests := []struct {
		args   []string
		status int
		output string
	}{
		{[]string{"--help"}, 0, "--parent-fd N"},
		{[]string{"-h"}, 0, "Exit status:"},
		{[]string{"--help"}, 0, "a panic is a reboot (0)"},
		{[]string{"--version"}, 0, "fc-vmm "},
		{[]string{"--nope"}, 1, "flag provided but not defined: -nope (--help lists the options)"},
		{[]string{"run"}, 1, `argument "run" is not expected`},
		{[]string{"--id", "a/b"}, 1, `--id is "a/b": want 1 to 64 letters`},
		{[]string{"--id="}, 1, "--id"},
		{[]string{"--level=loud"}, 1, `--level is "loud": want Off,`},
		{[]string{"--no-api"}, 1, "--config-file"},
		{[]string{"--no-api", "--config-file", none, "--api-sock", sock}, 1, "--api-sock"},
		{[]string{"--api-fd", "0", "--api-sock", sock}, 1, "--api-fd"},
		{[]string{"--api-fd=-1"}, 1, "--api-fd is -1"},
		{[]string{"--api-fd", "77"}, 1, "--api-fd is 77: want an inherited, listening socket"},
		{[]string{"--api-fd", "three"}, 1, "api-fd"},
		{[]string{"--start-time-us", "-1"}, 1, `"-1" for flag -start-time-us`},
		{[]string{"--parent-fd", "77"}, 1, "--parent-fd 77: bad file descriptor"},
		{[]string{"--parent-fd", "0"}, 1, "--parent-fd 0: want the read end of a pipe"},
		{[]string{"--api-sock", here}, 1, "that exists"},
		{[]string{"--api-sock", "/nope/fc.sock"}, 1, "/nope/fc.sock"},
		{[]string{"--api-sock", dir + strings.Repeat("/x", 60)}, 1, "want a path of 1 to 107"},
		{[]string{"--api-sock", "@fc"}, 1, "does not begin with @"},
		{[]string{"--api-sock", sock, "--log-path", dir}, 1, "--log-path"},
		{[]string{"--help"}, 0, "--metrics-path PATH"},
		{[]string{"--id", "a", "--id=b"}, 1, "flag -id: given more than once"},
		{[]string{"--boot-timer", "--boot-timer"}, 1, "boot-timer: given more than once"},
		{[]string{"--level="}, 1, "--level is empty: want Off,"},
		{[]string{"--log-path="}, 1, "--log-path is empty: want a path"},
		{[]string{"--metrics-path="}, 1, "--metrics-path is empty: want a path"},
		{[]string{"--api-sock", sock, "--metrics-path", dir}, 1, `: want a file or named pipe to write to (is a directory)`},
		{[]string{"--api-sock", sock, "--metrics-path", "/nope/m"}, 1, `--metrics-path is "/nope/m"`},
		{[]string{"--http-api-max-payload-size", "0"}, 1, "--http-api-max-payload-size is 0: want 1 to 1073741824 bytes"},
		{[]string{"--http-api-max-payload-size", "2G"}, 1, `"2G" for flag -http-api-max-payload-size`},
		{[]string{"--seccomp-filter", here}, 1, "--seccomp-filter: fc-vmm has no seccomp filters yet"},
		{[]string{"--seccomp-filter", here, "--no-seccomp"}, 1, "--no-seccomp: want no --seccomp-filter"},
		{[]string{"--no-seccomp=yes"}, 1, "-no-seccomp"},
		{[]string{"--no-seccomp", "--version"}, 0, "fc-vmm "},
		{[]string{"--api-sock", sock, "--config-file", "/nope"}, 1, "/nope: no such file"},
		{[]string{"--api-sock", sock, "--config-file", bad}, 1, "kernel_image_path is 7: want a string at line 2 column 38"},
		{[]string{"--no-api", "--config-file", none}, 1, "kernel_image_path is"},
		{[]string{"--api-sock", sock, "--config-fd", "77"}, 1, "--config-fd is 77: want an inherited, connected socket"},
		{[]string{"--api-sock", sock, "--config-fd", "0"}, 1, "--config-fd is 0: want an inherited, connected socket"},
		{[]string{"--config-fd=-1"}, 1, "--config-fd is -1"},
		{[]string{"--config-fd", "3", "--config-file", none}, 1, "--config-fd: want no --config-file"},
		{[]string{"--api-sock", sock, "--metadata", "/nope"}, 1, "--metadata: open /nope: no such file"},
		{[]string{"--api-sock", sock, "--metadata", bad + "x"}, 1, "--metadata"},
		{[]string{"--api-sock", sock, "--metadata", write("bad.txt", "{")}, 1, "not a JSON text"},
		{[]string{"--api-sock", sock, "--metadata", none, "--mmds-size-limit", "10"}, 1, "--mmds-size-limit 10: The MMDS patch request doesn't fit."},
		{[]string{"--api-sock", sock, "--metadata", none, "--http-api-max-payload-size", "11"}, 1, "--mmds-size-limit 11: The MMDS patch request doesn't fit."},
		{[]string{"--api-sock", sock, "--metadata="}, 1, "--metadata is empty"},
		{[]string{"--mmds-size-limit", "-1"}, 1, "--mmds-size-limit is -1: want 0 to 1073741824"},
		{[]string{"--http-api-max-payload-size", "0"}, 1, "--http-api-max-payload-size is 0: want 1 to"},
	}
	for _, tt := range tests {
		t.Run(strings.Join(tt.args, " "), func(t *testing.T) {
			ws, out := start(t, nil, tt.args...).end(t)
			if ws.ExitStatus() != tt.status || !strings.Contains(out, tt.output) {
				t.Errorf("status %d, want %d, and output with %q:\n%s", ws.ExitStatus(), tt.status, tt.output, out)
			}
			if tt.status != 0 && strings.Count(out, "\n") != 1 {
				t.Errorf("more than a line:\n%s", out)
			}
			if _, err := os.Lstat(sock); err == nil {
				t.Error("the socket was left behind")
			}
		})
	}
}

func TestServesUntilTold(t *testing.T) {
	for _, sig := range []syscall.Signal{syscall.SIGTERM, syscall.SIGINT} {
		t.Run(sig.String(), func(t *testing.T) {
			dir := t.TempDir()
			sock, logPath := filepath.Join(dir, "fc.sock"), filepath.Join(dir, "log")
			p := start(t, nil, "--api-sock="+sock, "--id", "vm-7", "--log-path", logPath)
			c := answers(t, sock)
			if st, err := os.Stat(sock); err != nil || st.Mode().Perm()&0o077 != 0 {
				t.Errorf("socket: %v, %v", st.Mode(), err)
			}
			if i, err := c.Info(context.Background()); err != nil || i.ID != "vm-7" || i.State != config.NotStarted {
				t.Errorf("got %+v, %v", i, err)
			}
			if err := c.Start(context.Background()); err == nil || !strings.Contains(err.Error(), "without kernel") {
				t.Errorf("start of nothing: %v", err)
			}
			p.Process.Signal(sig)
			ws, out := p.end(t)
			if !ws.Exited() || ws.ExitStatus() != 0 || out != "" {
				t.Errorf("ended with %v:\n%s", ws, out)
			}
			if _, err := os.Lstat(sock); err == nil {
				t.Error("the socket was left behind")
			}
			if text, err := os.ReadFile(logPath); err != nil || !strings.Contains(string(text), "without kernel") {
				t.Errorf("log: %q, %v", text, err)
			}
		})
	}
}

// Clients wait while the configuration file is applied: none can change the machine, or start it, before.
func TestFileComesFirst(t *testing.T) {
	for _, c := range []struct {
		name, text string // "" sends a signal instead
		status     int
	}{
		{"bad file", "{}", 1},
		{"signal", "", 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			sock, file := filepath.Join(dir, "fc.sock"), filepath.Join(dir, "vm.json")
			if err := syscall.Mkfifo(file, 0o600); err != nil {
				t.Fatal(err)
			}
			p := start(t, nil, "--api-sock", sock, "--config-file", file)
			var conn net.Conn
			var err error
			for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
				if conn, err = net.Dial("unix", sock); err == nil {
					break
				}
			}
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			conn.SetDeadline(time.Now().Add(300 * time.Millisecond))
			fmt.Fprint(conn, "GET / HTTP/1.1\r\nHost: x\r\n\r\n")
			if n, err := conn.Read(make([]byte, 1)); n != 0 || !errors.Is(err, os.ErrDeadlineExceeded) {
				t.Errorf("an answer before the file was there: %d bytes, %v", n, err)
			}
			if c.text == "" {
				p.Process.Signal(syscall.SIGTERM)
			} else if err := os.WriteFile(file, []byte(c.text), 0); err != nil {
				t.Fatal(err)
			}
			if ws, out := p.end(t); ws.ExitStatus() != c.status {
				t.Errorf("ended with %v, want %d:\n%s", ws, c.status, out)
			}
			if _, err := os.Lstat(sock); err == nil {
				t.Error("the socket was left behind")
			}
		})
	}
}

func TestInheritedSocket(t *testing.T) {
	sock := filepath.Join(t.TempDir(), "fc.sock")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: sock, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	f, err := l.File()
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	p := start(t, []*os.File{f}, "--api-fd", "3")
	// No wait is needed: the socket listens already.
	if s, err := api.NewClient(sock).State(context.Background()); err != nil || s != config.NotStarted {
		t.Errorf("state %q, %v", s, err)
	}
	p.Process.Signal(syscall.SIGTERM)
	if ws, out := p.end(t); ws.ExitStatus() != 0 {
		t.Errorf("ended with %v:\n%s", ws, out)
	}
	if _, err := os.Lstat(sock); err != nil {
		t.Errorf("it removed a socket that is not its own: %v", err)
	}
}

func TestDiesWithParent(t *testing.T) {
	sock := filepath.Join(t.TempDir(), "fc.sock")
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	p := start(t, []*os.File{r}, "--parent-fd", "3", "--api-sock", sock)
	r.Close()
	answers(t, sock)
	// Not even a stopped process survives.
	p.Process.Signal(syscall.SIGSTOP)
	w.Close()
	if ws, out := p.end(t); !ws.Signaled() || ws.Signal() != syscall.SIGKILL {
		t.Errorf("ended with %v:\n%s", ws, out)
	}

	r, w, err = os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	w.Close()
	defer r.Close()
	if ws, out := start(t, []*os.File{r}, "--parent-fd", "3", "--api-sock", sock+"2").end(t); ws.ExitStatus() != 1 || !strings.Contains(out, "the parent has gone") {
		t.Errorf("with a pipe that has ended: %v:\n%s", ws, out)
	}
}

// The message of a wrong value gets through to the client, and the host's side of it is looked at at once.
func TestRefusalsName(t *testing.T) {
	sock := filepath.Join(t.TempDir(), "fc.sock")
	start(t, nil, "--api-sock", sock)
	answers(t, sock)
	out, err := exec.Command("curl", "-s", "--unix-socket", sock, "-X", "PUT", "http://localhost/boot-source",
		"-d", `{"kernel_image_path": "/nope"}`, "-w", " %{http_code}").Output()
	if err != nil {
		t.Skipf("no curl: %v", err)
	}
	var status int
	var f map[string]string
	body := string(out[:max(len(out)-4, 0)])
	fmt.Sscan(strings.TrimPrefix(string(out), body), &status)
	if err := json.Unmarshal([]byte(body), &f); err != nil || status != 400 ||
		f["fault_message"] != `kernel_image_path is "/nope": want a readable file (no such file or directory)` {
		t.Errorf("got %q, %v", out, err)
	}
}
