package fscheck

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// patience bounds waits for what should come at once.
const patience = 30 * time.Second

func fifo(t *testing.T, dir string) {
	path := filepath.Join(dir, "fifo")
	must(t, unix.Mkfifo(path, 0o640))
	if st := lstat(t, path); st.Mode != unix.S_IFIFO|0o640 {
		t.Errorf("mode %o", st.Mode)
	}
	got := make(chan string, 1)
	go func() {
		b, err := os.ReadFile(path)
		got <- fmt.Sprintf("%s %v", b, err)
	}()
	must(t, os.WriteFile(path, []byte("through"), 0))
	select {
	case s := <-got:
		if s != "through <nil>" {
			t.Error(s)
		}
	case <-time.After(patience):
		t.Error("nothing came through the fifo")
	}
}

func devices(t *testing.T, dir string) {
	for _, d := range []struct {
		name         string
		mode         uint32
		major, minor uint32
	}{
		{"null", unix.S_IFCHR | 0o666, 1, 3}, {"far", unix.S_IFCHR | 0o600, 4095, 0xabcde}, {"block", unix.S_IFBLK | 0o600, 7, 300},
	} {
		path := filepath.Join(dir, d.name)
		must(t, unix.Mknod(path, d.mode, int(unix.Mkdev(d.major, d.minor))))
		if st := lstat(t, path); st.Mode != d.mode&^0o022 || st.Rdev != unix.Mkdev(d.major, d.minor) {
			t.Errorf("%s: mode %o, device %d:%d", d.name, st.Mode, unix.Major(st.Rdev), unix.Minor(st.Rdev))
		}
	}
	// A device of the container's own opens.
	if err := os.WriteFile(filepath.Join(dir, "null"), []byte("x"), 0); err != nil {
		t.Errorf("write to a null device made here: %v", err)
	}
	f, err := os.Open(filepath.Join(dir, "far"))
	if err == nil {
		f.Close()
		t.Error("a device that is not the container's opens")
	}
	// Whiteouts of overlayfs are nobody's to make.
	_ = unix.Mknod(filepath.Join(dir, "white"), unix.S_IFCHR, 0)
}

func sockets(t *testing.T, dir string) {
	path := filepath.Join(dir, "sock")
	l, err := net.Listen("unix", path)
	must(t, err)
	defer l.Close()
	if st := lstat(t, path); st.Mode&unix.S_IFMT != unix.S_IFSOCK {
		t.Errorf("mode %o", st.Mode)
	}
	go func() {
		if c, err := l.Accept(); err == nil {
			c.Write([]byte("hello"))
			c.Close()
		}
	}()
	c, err := net.DialTimeout("unix", path, patience)
	must(t, err)
	defer c.Close()
	buf := make([]byte, 5)
	if n, err := c.Read(buf); string(buf[:n]) != "hello" {
		t.Errorf("%q, %v", buf[:n], err)
	}
}

func flock(t *testing.T, dir string) {
	path := filepath.Join(dir, "f")
	a, b := open(t, path, unix.O_CREAT|unix.O_RDWR), open(t, path, unix.O_RDWR)
	must(t, unix.Flock(a, unix.LOCK_EX))
	wants(t, "a second exclusive lock", unix.Flock(b, unix.LOCK_EX|unix.LOCK_NB), unix.EWOULDBLOCK)
	must(t, unix.Flock(a, unix.LOCK_SH))
	must(t, unix.Flock(b, unix.LOCK_SH|unix.LOCK_NB))
	must(t, unix.Flock(b, unix.LOCK_UN))
	must(t, unix.Flock(a, unix.LOCK_EX|unix.LOCK_NB))
	got := make(chan error, 1)
	go func() { got <- unix.Flock(b, unix.LOCK_EX) }()
	must(t, unix.Flock(a, unix.LOCK_UN))
	select {
	case err := <-got:
		must(t, err)
	case <-time.After(patience):
		t.Error("the lock was let go, and who waits does not get it")
	}
}

