package harness

import (
	"fmt"
	"io"
	"strings"
	"syscall"
	"testing"
	"time"
)

// Session is a shell in a container that nerdctl runs in the foreground, so that a test can do many things in one container without
// an exec for each.
type Session struct {
	// Name is the container's.
	Name string

	stdin io.WriteCloser
	out   Buffer
	n     int
}

// Session starts a container whose first process is a shell, which ends with the test.
func (n *Nerdctl) Session(t testing.TB, flags ...string) *Session {
	t.Helper()
	name, argv := n.RunArgs(t, append([]string{"-i"}, flags...), "sh")
	s := &Session{Name: name}
	cmd := n.command(argv)
	cmd.Stdout, cmd.Stderr = &s.out, &s.out
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	var err error
	if s.stdin, err = cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() {
		_ = cmd.Wait()
		close(ended)
	}()
	t.Cleanup(func() {
		// The shell ends with its input, and nerdctl with the shell: it has FIFOs to remove.
		_ = s.stdin.Close()
		select {
		case <-ended:
		case <-time.After(commandTimeout):
			t.Errorf("the shell in %s had not ended %v after its input", name, commandTimeout)
			_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
			<-ended
		}
	})
	s.Do(t, "exec 2>&1")
	return s
}

// Do has the shell run a script and returns what that printed, and its status if that is not 0.
func (s *Session) Do(t testing.TB, script string) string {
	t.Helper()
	s.n++
	before := len(s.out.String())
	// The mark is not in what is typed.
	if _, err := fmt.Fprintf(s.stdin, "{ %s\n}; echo \"status $? of $((%d+0))\" | tr ' ' -\n", script, s.n); err != nil {
		t.Fatalf("the shell in %s does not read: %v; it said:\n%s", s.Name, err, clip(s.out.String()))
	}
	mark := fmt.Sprintf("-of-%d\n", s.n)
	s.out.Await(t, mark, commandTimeout)
	said, _, _ := strings.Cut(s.out.String()[before:], mark)
	i := strings.LastIndex(said, "status-")
	if status := said[i+len("status-"):]; status != "0" {
		return said[:i] + "status " + status + "\n"
	}
	return said[:i]
}
