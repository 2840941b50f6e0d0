package fs_test

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"time"

	"golang.org/x/sys/unix"
)

const (
	guestTag   = "tests"
	guestRoot  = "/mnt"
	guestChild = "guest-child"
	// guestTimesArg on the kernel's command line asks for guestTimes instead of guestTest.
	guestTimesArg = "fs-test=times"
)

// guestMain is PID 1 of TestGuest's guest: it writes what it finds to the share and powers off.
func guestMain() {
	unix.Mount("dev", "/dev", "devtmpfs", 0, "")
	unix.Mount("proc", "/proc", "proc", 0, "")
	if err := unix.Mount(guestTag, guestRoot, "virtiofs", 0, ""); err != nil {
		fmt.Println("mount:", err)
	}
	var report bytes.Buffer
	if cmdline, _ := os.ReadFile("/proc/cmdline"); bytes.Contains(cmdline, []byte(guestTimesArg)) {
		guestTimes(&report)
	} else {
		guestTest(&report)
	}
	fmt.Fprintln(&report, "done")
	if err := os.WriteFile(filepath.Join(guestRoot, "report"), report.Bytes(), 0o644); err != nil {
		fmt.Printf("%s%v\n", report.String(), err)
	}
	unix.Sync()
	unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
	select {}
}

func guestTest(report *bytes.Buffer) {
	for _, c := range guestChecks {
		begin := time.Now()
		err := guestCheck(c.run)
		took := time.Since(begin).Round(time.Millisecond)
		if err != nil {
			fmt.Fprintf(report, "FAIL %s: %v\n", c.name, err)
		} else {
			fmt.Fprintf(report, "ok %s %v\n", c.name, took)
		}
	}
}

// guestTimes says how long a request takes, seen from the guest.
func guestTimes(report *bytes.Buffer) {
	const n = 100
	per := func(what string, f func()) {
		begin := time.Now()
		for range n {
			f()
		}
		fmt.Fprintf(report, "time %s %d\n", what, time.Since(begin).Nanoseconds()/n)
	}
	var sfs unix.Statfs_t
	per("statfs", func() { unix.Statfs(guestRoot, &sfs) })
	f, err := os.Open(at("program"))
	if err != nil {
		return
	}
	defer f.Close()
	unix.FcntlInt(f.Fd(), unix.F_SETFL, unix.O_DIRECT)
	for _, size := range []int{4 << 10, 128 << 10} {
		b, err := unix.Mmap(-1, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_POPULATE)
		if err != nil {
			return
		}
		per(fmt.Sprintf("read-%dKiB", size>>10), func() { unix.Pread(int(f.Fd()), b, 0) })
	}
	per("create+write+close", func() { os.WriteFile(at("times"), []byte("x"), 0o600) })
}

// guestCheck gives a check its bound.
func guestCheck(run func() error) error {
	done := make(chan error, 1)
	go func() { done <- run() }()
	select {
	case err := <-done:
		return err
	case <-time.After(time.Minute):
		return errors.New("not done within a minute")
	}
}

func at(name ...string) string { return filepath.Join(append([]string{guestRoot}, name...)...) }

var guestChecks = []struct {
	name string
	run  func() error
}{
	{"files", guestFiles},
	{"directory", guestDirectory},
	{"names", guestNames},
	{"owners", guestOwners},
	{"mmap", guestMmap},
	{"unlinked", guestUnlinked},
	{"special", guestSpecial},
	{"attributes", guestAttributes},
	{"exec", guestExec},
	{"mounted", guestMounted},
	{"host changes", guestLive},
	{"remount", guestRemount},
	{"speed", guestSpeed},
}

