package shim

import (
	"io"
	"os"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// TestKeptFiles: what comes with fc-vmm's answer is kept, up to what there is room for, and closed at the end.
func TestKeptFiles(t *testing.T) {
	var ours, theirs [3]*os.File
	var fds []int
	for i := range ours {
		var err error
		if ours[i], theirs[i], err = os.Pipe(); err != nil {
			t.Fatal(err)
		}
		defer ours[i].Close()
		fds = append(fds, int(theirs[i].Fd()))
	}
	for _, tt := range []struct {
		text       string
		sent, kept int
		ok         func(error) bool
	}{
		{"{}", 0, 0, func(err error) bool { return err == nil }},
		{"{}", 2, 2, func(err error) bool { return err == nil }},
		{"{}", 3, 2, func(err error) bool { return err == nil }},
		{`{"fault_message": "no"}`, 1, 1, errdefs.IsUnavailable},
		{"no", 3, 2, func(err error) bool { return err == errNoAnswer }},
	} {
		conn, f, err := connection()
		if err != nil {
			t.Fatal(err)
		}
		if err := unix.Sendmsg(int(f.Fd()), []byte(tt.text), unix.UnixRights(fds[:tt.sent]...), nil, 0); err != nil {
			t.Fatal(err)
		}
		f.Close()
		kept, err := readStartAnswer(conn, 2)
		conn.Close()
		if !tt.ok(err) || len(kept) != tt.kept {
			t.Errorf("%s with %d files: %v, %d of them", tt.text, tt.sent, err, len(kept))
		}
		for _, fd := range kept {
			if flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); err != nil || flags&unix.FD_CLOEXEC == 0 {
				t.Errorf("children get descriptor %d (%v)", fd, err)
			}
		}
		kept.close()
	}
	for i := range theirs {
		theirs[i].Close()
		_ = ours[i].SetReadDeadline(time.Now().Add(5 * time.Second))
		if _, err := ours[i].Read(make([]byte, 1)); err != io.EOF {
			t.Errorf("file %d is still open: %v", i, err)
		}
	}
}
