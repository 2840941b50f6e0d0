package shim

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"testing"
	"time"

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
