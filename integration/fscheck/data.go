package fscheck

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func unlinked(t *testing.T, dir string) {
	path := filepath.Join(dir, "f")
	fd := open(t, path, unix.O_CREAT|unix.O_RDWR)
	must(t, unix.Unlink(path))
	if _, err := unix.Pwrite(fd, []byte("still here"), 0); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 20)
	if n, err := unix.Pread(fd, buf, 0); string(buf[:max(n, 0)]) != "still here" {
		t.Errorf("read %q, %v", buf[:max(n, 0)], err)
	}
	must(t, unix.Ftruncate(fd, 5))
	must(t, unix.Fchmod(fd, 0o600))
	must(t, unix.Fsync(fd))
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil || st.Nlink != 0 || st.Size != 5 {
		t.Errorf("fstat: %d links, size %d, %v", st.Nlink, st.Size, err)
	}
	if again, err := os.ReadFile(fmt.Sprintf("/proc/self/fd/%d", fd)); string(again) != "still" {
		t.Errorf("opened again through /proc: %q, %v", again, err)
	}
	// A folder that somebody is in.
	sub := filepath.Join(dir, "sub")
	must(t, os.Mkdir(sub, 0o755))
	dfd := open(t, sub, unix.O_RDONLY|unix.O_DIRECTORY)
	must(t, os.Remove(sub))
	_, err := unix.Openat(dfd, "x", unix.O_CREAT|unix.O_WRONLY, 0o644)
	wants(t, "create in a removed folder", err, unix.ENOENT)
	_, err = os.Stat(sub)
	wants(t, "the folder's name", err, unix.ENOENT)
}

func sparse(t *testing.T, dir string) {
	fd := open(t, filepath.Join(dir, "f"), unix.O_CREAT|unix.O_RDWR)
	const data, size = 8 << 20, 64 << 20
	block := bytes.Repeat([]byte("x"), 128<<10)
	_, err := unix.Pwrite(fd, block, data)
	must(t, err)
	must(t, unix.Ftruncate(fd, size))
	var st unix.Stat_t
	must(t, unix.Fstat(fd, &st))
	if st.Size != size || st.Blocks*512 > 1<<20 {
		t.Errorf("size %d in %d bytes of blocks", st.Size, st.Blocks*512)
	}
	for _, s := range []struct {
		what   string
		whence int
		from   int64
		want   int64
	}{
		{"data", unix.SEEK_DATA, 0, data}, {"hole", unix.SEEK_HOLE, data, data + int64(len(block))}, {"hole", unix.SEEK_HOLE, 0, 0},
	} {
		if got, err := unix.Seek(fd, s.from, s.whence); err != nil || got != s.want {
			t.Errorf("the %s from %d on is at %d (%v), want %d", s.what, s.from, got, err, s.want)
		}
	}
	_, err = unix.Seek(fd, data+int64(len(block)), unix.SEEK_DATA)
	wants(t, "data after the last", err, unix.ENXIO)

	must(t, unix.Fallocate(fd, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, data, 64<<10))
	if got, err := unix.Seek(fd, 0, unix.SEEK_DATA); err != nil || got != data+64<<10 {
		t.Errorf("after a punch the data is at %d (%v)", got, err)
	}
	buf := make([]byte, 64<<10)
	if n, err := unix.Pread(fd, buf, data); err != nil || n != len(buf) || bytes.Count(buf, []byte{0}) != len(buf) {
		t.Errorf("the hole reads as %d bytes that are not all 0 (%v)", n, err)
	}
	must(t, unix.Fallocate(fd, unix.FALLOC_FL_KEEP_SIZE, size, 1<<20))
	must(t, unix.Fstat(fd, &st))
	if st.Size != size {
		t.Errorf("KEEP_SIZE made the size %d", st.Size)
	}
	must(t, unix.Fallocate(fd, 0, size, 4096))
	must(t, unix.Fstat(fd, &st))
	if st.Size != size+4096 {
		t.Errorf("fallocate made the size %d", st.Size)
	}
	err = unix.Fallocate(open(t, filepath.Join(dir, "f"), unix.O_RDONLY), 0, 0, 1)
	wants(t, "fallocate of a file open for reading", err, unix.EBADF)
}

