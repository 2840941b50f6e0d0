package uring

import (
	"errors"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// vectors are on the heap, where they stay until the kernel has read them: stacks move.
var vectors [][]unix.Iovec

func vector(v ...unix.Iovec) []unix.Iovec {
	vectors = append(vectors, v)
	return v
}

func ring(t *testing.T, entries uint32) *Ring {
	t.Helper()
	r, err := New(entries)
	if errors.Is(err, ErrUnusable) {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	})
	return r
}

// collect waits for n results.
func collect(t *testing.T, r *Ring, n int) map[uint64]int32 {
	t.Helper()
	results := make(map[uint64]int32)
	for {
		for id, result, ok := r.Next(); ok; id, result, ok = r.Next() {
			results[id] = result
		}
		if len(results) >= n {
			return results
		}
		if err := r.event.SetReadDeadline(time.Now().Add(20 * time.Second)); err != nil {
			t.Fatal(err)
		}
		if err := r.Wait(); err != nil {
			t.Fatalf("%d of %d results: %v", len(results), n, err)
		}
	}
}

// TestRing goes around the rings several times, with every operation, and with results that are errors.
func TestRing(t *testing.T) {
	r := ring(t, 8)
	f, err := os.CreateTemp(t.TempDir(), "")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	mem, err := unix.Mmap(-1, 0, 8192, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Munmap(mem)
	fd := int(f.Fd())
	for round := range 5 {
		for i := range 8 {
			mem[512*i] = byte(round + i)
			iov := vector(unix.Iovec{Base: &mem[512*i], Len: 256}, unix.Iovec{Base: &mem[512*i+256], Len: 256})
			r.Writev(fd, iov, int64(512*i), unix.RWF_DSYNC, uint64(i))
		}
		if n, err := r.Submit(); n != 0 || err != nil {
			t.Fatal(n, err)
		}
		for id, n := range collect(t, r, 8) {
			if n != 512 || id > 7 {
				t.Errorf("write %d: %d", id, n)
			}
		}
		r.Fsync(fd, 100)
		r.Readv(fd, vector(unix.Iovec{Base: &mem[4096], Len: 4096}), 512, 1<<63)
		r.Readv(-1, vector(unix.Iovec{Base: &mem[0], Len: 1}), 0, 102)
		if n, err := r.Submit(); n != 0 || err != nil {
			t.Fatal(n, err)
		}
		got := collect(t, r, 3)
		if got[100] != 0 || got[1<<63] != 4096-512 || got[102] != -int32(unix.EBADF) || mem[4096] != byte(round+1) {
			t.Errorf("round %d: %v, %d", round, got, mem[4096])
		}
	}
	r.Wake()
	if err := r.Wait(); err != nil {
		t.Error(err)
	}
}

// TestMute: results that are taken at once need not be told.
func TestMute(t *testing.T) {
	r := ring(t, 4)
	told := func() bool {
		var count [8]byte
		_, err := unix.Read(int(r.event.Fd()), count[:])
		return err == nil
	}
	for _, mute := range []bool{false, true, false} {
		r.Mute(mute)
		r.Readv(-1, vector(unix.Iovec{}), 0, 5) // is refused at once
		if n, err := r.Submit(); n != 0 || err != nil {
			t.Fatal(n, err)
		}
		if id, result, ok := r.Next(); !ok || id != 5 || result != -int32(unix.EBADF) {
			t.Fatalf("operation %d: %d, %v", id, result, ok)
		}
		if got, want := told(), !mute || r.cqFlags == nil; got != want {
			t.Errorf("muted %v: told %v", mute, got)
		}
	}
}

// TestSubmitFails: what the kernel does not take is never begun.
func TestSubmitFails(t *testing.T) {
	r := ring(t, 4)
	real := r.fd
	r.fd = -1
	r.Fsync(-1, 1)
	r.Fsync(-1, 2)
	n, err := r.Submit()
	if r.fd = real; n != 2 || err == nil {
		t.Errorf("%d, %v", n, err)
	}
	r.Fsync(-1, 3)
	if n, err := r.Submit(); n != 0 || err != nil {
		t.Fatal(n, err)
	}
	if got := collect(t, r, 1); len(got) != 1 || got[3] != -int32(unix.EBADF) {
		t.Errorf("%v", got)
	}
}

// TestDrop: what is taken back is never begun, and its places serve others.
func TestDrop(t *testing.T) {
	r := ring(t, 4)
	for round := range uint64(3) {
		r.Fsync(-1, 1)
		r.Fsync(-1, 2)
		if n := r.Drop(); n != 2 {
			t.Fatalf("dropped %d", n)
		}
		if n := r.Drop(); n != 0 {
			t.Fatalf("dropped %d again", n)
		}
		r.Fsync(-1, 10+round)
		if n, err := r.Submit(); n != 0 || err != nil {
			t.Fatal(n, err)
		}
		if got := collect(t, r, 1); len(got) != 1 || got[10+round] != -int32(unix.EBADF) {
			t.Errorf("%v", got)
		}
	}
}

func TestUnusable(t *testing.T) {
	if _, err := New(1 << 30); !errors.Is(err, ErrUnusable) {
		t.Errorf("%v, want %v", err, ErrUnusable)
	}
}