// recordLocks are fcntl(2)'s: of a process and of an open file.
func recordLocks(t *testing.T, dir string) {
	path := filepath.Join(dir, "f")
	write(t, path, "0123456789")
	a, b := open(t, path, unix.O_RDWR), open(t, path, unix.O_RDWR)
	whole := func() *unix.Flock_t { return &unix.Flock_t{Type: unix.F_WRLCK, Start: 2, Len: 3} }
	must(t, unix.FcntlFlock(uintptr(a), unix.F_OFD_SETLK, whole()))
	wants(t, "the same range of another open file", unix.FcntlFlock(uintptr(b), unix.F_OFD_SETLK, whole()), unix.EAGAIN)
	must(t, unix.FcntlFlock(uintptr(b), unix.F_OFD_SETLK, &unix.Flock_t{Type: unix.F_WRLCK, Start: 5, Len: 3}))
	must(t, unix.FcntlFlock(uintptr(a), unix.F_OFD_SETLK, &unix.Flock_t{Type: unix.F_UNLCK}))
	must(t, unix.FcntlFlock(uintptr(b), unix.F_OFD_SETLK, &unix.Flock_t{Type: unix.F_UNLCK}))
	must(t, unix.FcntlFlock(uintptr(a), unix.F_SETLK, whole()))
	child(t, "lock", path)
}

// childLock finds the parent's lock.
func childLock(path string) error {
	fd, err := unix.Open(path, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	l := &unix.Flock_t{Type: unix.F_WRLCK}
	if err := unix.FcntlFlock(uintptr(fd), unix.F_GETLK, l); err != nil {
		return err
	}
	if l.Type != unix.F_WRLCK || l.Start != 2 || l.Len != 3 || int(l.Pid) != os.Getppid() {
		return fmt.Errorf("F_GETLK says %+v, want the parent's lock", l)
	}
	if err := unix.FcntlFlock(uintptr(fd), unix.F_SETLK, &unix.Flock_t{Type: unix.F_WRLCK}); err != unix.EAGAIN && err != unix.EACCES {
		return fmt.Errorf("F_SETLK over the parent's lock: %w", err)
	}
	return nil
}

// inotify sees what is done here.
func inotify(t *testing.T, dir string) {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	must(t, err)
	f := os.NewFile(uintptr(fd), "inotify")
	defer f.Close()
	_, err = unix.InotifyAddWatch(fd, dir, unix.IN_CREATE|unix.IN_CLOSE_WRITE|unix.IN_MOVED_FROM|unix.IN_MOVED_TO|unix.IN_DELETE|unix.IN_ATTRIB)
	must(t, err)
	a, b := filepath.Join(dir, "a"), filepath.Join(dir, "b")
	write(t, a, "x")
	must(t, unix.Chmod(a, 0o600))
	must(t, os.Rename(a, b))
	must(t, os.Remove(b))
	want := []string{"100 a", "8 a", "4 a", "40 a", "80 b", "200 b"}
	var got []string
	must(t, f.SetReadDeadline(time.Now().Add(patience)))
	for buf := make([]byte, 4096); len(got) < len(want); {
		n, err := f.Read(buf)
		if err != nil {
			t.Fatalf("%v after %q, want %q", err, got, want)
		}
		for e := buf[:n]; len(e) >= unix.SizeofInotifyEvent; {
			size := unix.SizeofInotifyEvent + int(binary.NativeEndian.Uint32(e[12:]))
			name, _, _ := bytes.Cut(e[unix.SizeofInotifyEvent:size], []byte{0})
			mask := binary.NativeEndian.Uint32(e[4:])
			// That the last name went is an event of the kernel's version, as IN_ATTRIB before a removal is.
			if s := fmt.Sprintf("%x %s", mask, name); len(got) == 0 || got[len(got)-1] != s {
				got = append(got, s)
			}
			e = e[size:]
		}
	}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("events %q, want %q", got, want)
	}
}