func guestFiles() error {
	if err := os.Mkdir(at("left"), 0o755); err != nil {
		return err
	}
	data := bytes.Repeat([]byte("0123456789abcdef"), 300<<10/16)
	if err := os.WriteFile(at("left", "f"), data, 0o600); err != nil {
		return err
	}
	f, err := os.OpenFile(at("left", "f"), os.O_APPEND|os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err := f.WriteString("end"); err != nil {
		return err
	}
	if got, err := os.ReadFile(at("left", "f")); err != nil || !bytes.Equal(got, append(data, "end"...)) {
		return fmt.Errorf("%d bytes, %w", len(got), err)
	}
	if err := f.Truncate(10); err != nil {
		return err
	}
	if fi, err := f.Stat(); err != nil || fi.Size() != 10 {
		return fmt.Errorf("after truncate: %v, %w", fi, err)
	}
	if err := unix.Fallocate(int(f.Fd()), 0, 0, 1<<20); err != nil && err != unix.EOPNOTSUPP {
		return fmt.Errorf("fallocate: %w", err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX); err != nil {
		return fmt.Errorf("flock: %w", err)
	}
	if err := f.Sync(); err != nil {
		return err
	}
	if _, err := os.OpenFile(at("left", "f"), os.O_CREATE|os.O_EXCL, 0o600); !errors.Is(err, os.ErrExist) {
		return fmt.Errorf("exclusive create: %w", err)
	}
	return nil
}

func guestDirectory() error {
	const n = 100
	if err := os.Mkdir(at("dir"), 0o755); err != nil {
		return err
	}
	for i := range n {
		if err := os.WriteFile(at("dir", fmt.Sprint(i)), nil, 0o600); err != nil {
			return err
		}
	}
	if e, err := os.ReadDir(at("dir")); err != nil || len(e) != n {
		return fmt.Errorf("%d entries, %w", len(e), err)
	}
	if err := os.RemoveAll(at("dir")); err != nil {
		return err
	}
	if _, err := os.Stat(at("dir")); !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("removed: %w", err)
	}
	return nil
}

func guestNames() error {
	if err := os.WriteFile(at("a"), []byte("a"), 0o600); err != nil {
		return err
	}
	if err := os.Symlink("a", at("s")); err != nil {
		return err
	}
	if err := os.Link(at("a"), at("h")); err != nil {
		return err
	}
	if err := os.Rename(at("a"), at("b")); err != nil {
		return err
	}
	if _, err := os.Stat(at("s")); !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("dangling link: %w", err)
	}
	if err := unix.Renameat2(unix.AT_FDCWD, at("b"), unix.AT_FDCWD, at("s"), unix.RENAME_EXCHANGE); err != nil {
		return err
	}
	if l, err := os.Readlink(at("b")); err != nil || l != "a" {
		return fmt.Errorf("link to %q, %w", l, err)
	}
	// Up from the share's root is the guest's own.
	if _, err := os.Stat(at("..", "init")); err != nil {
		return err
	}
	var st unix.Stat_t
	if err := unix.Stat(at("h"), &st); err != nil || st.Nlink != 2 {
		return fmt.Errorf("%d links, %w", st.Nlink, err)
	}
	for _, f := range []string{"b", "s", "h"} {
		if err := os.Remove(at(f)); err != nil {
			return err
		}
	}
	return nil
}

func guestOwners() error {
	if err := os.Chmod(at("left"), 0o777); err != nil {
		return err
	}
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // and never again unlocked
		unix.Umask(0o027)
		unix.SetfsgidRetGid(1001)
		unix.SetfsuidRetUid(1000)
		fd, err := unix.Open(at("left", "by-user"), unix.O_CREAT|unix.O_WRONLY|unix.O_CLOEXEC, 0o666)
		if err == nil {
			unix.Close(fd)
			_, err = unix.Open(at("left", "f"), unix.O_RDONLY|unix.O_CLOEXEC, 0)
			if err == unix.EACCES {
				err = nil
			} else {
				err = fmt.Errorf("another's file opened: %w", err)
			}
		}
		done <- err
	}()
	if err := <-done; err != nil {
		return err
	}
	unix.Umask(0o022)
	// Set-user-id goes with the first write of another user's.
	if err := os.WriteFile(at("suid"), nil, 0o666); err != nil {
		return err
	}
	if err := unix.Chmod(at("suid"), 0o4777); err != nil {
		return err
	}
	go func() {
		runtime.LockOSThread()
		unix.SetfsuidRetUid(1000)
		fd, err := unix.Open(at("suid"), unix.O_WRONLY|unix.O_CLOEXEC, 0)
		if err == nil {
			_, err = unix.Write(fd, []byte("x"))
			unix.Close(fd)
		}
		done <- err
	}()
	if err := <-done; err != nil {
		return err
	}
	time.Sleep(1100 * time.Millisecond) // the attributes' validity
	if fi, err := os.Stat(at("suid")); err != nil || fi.Mode()&os.ModeSetuid != 0 {
		return fmt.Errorf("%v, %w", fi.Mode(), err)
	}
	return nil
}

