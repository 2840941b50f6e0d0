package fs_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/config"
	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/virtio/fs"
	vt "github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/virtio/virtiotest"
)

const (
	opLookup = 1
	opGet    = 3
	opOpen   = 14
	opRead   = 15
	opWrite  = 16
	opInit   = 26
	opForget = 2

	inHeader  = 40
	outHeader = 16
)

func newDevice(tb testing.TB, root string, readOnly bool) *fs.Device {
	tb.Helper()
	if os.Getuid() != 0 {
		tb.Skip("needs root")
	}
	d, err := fs.New(config.Filesystem{FSID: "shared", Tag: "shared", PathOnHost: root, IsReadOnly: readOnly}, 1)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if err := d.Close(); err != nil {
			tb.Error(err)
		}
	})
	return d
}

// driver sends FUSE requests through the request queue.
type driver struct {
	*vt.Machine
	in, out vt.Span
	unique  uint64
}

func start(tb testing.TB, d *fs.Device) *driver {
	tb.Helper()
	m := vt.Start(tb, d, 16<<20)
	v := &driver{Machine: m}
	v.reset()
	return v
}

// reset follows a new activation.
func (v *driver) reset() {
	v.TB.Helper()
	v.in, v.out = v.Arena.Alloc(1<<20+4096), v.Arena.Alloc(1<<20+4096)
	if st, _ := v.call(opInit, 0, fuse.InitIn{Major: 7, Minor: 38, Flags: ^uint32(0)}, nil, 4096); st != 0 {
		v.TB.Fatalf("INIT: %v", st)
	}
}

// put writes a request into guest memory, header and tail in buffers of their own.
func (v *driver) put(op uint32, node uint64, in any, tail []byte) []vt.Span {
	var body bytes.Buffer
	if in != nil {
		binary.Write(&body, binary.LittleEndian, in)
		body.Next(inHeader)
	}
	v.unique++
	var b bytes.Buffer
	binary.Write(&b, binary.LittleEndian, fuse.InHeader{
		Length: uint32(inHeader + body.Len() + len(tail)), Opcode: op, Unique: v.unique, NodeId: node,
	})
	b.Write(body.Bytes())
	n := copy(v.Bytes(v.in), b.Bytes())
	spans := []vt.Span{{Addr: v.in.Addr, Len: uint32(n)}}
	copy(v.Bytes(v.in)[n:], tail)
	return append(spans, pages(v.in.Addr+uint64(n), len(tail))...)
}

// pages cuts n bytes at addr as a driver does.
func pages(addr uint64, n int) []vt.Span {
	var s []vt.Span
	for n > 0 {
		p := min(n, 4096)
		s = append(s, vt.Span{Addr: addr, Len: uint32(p)})
		addr, n = addr+uint64(p), n-p
	}
	return s
}

func (v *driver) room(n int) []vt.Span {
	return append([]vt.Span{{Addr: v.out.Addr, Len: outHeader}}, pages(v.out.Addr+outHeader, n)...)
}

func (v *driver) call(op uint32, node uint64, in any, tail []byte, room int) (unix.Errno, []byte) {
	v.TB.Helper()
	n := v.Do(v.Rings[1], v.put(op, node, in, tail), v.room(room))
	b := v.Bytes(v.out)
	if n < outHeader || binary.LittleEndian.Uint32(b) != n || binary.LittleEndian.Uint64(b[8:]) != v.unique {
		v.TB.Fatalf("opcode %d: reply of %d bytes: % x", op, n, b[:outHeader])
	}
	return unix.Errno(-int32(binary.LittleEndian.Uint32(b[4:]))), b[outHeader:n]
}

func (v *driver) open(name string, flags uint32) (node, fh uint64) {
	v.TB.Helper()
	st, b := v.call(opLookup, 1, nil, append([]byte(name), 0), 4096)
	if st != 0 {
		v.TB.Fatalf("LOOKUP %q: %v", name, st)
	}
	node = binary.LittleEndian.Uint64(b)
	st, b = v.call(opOpen, node, fuse.OpenIn{Flags: flags}, nil, 4096)
	if st != 0 {
		v.TB.Fatalf("OPEN %q: %v", name, st)
	}
	return node, binary.LittleEndian.Uint64(b)
}