func tmpfile(t *testing.T, dir string) {
	fd, err := unix.Open(dir, unix.O_TMPFILE|unix.O_RDWR|unix.O_CLOEXEC, 0o644)
	if err == unix.EOPNOTSUPP {
		t.Skip("no O_TMPFILE here, as on an overlay before Linux 6.3")
	}
	must(t, err)
	defer unix.Close(fd)
	_, err = unix.Write(fd, []byte("nameless"))
	must(t, err)
	name := filepath.Join(dir, "named")
	must(t, unix.Linkat(unix.AT_FDCWD, fmt.Sprintf("/proc/self/fd/%d", fd), unix.AT_FDCWD, name, unix.AT_SYMLINK_FOLLOW))
	holds(t, name, "nameless")
	if st := lstat(t, name); st.Nlink != 1 || st.Mode != unix.S_IFREG|0o644 {
		t.Errorf("%d links, mode %o", st.Nlink, st.Mode)
	}
	excl := open(t, dir, unix.O_TMPFILE|unix.O_RDWR|unix.O_EXCL)
	err = unix.Linkat(unix.AT_FDCWD, fmt.Sprintf("/proc/self/fd/%d", excl), unix.AT_FDCWD, name+"2", unix.AT_SYMLINK_FOLLOW)
	wants(t, "naming an O_EXCL one", err, unix.ENOENT)
}

func appends(t *testing.T, dir string) {
	path := filepath.Join(dir, "f")
	a, b := open(t, path, unix.O_CREAT|unix.O_WRONLY|unix.O_APPEND), open(t, path, unix.O_RDWR|unix.O_APPEND)
	want := ""
	for i := range 20 {
		fd, s := a, fmt.Sprintf("%d,", i)
		if i%2 == 1 {
			fd = b
		}
		_, err := unix.Write(fd, []byte(s))
		must(t, err)
		want += s
	}
	// Linux appends here, too, whatever POSIX says (pwrite(2), BUGS).
	_, err := unix.Pwrite(a, []byte("end"), 0)
	must(t, err)
	holds(t, path, want+"end")
	if off, err := unix.Seek(b, 0, unix.SEEK_CUR); err != nil || off != int64(len(want)) {
		t.Errorf("the offset after an append is %d (%v), want %d", off, err, len(want))
	}
}

func copyFileRange(t *testing.T, dir string) {
	a, b := filepath.Join(dir, "a"), filepath.Join(dir, "b")
	data := bytes.Repeat([]byte("0123456789"), 50_000)
	must(t, os.WriteFile(a, data, 0o644))
	from, to := open(t, a, unix.O_RDONLY), open(t, b, unix.O_CREAT|unix.O_RDWR)
	for off := int64(5); off < int64(len(data)); {
		n, err := unix.CopyFileRange(from, &off, to, nil, len(data), 0)
		must(t, err)
		if n == 0 {
			t.Fatalf("nothing was copied at %d", off)
		}
	}
	holds(t, b, string(data[5:]))
	off, same := int64(0), int64(100)
	_, err := unix.CopyFileRange(to, &off, to, &same, 200, 0)
	wants(t, "a copy over itself", err, unix.EINVAL)
}

// mapLen is the size of the mapped file, in bytes.
const mapLen = 64 << 10

