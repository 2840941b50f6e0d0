package shim

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"testing"
	"time"

	"github.com/containerd/plugin"
	"golang.org/x/sys/unix"
)

func TestHandover(t *testing.T) {
	for name, tt := range map[string]struct {
		written   []byte
		abandoned bool
	}{"Start has ended": {[]byte{1}, false}, "Start was killed": {nil, true}} {
		t.Run(name, func(t *testing.T) {
			r, w, err := os.Pipe()
			if err != nil {
				t.Fatal(err)
			}
			defer r.Close()
			fd, err := unix.Dup(int(r.Fd())) // awaitHandover closes it
			if err != nil {
				t.Fatal(err)
			}
			t.Setenv(handoverEnv, fmt.Sprint(fd))
			abandoned := make(chan struct{})
			if err := awaitHandover(func() { close(abandoned) }); err != nil {
				t.Fatal(err)
			}
			_, _ = w.Write(tt.written)
			w.Close()
			select {
			case <-abandoned:
				if !tt.abandoned {
					t.Error("the shim gave up though it had been handed over")
				}
			case <-time.After(200 * time.Millisecond):
				if tt.abandoned {
					t.Error("the shim goes on though nobody knows of it")
				}
			}
		})
	}
	t.Setenv(handoverEnv, "x")
	if err := awaitHandover(func() {}); err == nil {
		t.Error("no number was taken for one")
	}
	os.Unsetenv(handoverEnv)
	if err := awaitHandover(nil); err != nil {
		t.Error(err)
	}
}

func TestGiveUp(t *testing.T) {
	cmd := exec.Command("sleep", "100")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if err := giveUp(cmd, errors.New("no cgroup")); err.Error() != "no cgroup" {
		t.Errorf("error %q", err)
	}
	if cmd.ProcessState == nil {
		t.Error("it was not reaped")
	}
}

// What the serving shim runs must not hold its socket. The test runs itself as that shim.
func TestSocketIsNotInherited(t *testing.T) {
	const ask = "FCSHIM_ASK_SOCKET"
	if os.Getenv(ask) != "" {
		// It fails for want of the plugins that it asks for.
		if _, err := TaskPlugin().InitFn(plugin.NewContext(context.Background(), plugin.NewPluginSet(), nil)); err == nil {
			t.Fatal("no error without a publisher")
		}
		if flags, err := unix.FcntlInt(socketFD, unix.F_GETFD, 0); err != nil || flags&unix.FD_CLOEXEC == 0 {
			t.Errorf("flags %#x, %v", flags, err)
		}
		return
	}
	f, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	cmd := exec.Command(os.Args[0], "-test.run=^"+t.Name()+"$")
	cmd.ExtraFiles = []*os.File{f, f}
	cmd.Env = append(os.Environ(), ask+"=1", "FCSHIM_PRIVATE=1", handoverEnv+"=4")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("%v: %s", err, out)
	}
}