func TestConfig(t *testing.T) {
	d := newDevice(t, t.TempDir(), false)
	p := bytes.Repeat([]byte{0xff}, 50)
	d.ReadConfig(0, p)
	if !bytes.Equal(p[:8], []byte("shared\x00\x00")) || binary.LittleEndian.Uint32(p[36:]) != 1 || p[49] != 0 {
		t.Errorf("% x", p)
	}
	d.ReadConfig(36, p[:4])
	if p[0] != 1 {
		t.Errorf("number of request queues: % x", p[:4])
	}
	d.ReadConfig(1<<63, p)
	if p[0] != 0 {
		t.Errorf("beyond the end: % x", p)
	}
	if d.Type() != 26 || d.Features() != 0 {
		t.Errorf("type %d, features %#x", d.Type(), d.Features())
	}
}

func TestBadConfig(t *testing.T) {
	for _, tc := range []struct {
		cfg  config.Filesystem
		want string
	}{
		{config.Filesystem{FSID: "a", PathOnHost: "/"}, "tag"},
		{config.Filesystem{FSID: "a", Tag: strings.Repeat("t", 37), PathOnHost: "/"}, "tag"},
		{config.Filesystem{FSID: "a", Tag: "t"}, "path_on_host"},
		{config.Filesystem{FSID: "a", Tag: "t", PathOnHost: "/nonexistent"}, "/nonexistent"},
		{config.Filesystem{FSID: "a", Tag: "t", PathOnHost: "/etc/passwd"}, "not a directory"},
	} {
		_, err := fs.New(tc.cfg, 1)
		if err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%+v: %v, want %q in it", tc.cfg, err, tc.want)
		}
		if tc.cfg.PathOnHost == "" && !errors.Is(err, errdefs.ErrInvalidArgument) {
			t.Errorf("%v: wrong class", err)
		}
	}
}

func TestReadWrite(t *testing.T) { inBothPlaces(t, testReadWrite) }

func testReadWrite(t *testing.T, start place) {
	root := t.TempDir()
	data := bytes.Repeat([]byte("0123456789abcdef"), 1<<16) // 1 MiB: the largest request
	if err := os.WriteFile(filepath.Join(root, "f"), data, 0o600); err != nil {
		t.Fatal(err)
	}
	v := start(t, newDevice(t, root, false))
	node, fh := v.open("f", unix.O_RDWR)
	st, b := v.call(opRead, node, fuse.ReadIn{Fh: fh, Size: 1 << 20}, nil, 1<<20)
	if st != 0 || !bytes.Equal(b, data) {
		t.Fatalf("READ: %v, %d bytes", st, len(b))
	}
	clear(data)
	st, b = v.call(opWrite, node, fuse.WriteIn{Fh: fh, Offset: 3, Size: 1 << 20}, data, 8)
	if st != 0 || binary.LittleEndian.Uint32(b) != 1<<20 {
		t.Fatalf("WRITE: %v, % x", st, b)
	}
	if got, _ := os.ReadFile(filepath.Join(root, "f")); !bytes.Equal(got, append([]byte("012"), data...)) {
		t.Errorf("file of %d bytes", len(got))
	}
	if st, _ = v.call(opRead, node, fuse.ReadIn{Fh: fh, Size: 1<<20 + 1}, nil, 1<<20); st != unix.EINVAL {
		t.Errorf("too long a READ: %v", st)
	}
	if st, _ = v.call(opRead, node, fuse.ReadIn{Fh: fh, Size: 8192}, nil, 4096); st != unix.EIO {
		t.Errorf("READ of more than there is room for: %v", st)
	}
	if st, _ = v.call(opWrite, node, fuse.WriteIn{Fh: fh, Size: 100}, data[:99], 8); st != unix.EINVAL {
		t.Errorf("WRITE of more than there is: %v", st)
	}
}

func TestForget(t *testing.T) { inBothPlaces(t, testForget) }

