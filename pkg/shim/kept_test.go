package shim

import (
	"io"
	"net"
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

// TestReleaseOfAnswer: an fc-vmm that has sent its own end of the connection has nobody wait for that to close.
func TestReleaseOfAnswer(t *testing.T) {
	conn, f, err := connection()
	if err != nil {
		t.Fatal(err)
	}
	v := &vm{bundle: t.TempDir(), answer: conn, answered: make(chan struct{})}
	if err := unix.Sendmsg(int(f.Fd()), []byte("{}"), unix.UnixRights(int(f.Fd())), nil, 0); err != nil {
		t.Fatal(err)
	}
	f.Close()
	go v.hear(2)
	released := make(chan struct{})
	go func() { v.release(); close(released) }()
	select {
	case <-released:
	case <-time.After(time.Minute):
		t.Fatal("release still waits")
	}
	if v.refused != nil || len(v.kept) != 1 {
		t.Errorf("%v, %v", v.refused, v.kept)
	}
}

// TestReleaseWaits: a TAP has gone when release returns. A socket that lingers takes as long to close as a TAP, and longer.
func TestReleaseWaits(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	slow, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	const second = 1
	err = unix.SetsockoptLinger(slow, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1, Linger: second})
	if err == nil {
		err = unix.Connect(slow, &unix.SockaddrInet4{Port: l.Addr().(*net.TCPAddr).Port, Addr: [4]byte{127, 0, 0, 1}})
	}
	for err == nil { // until there is more than the other end takes, as nobody reads there
		err = unix.Sendto(slow, make([]byte, 1<<16), unix.MSG_DONTWAIT, nil)
	}
	if err != unix.EAGAIN {
		t.Fatal(err)
	}
	v := &vm{bundle: t.TempDir(), answer: new(net.UnixConn), answered: make(chan struct{}), kept: keptFiles{slow}}
	close(v.answered)
	begin := time.Now()
	v.release()
	if took := time.Since(begin); took < second*time.Second/2 {
		t.Errorf("it returned after %v", took)
	}
}
