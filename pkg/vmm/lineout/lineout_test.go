package lineout

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func fifo(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "fifo")
	if err := unix.Mkfifo(path, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func must(t *testing.T, f *File, line string) {
	t.Helper()
	if n, err := f.Write([]byte(line)); n != len(line) || err != nil {
		t.Fatalf("%d bytes, %v", n, err)
	}
}

// drain reads what is in the pipe now.
func drain(t *testing.T, fd int) string {
	t.Helper()
	var all []byte
	buf := make([]byte, 64<<10)
	for {
		n, err := unix.Read(fd, buf)
		if err == unix.EAGAIN || n == 0 {
			return string(all)
		}
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, buf[:n]...)
	}
}

func TestFileIsContinued(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	for _, line := range []string{"first\n", "second\n"} {
		f, err := Open(path)
		if err != nil {
			t.Fatal(err)
		}
		must(t, f, line)
		if err := errors.Join(f.Close(), f.Close()); err != nil {
			t.Error(err)
		}
		if _, err := f.Write([]byte("late\n")); !errors.Is(err, ErrClosed) {
			t.Errorf("write after Close: %v", err)
		}
	}
	text, err := os.ReadFile(path)
	if err != nil || string(text) != "first\nsecond\n" {
		t.Errorf("%q, %v", text, err)
	}
	if st, err := os.Stat(path); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", st.Mode(), err)
	}
}

func TestCannotBeOpened(t *testing.T) {
	dir := t.TempDir()
	for _, path := range []string{dir, filepath.Join(dir, "none", "log"), "", "/proc/self/none"} {
		if f, err := Open(path); err == nil {
			f.Close()
			t.Errorf("%q was opened", path)
		}
	}
}

// Nobody reads at first: what there is room for waits, the rest is lost, line by line. A reader sees whole lines only, also of those
// that a pipe does not take at once, and can leave without ending anything.
func TestFIFO(t *testing.T) {
	path := fifo(t)
	f, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	line := func(c byte) string { return strings.Repeat(string(c), 10_000) + "\n" }
	taken := 0
	for ; ; taken++ {
		if _, err := f.Write([]byte(line('a' + byte(taken)))); err != nil {
			if err != unix.EAGAIN {
				t.Fatal(err)
			}
			break
		}
		if taken > 20 {
			t.Fatal("a pipe of 64 KiB took 200 KiB")
		}
	}
	if f.rest == nil {
		t.Error("no line was cut: the test shows nothing")
	}
	r, err := unix.Open(path, unix.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	got := drain(t, r)
	must(t, f, "next\n") // and the end of the cut line before it
	got += drain(t, r)
	var want strings.Builder
	for i := range taken {
		want.WriteString(line('a' + byte(i)))
	}
	want.WriteString("next\n")
	if got != want.String() {
		t.Errorf("%d bytes came, want %d: %d lines", len(got), want.Len(), strings.Count(got, "\n"))
	}
	unix.Close(r)
	must(t, f, "for the next reader\n")
	if r, err = unix.Open(path, unix.O_RDONLY|unix.O_NONBLOCK, 0); err != nil {
		t.Fatal(err)
	}
	defer unix.Close(r)
	if got := drain(t, r); got != "for the next reader\n" {
		t.Errorf("got %q", got)
	}
}

// What does not go out is an error, and not a line's half.
func TestFull(t *testing.T) {
	f, err := Open("/dev/full")
	if err != nil {
		t.Skip(err)
	}
	defer f.Close()
	if n, err := f.Write([]byte("line\n")); n != 0 || !errors.Is(err, unix.ENOSPC) {
		t.Errorf("%d bytes, %v", n, err)
	}
}

func TestKeepsNothing(t *testing.T) {
	f, err := Open(fifo(t))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	p := bytes.Repeat([]byte("x"), 100_000)
	must(t, f, string(p))
	rest := bytes.Clone(f.rest)
	_, _ = f.Write(p) // refused
	clear(p)
	if !bytes.Equal(rest, f.rest) {
		t.Error("the rest changed with the caller's bytes")
	}
}