// mmapShared has two processes share a mapping, and reads and writes beside it. The file stays, for the host to look at.
func mmapShared(t *testing.T, dir string) {
	path := filepath.Join(dir, "mapped")
	fd := open(t, path, unix.O_CREAT|unix.O_RDWR)
	must(t, unix.Ftruncate(fd, mapLen))
	m, err := unix.Mmap(fd, 0, mapLen, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	must(t, err)
	defer unix.Munmap(m)
	copy(m, "parent")
	child(t, "map", path)
	if got := string(m[4096:][:5]); got != "child" {
		t.Errorf("the other process's writing reads as %q", got)
	}
	if _, err := unix.Pwrite(fd, []byte("written"), 8192); err != nil {
		t.Fatal(err)
	}
	if got := string(m[8192:][:7]); got != "written" {
		t.Errorf("what was written beside the mapping reads as %q", got)
	}
	must(t, unix.Msync(m, unix.MS_SYNC))
	buf := make([]byte, 6)
	if _, err := unix.Pread(fd, buf, 0); err != nil || string(buf) != "parent" {
		t.Errorf("what was mapped reads as %q (%v)", buf, err)
	}
	private, err := unix.Mmap(fd, 0, mapLen, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE)
	must(t, err)
	defer unix.Munmap(private)
	copy(private, "secret")
	if string(m[:6]) != "parent" {
		t.Error("a private mapping's change is seen")
	}
}

// MmapWant is what the file mapped holds at some offsets when the check has passed.
func MmapWant() map[int]string { return map[int]string{0: "parent", 4096: "child", 8192: "written"} }

func childMap(path string) error {
	fd, err := unix.Open(path, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	m, err := unix.Mmap(fd, 0, mapLen, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return err
	}
	if got := string(m[:6]); got != "parent" {
		return fmt.Errorf("the parent's writing reads as %q", got)
	}
	copy(m[4096:], "child")
	return unix.Munmap(m)
}

// childWatch maps a file, says "mapped" and waits until the mapping shows another content than at the start, which it prints. It looks
// at the file's attributes again and again, as whoever waits for a file's change has to.
func childWatch(path string) error {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	m, err := unix.Mmap(fd, 0, os.Getpagesize(), unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		return err
	}
	line := func() string {
		s, _, _ := bytes.Cut(m, []byte("\n"))
		return string(s)
	}
	before := line()
	fmt.Println("mapped", before)
	for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
		var st unix.Stat_t
		if err := unix.Fstat(fd, &st); err != nil {
			return err
		}
		if now := line(); now != before {
			fmt.Println("changed", now)
			return nil
		}
	}
	return fmt.Errorf("the mapping still shows %q", before)
}

// textBusy runs a program from the file system, which nobody may write to meanwhile.
func textBusy(t *testing.T, dir string) {
	path := filepath.Join(dir, "prog")
	in, err := os.ReadFile("/bin/busybox")
	if err != nil {
		t.Skip(err)
	}
	must(t, os.WriteFile(path, in, 0o755))
	p, err := os.StartProcess(path, []string{"sleep", "60"}, &os.ProcAttr{})
	must(t, err)
	defer p.Wait()
	defer p.Kill()
	_, err = unix.Open(path, unix.O_WRONLY, 0)
	wants(t, "write to a running program", err, unix.ETXTBSY)
	must(t, os.Chmod(path, 0o644))
	_, err = os.StartProcess(path, []string{"true"}, &os.ProcAttr{})
	wants(t, "run what is not executable", err, unix.EACCES)
}

func syncKinds(t *testing.T, dir string) {
	fd := open(t, filepath.Join(dir, "f"), unix.O_CREAT|unix.O_RDWR|unix.O_SYNC)
	_, err := unix.Write(fd, []byte("x"))
	must(t, err)
	for what, call := range map[string]func(int) error{"fsync": unix.Fsync, "fdatasync": unix.Fdatasync, "syncfs": unix.Syncfs} {
		if err := call(fd); err != nil {
			t.Errorf("%s: %v", what, err)
		}
	}
	if err := unix.Fsync(open(t, dir, unix.O_RDONLY|unix.O_DIRECTORY)); err != nil {
		t.Errorf("fsync of a folder: %v", err)
	}
}