func testForget(t *testing.T, start place) {
	root := t.TempDir()
	if err := os.WriteFile(filepath.Join(root, "f"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	v := start(t, newDevice(t, root, false))
	st, b := v.call(opLookup, 1, nil, []byte("f\x00"), 4096)
	if st != 0 {
		t.Fatal(st)
	}
	node := binary.LittleEndian.Uint64(b)
	if n := v.Do(v.Rings[0], v.put(opForget, node, fuse.ForgetIn{Nlookup: 1}, nil), nil); n != 0 {
		t.Errorf("answer of %d bytes to FORGET", n)
	}
	if st, _ = v.call(opGet, node, fuse.GetAttrIn{}, nil, 4096); st != unix.ESTALE {
		t.Errorf("GETATTR of what was forgotten: %v", st)
	}
}

// TestNonsense sends what is no request; the queue must go on.
func TestNonsense(t *testing.T) { inBothPlaces(t, testNonsense) }

func testNonsense(t *testing.T, start place) {
	v := start(t, newDevice(t, t.TempDir(), false))
	for _, tc := range []struct {
		name    string
		in, out []vt.Span
		length  uint32
		want    uint32
	}{
		{"no bytes", nil, []vt.Span{{Addr: v.out.Addr, Len: 64}}, 0, 0},
		{"short header", []vt.Span{{Addr: v.in.Addr, Len: 39}}, []vt.Span{{Addr: v.out.Addr, Len: 64}}, 39, 0},
		{"length too small", []vt.Span{{Addr: v.in.Addr, Len: 56}}, []vt.Span{{Addr: v.out.Addr, Len: 256}}, 39, 0},
		{"length too large", []vt.Span{{Addr: v.in.Addr, Len: 56}}, []vt.Span{{Addr: v.out.Addr, Len: 256}}, 57, 0},
		{"no room", []vt.Span{{Addr: v.in.Addr, Len: 56}}, nil, 56, 0},
		{"no room for a header", []vt.Span{{Addr: v.in.Addr, Len: 56}}, []vt.Span{{Addr: v.out.Addr, Len: 15}}, 56, 0},
		{"room for a header", []vt.Span{{Addr: v.in.Addr, Len: 56}}, []vt.Span{{Addr: v.out.Addr, Len: 30}}, 56, 16},
		{"a huge one", []vt.Span{{Addr: v.in.Addr, Len: 1 << 20}}, []vt.Span{{Addr: v.out.Addr, Len: 30}}, 1 << 20, 16},
	} {
		v.put(opGet, 1, fuse.GetAttrIn{}, nil)
		binary.LittleEndian.PutUint32(v.Bytes(v.in), tc.length)
		if got := v.Do(v.Rings[1], tc.in, tc.out); got != tc.want {
			t.Errorf("%s: %d bytes of answer, want %d", tc.name, got, tc.want)
		}
	}
	if st, _ := v.call(opGet, 1, fuse.GetAttrIn{}, nil, 4096); st != 0 {
		t.Errorf("GETATTR: %v", st)
	}
}

func TestReadOnly(t *testing.T) { inBothPlaces(t, testReadOnly) }

func testReadOnly(t *testing.T, start place) {
	root := t.TempDir()
	if err := os.WriteFile(filepath.Join(root, "f"), []byte("abc"), 0o600); err != nil {
		t.Fatal(err)
	}
	// The process's umask and os.WriteFile leave the bits of set-user-id out.
	if err := unix.Chmod(filepath.Join(root, "f"), 0o6755); err != nil {
		t.Fatal(err)
	}
	v := start(t, newDevice(t, root, true))
	node, fh := v.open("f", unix.O_RDONLY)
	if st, b := v.call(opRead, node, fuse.ReadIn{Fh: fh, Size: 10}, nil, 10); st != 0 || string(b) != "abc" {
		t.Errorf("READ: %v, %q", st, b)
	}
	if st, _ := v.call(opOpen, node, fuse.OpenIn{Flags: unix.O_RDWR}, nil, 16); st != unix.EROFS {
		t.Errorf("OPEN to write: %v", st)
	}
	if st, _ := v.call(opWrite, node, fuse.WriteIn{Fh: fh, Size: 1}, []byte("x"), 8); st != unix.EBADF {
		t.Errorf("WRITE: %v", st)
	}
	const killSuidgid = 1 << 2
	for _, size := range []uint32{0, 1} {
		st, _ := v.call(opWrite, node, fuse.WriteIn{Fh: fh, Size: size, WriteFlags: killSuidgid}, make([]byte, size), 8)
		if fi, err := os.Stat(filepath.Join(root, "f")); st != unix.EBADF || err != nil || fi.Mode()&(os.ModeSetuid|os.ModeSetgid) != os.ModeSetuid|os.ModeSetgid {
			t.Errorf("WRITE of %d bytes that drops set-user-id: %v, mode %v, %v", size, st, fi.Mode(), err)
		}
	}
}

// TestReset resets the device under a load and activates it again: nothing of the driver's memory may change in between.
func TestReset(t *testing.T) { inBothPlaces(t, testReset) }

func testReset(t *testing.T, start place) {
	root := t.TempDir()
	if err := os.WriteFile(filepath.Join(root, "f"), bytes.Repeat([]byte("x"), 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	d := newDevice(t, root, false)
	v := start(t, d)
	for round := range 20 {
		node, fh := v.open("f", unix.O_RDONLY)
		ring := v.Rings[1]
		for i := range 100 {
			// All into the same bytes: they must only stay as they are once Reset returned.
			readable, writable := v.put(opRead, node, fuse.ReadIn{Fh: fh, Size: 1 << 16}, nil), v.room(1<<16)
			if i%2 == 0 {
				readable, writable = v.put(opLookup, 1, nil, []byte("f\x00")), v.room(256)
			}
			if _, ok := ring.Add(readable, writable); !ok {
				break
			}
			ring.Kick()
		}
		started := time.Now()
		v.Dev.Reset()
		if took := time.Since(started); took > 5*time.Second {
			t.Fatalf("reset took %v", took)
		}
		before := bytes.Clone(v.Mem.Regions()[0].Mem)
		time.Sleep(2 * time.Millisecond)
		if !bytes.Equal(before, v.Mem.Regions()[0].Mem) {
			t.Fatalf("round %d: guest memory changed after Reset", round)
		}
		v.Activate(0)
		// The guest's old inodes and files are gone.
		v.in, v.out = v.Arena.Alloc(1<<20+4096), v.Arena.Alloc(1<<20+4096)
		if st, _ := v.call(opRead, node, fuse.ReadIn{Fh: fh, Size: 10}, nil, 16); st != unix.EIO {
			t.Fatalf("READ before INIT: %v", st)
		}
		v.reset()
	}
}

func BenchmarkRead128K(b *testing.B) { benchmarkRead128K(b, start) }

func BenchmarkApartRead128K(b *testing.B) { benchmarkRead128K(b, startApart) }

func benchmarkRead128K(b *testing.B, start place) {
	root := b.TempDir()
	if err := os.WriteFile(filepath.Join(root, "f"), bytes.Repeat([]byte("x"), 1<<20), 0o600); err != nil {
		b.Fatal(err)
	}
	v := start(b, newDevice(b, root, false))
	node, fh := v.open("f", unix.O_RDONLY)
	const size = 128 << 10
	in, out := v.put(opRead, node, fuse.ReadIn{Fh: fh, Size: size}, nil), v.room(size)
	b.SetBytes(size)
	b.ReportAllocs()
	for b.Loop() {
		if n := v.Do(v.Rings[1], in, out); n != outHeader+size {
			b.Fatalf("%d bytes", n)
		}
	}
}

func BenchmarkGetattr(b *testing.B) { benchmarkGetattr(b, start) }

func BenchmarkApartGetattr(b *testing.B) { benchmarkGetattr(b, startApart) }

func benchmarkGetattr(b *testing.B, start place) {
	v := start(b, newDevice(b, b.TempDir(), false))
	in, out := v.put(opGet, 1, fuse.GetAttrIn{}, nil), v.room(256)
	b.ReportAllocs()
	for b.Loop() {
		if n := v.Do(v.Rings[1], in, out); n < outHeader {
			b.Fatalf("%d bytes", n)
		}
	}
}

// TestBlocked has the host's kernel hold up one request: others are served meanwhile, and a reset abandons it.
func TestBlocked(t *testing.T) {
	root := t.TempDir()
	path := filepath.Join(root, "leased")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	leased, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer leased.Close()
	// An open for writing waits until the lease is given up.
	if _, err := unix.FcntlInt(leased.Fd(), unix.F_SETLEASE, unix.F_RDLCK); err != nil {
		t.Skipf("no leases here: %v", err)
	}
	d := newDevice(t, root, false)
	v := start(t, d)
	st, b := v.call(opLookup, 1, nil, []byte("leased\x00"), 4096)
	if st != 0 {
		t.Fatal(st)
	}
	node := binary.LittleEndian.Uint64(b)

	if _, ok := v.Rings[1].Add(v.put(opOpen, node, fuse.OpenIn{Flags: unix.O_WRONLY}, nil), v.room(16)); !ok {
		t.Fatal("no room in the ring")
	}
	v.Rings[1].Kick()
	v.in, v.out = v.Arena.Alloc(4096), v.Arena.Alloc(8192)
	for range 10 {
		if st, _ := v.call(opGet, 1, fuse.GetAttrIn{}, nil, 256); st != 0 {
			t.Fatal(st)
		}
	}
	started := time.Now()
	d.Reset()
	if took := time.Since(started); took > 5*time.Second {
		t.Errorf("reset took %v", took)
	}
	// Now the open ends, and must not answer.
	before := bytes.Clone(v.Mem.Regions()[0].Mem)
	if _, err := unix.FcntlInt(leased.Fd(), unix.F_SETLEASE, unix.F_UNLCK); err != nil {
		t.Fatal(err)
	}
	time.Sleep(20 * time.Millisecond)
	if !bytes.Equal(before, v.Mem.Regions()[0].Mem) {
		t.Error("the abandoned request was answered")
	}
}

// waitingOpens is how many threads of this process are in open(2).
func waitingOpens(t *testing.T) (n int) {
	t.Helper()
	tasks, err := filepath.Glob("/proc/self/task/*/syscall")
	if err != nil {
		t.Fatal(err)
	}
	for _, task := range tasks {
		text, _ := os.ReadFile(task) // a thread may have ended
		var number int
		if _, err := fmt.Sscan(string(text), &number); err == nil && (number == unix.SYS_OPENAT || number == unix.SYS_OPENAT2) {
			n++
		}
	}
	return n
}

// TestAbandoned has the host hold up more and more requests of a driver that resets its device again and again: neither
// threads nor files may grow without a bound.
func TestAbandoned(t *testing.T) {
	const workers = 64
	root := t.TempDir()
	var names []string
	for i := range 100 {
		names = append(names, fmt.Sprint(i))
		if err := os.WriteFile(filepath.Join(root, names[i]), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	leased, err := os.Open(filepath.Join(root, names[0]))
	if err != nil {
		t.Fatal(err)
	}
	defer leased.Close()
	if _, err := unix.FcntlInt(leased.Fd(), unix.F_SETLEASE, unix.F_RDLCK); err != nil {
		t.Skipf("no leases here: %v", err)
	}
	defer unix.FcntlInt(leased.Fd(), unix.F_SETLEASE, unix.F_UNLCK)
	d := newDevice(t, root, false)
	v := start(t, d)
	goroutines, files := runtime.NumGoroutine(), openFiles(t)
	hang := func() {
		v.unique++
		ring := v.Rings[1]
		in := v.Arena.Alloc(4096)
		v.in = in
		if _, ok := ring.Add(v.put(opOpen, 2, fuse.OpenIn{Flags: unix.O_WRONLY}, nil), v.room(16)); !ok {
			t.Fatal("no room in the ring")
		}
		ring.Kick()
	}
	const each = 10
	began := time.Now()
	for round := range workers/each + 1 {
		for _, name := range names {
			if st, _ := v.call(opLookup, 1, nil, append([]byte(name), 0), 4096); st != 0 {
				t.Fatalf("round %d: LOOKUP: %v", round, st)
			}
		}
		for range each {
			hang()
		}
		// In service is not enough: one that has not come to its open(2) by the reset finds its file forgotten, and does not wait.
		for begin := time.Now(); waitingOpens(t) < min(each*(round+1), workers); time.Sleep(time.Millisecond) {
			if time.Since(began) > 40*time.Second {
				t.Skip("too slow to show anything: the kernel gives a lease up after 45 s (fs.lease-break-time), and then no open waits")
			}
			if time.Since(begin) > vt.Timeout {
				t.Fatalf("round %d: %d requests in service", round, d.InService())
			}
		}
		if err := d.Reset(); err != nil {
			t.Fatal(err)
		}
		v.Activate(0)
		v.in, v.out = v.Arena.Alloc(4096), v.Arena.Alloc(8192)
		if round < workers/each {
			v.reset()
		}
	}
	// All slots are taken: the driver that did it waits now.
	v.Rings[1].Add(v.put(opInit, 0, fuse.InitIn{Major: 7, Minor: 38}, nil), v.room(4096))
	v.Rings[1].Kick()
	time.Sleep(50 * time.Millisecond)
	if _, _, ok := v.Rings[1].Used(); ok {
		t.Errorf("more than %d requests in service", workers)
	}
	if n := runtime.NumGoroutine() - goroutines; n > workers+10 {
		t.Errorf("%d goroutines more than at the start", n)
	}
	if n := openFiles(t) - files; n > 2*workers {
		t.Errorf("%d files more than at the start", n)
	}
	if _, err := unix.FcntlInt(leased.Fd(), unix.F_SETLEASE, unix.F_UNLCK); err != nil {
		t.Fatal(err)
	}
	v.WaitUsed(v.Rings[1])
}

func openFiles(tb testing.TB) int {
	tb.Helper()
	e, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		tb.Fatal(err)
	}
	return len(e)
}