func guestMmap() error {
	f, err := os.OpenFile(at("left", "mapped"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := f.Truncate(8192); err != nil {
		return err
	}
	m, err := unix.Mmap(int(f.Fd()), 0, 8192, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return err
	}
	copy(m, "mapped")
	if err := unix.Msync(m, unix.MS_SYNC); err != nil {
		return err
	}
	return unix.Munmap(m)
}

func guestUnlinked() error {
	f, err := os.Create(at("gone"))
	if err != nil {
		return err
	}
	defer f.Close()
	if err := os.Remove(at("gone")); err != nil {
		return err
	}
	if _, err := f.WriteString("still here"); err != nil {
		return err
	}
	b := make([]byte, 10)
	if _, err := f.ReadAt(b, 0); err != nil || string(b) != "still here" {
		return fmt.Errorf("%q, %w", b, err)
	}
	return f.Truncate(1 << 20)
}

func guestSpecial() error {
	if err := unix.Mkfifo(at("fifo"), 0o600); err != nil {
		return err
	}
	go func() {
		if w, err := os.OpenFile(at("fifo"), os.O_WRONLY, 0); err == nil {
			w.WriteString("through")
			w.Close()
		}
	}()
	if b, err := os.ReadFile(at("fifo")); err != nil || string(b) != "through" {
		return fmt.Errorf("fifo: %q, %w", b, err)
	}
	l, err := net.Listen("unix", at("sock"))
	if err != nil {
		return err
	}
	defer l.Close()
	c, err := net.Dial("unix", at("sock"))
	if err != nil {
		return err
	}
	c.Close()
	if err := unix.Mknod(at("null"), unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))); err != nil {
		return err
	}
	return os.WriteFile(at("null"), []byte("nothing"), 0)
}

func guestAttributes() error {
	if err := unix.Setxattr(at("left"), "trusted.x", []byte("value"), 0); err != nil {
		return err
	}
	b := make([]byte, 100)
	if n, err := unix.Getxattr(at("left"), "trusted.x", b); err != nil || string(b[:n]) != "value" {
		return fmt.Errorf("%q, %w", b, err)
	}
	when := time.Unix(1e9, 123456789)
	if err := os.Chtimes(at("left"), when, when); err != nil {
		return err
	}
	if fi, err := os.Stat(at("left")); err != nil || !fi.ModTime().Equal(when) {
		return fmt.Errorf("%v, %w", fi.ModTime(), err)
	}
	var s unix.Statfs_t
	if err := unix.Statfs(guestRoot, &s); err != nil || s.Blocks == 0 {
		return fmt.Errorf("%+v, %w", s, err)
	}
	return nil
}

func guestExec() error {
	err := exec.Command(at("program"), guestChild).Run()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != 42 {
		return err
	}
	return nil
}

func guestMounted() error {
	if err := os.WriteFile(at("mounted", "here"), []byte("here"), 0o600); err != nil {
		return err
	}
	if err := os.Rename(at("mounted", "here"), at("there")); !errors.Is(err, unix.EXDEV) {
		return fmt.Errorf("rename across file systems: %w", err)
	}
	return nil
}

// guestLive keeps a file in its page cache, open too, until the host's change shows.
func guestLive() error {
	f, err := os.Open(at("live"))
	if err != nil {
		return err
	}
	defer f.Close()
	b := make([]byte, 6)
	if _, err := f.ReadAt(b, 0); err != nil || string(b) != "before" {
		return fmt.Errorf("%q, %w", b, err)
	}
	if err := os.WriteFile(at("live-read"), nil, 0o600); err != nil {
		return err
	}
	for begin := time.Now(); time.Since(begin) < 20*time.Second; time.Sleep(20 * time.Millisecond) {
		if b, err = os.ReadFile(at("live")); err != nil {
			return err
		}
		if string(b) == "after!" {
			return nil
		}
	}
	return fmt.Errorf("%q after 20 s", b)
}

func guestRemount() error {
	if err := unix.Unmount(guestRoot, 0); err != nil {
		return err
	}
	if err := unix.Mount(guestTag, guestRoot, "virtiofs", unix.MS_RDONLY, ""); err != nil {
		return err
	}
	if err := os.WriteFile(at("x"), nil, 0o600); !errors.Is(err, unix.EROFS) {
		return fmt.Errorf("write to a read-only mount: %w", err)
	}
	if err := unix.Unmount(guestRoot, 0); err != nil {
		return err
	}
	return unix.Mount(guestTag, guestRoot, "virtiofs", 0, "")
}

func guestSpeed() error {
	buf := make([]byte, 1<<20)
	f, err := os.Create(at("big"))
	if err != nil {
		return err
	}
	defer f.Close()
	for range 32 {
		if _, err := f.Write(buf); err != nil {
			return err
		}
	}
	for i := range 32 {
		if n, err := f.ReadAt(buf, int64(i)<<20); n != len(buf) {
			return err
		}
	}
	return os.Remove(at("big"))
}
