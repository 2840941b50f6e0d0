package nsthread

import (
	"errors"
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

func link(t *testing.T, name string) string {
	t.Helper()
	s, err := os.Readlink(name)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// TestDo has many functions run elsewhere: none of it may stick to the process, whose first thread is its face.
func TestDo(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root, for namespaces")
	}
	var ns *os.File
	err := Do(func() (err error) {
		if err = unix.Unshare(unix.CLONE_NEWNET); err == nil {
			ns, err = os.Open("/proc/thread-self/ns/net")
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close()
	own, there := link(t, "/proc/self/ns/net"), ""
	failure := errors.New("f's own")
	for range 500 {
		err := Do(func() error {
			there = link(t, "/proc/thread-self/ns/net")
			return failure
		}, Namespace{File: ns, Kind: unix.CLONE_NEWNET})
		if !errors.Is(err, failure) || there == own {
			t.Fatalf("it ran in %s, %v", there, err)
		}
		if now := link(t, "/proc/self/ns/net"); now != own {
			t.Fatalf("the process is in %s now", now)
		}
	}
	if err := Do(func() error { return nil }, Namespace{File: ns, Kind: unix.CLONE_NEWNS}); err == nil {
		t.Error("a network entered as a mount namespace")
	}
}
