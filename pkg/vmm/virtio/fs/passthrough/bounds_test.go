package passthrough

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

func openFiles(tb testing.TB) int {
	tb.Helper()
	e, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		tb.Fatal(err)
	}
	return len(e)
}

func TestBounds(t *testing.T) {
	root := t.TempDir()
	for i := range 30 {
		os.WriteFile(filepath.Join(root, fmt.Sprint(i)), nil, 0o600)
	}
	before := openFiles(t)
	c := newClient(t, Config{Root: root, MaxNodes: 10, MaxHandles: 5})
	var nodes []uint64
	for i := range 9 {
		nodes = append(nodes, c.walk(fmt.Sprint(i)).NodeId)
	}
	_, st := c.lookup(1, "20")
	want(t, "LOOKUP of one too many", st, fuse.Status(unix.ENFILE))
	c.walk("3") // known already
	if got := c.list(1, 4096, true); len(got) != 32 {
		t.Errorf("%d entries listed", len(got))
	}
	_, st = c.create(1, "new", unix.O_RDWR, 0o600)
	want(t, "CREATE of one too many", st, fuse.Status(unix.ENFILE))
	want(t, "MKDIR of one too many", c.do(opMkdir, 1, &fuse.MkdirIn{Mode: 0o755}, name("new"), nil), fuse.Status(unix.ENFILE))
	want(t, "TMPFILE of one too many", c.do(opTmpfile, 1, &fuse.CreateIn{Flags: unix.O_RDWR, Mode: unix.S_IFREG}, name("/"), nil), fuse.Status(unix.ENFILE))
	if _, err := os.Lstat(filepath.Join(root, "new")); !os.IsNotExist(err) {
		t.Errorf("a refused inode stays behind: %v", err)
	}

	var files []uint64
	for range 5 {
		fh, st := c.open(nodes[0], unix.O_RDONLY)
		want(t, "OPEN", st, fuse.OK)
		files = append(files, fh)
	}
	_, st = c.open(nodes[0], unix.O_RDONLY)
	want(t, "OPEN of one too many", st, fuse.Status(unix.ENFILE))
	want(t, "OPENDIR of one too many", c.do(opOpendir, 1, &fuse.OpenIn{}, nil, nil), fuse.Status(unix.ENFILE))
	c.forget(nodes[8], 1) // there is room for the inode, not for the file
	_, st = c.create(1, "new", unix.O_RDWR, 0o600)
	want(t, "CREATE of one open file too many", st, fuse.Status(unix.ENFILE))
	if _, err := os.Lstat(filepath.Join(root, "new")); !os.IsNotExist(err) {
		t.Errorf("a refused file stays behind: %v", err)
	}
	c.release(files[0])
	if _, st = c.open(nodes[0], unix.O_RDONLY); !st.Ok() {
		t.Errorf("OPEN after RELEASE: %v", st)
	}

	// A forgotten inode whose file is open stays until that is closed.
	c.forget(nodes[0], 1<<40)
	c.forget(nodes[1], 1)
	c.forget(nodes[1], 1)
	c.forget(1, 1<<40)
	c.walk("20")
	if got, st := c.read(files[1], 0, 10); got != "" || !st.Ok() {
		t.Errorf("READ: %q, %v", got, st)
	}
	c.srv.Forget()
	if n := openFiles(t); n > before+1 { // the folder's own
		t.Errorf("%d files open before, %d after all was forgotten", before, n)
	}
}

// TestNoAllocations holds reads and writes to what the package promises.
func TestNoAllocations(t *testing.T) {
	root := t.TempDir()
	c := newClient(t, Config{Root: root})
	f, st := c.create(1, "f", unix.O_RDWR, 0o600)
	want(t, "CREATE", st, fuse.OK)
	const size = 64 << 10
	in := pieces(c.request(opWrite, 0, &fuse.WriteIn{Fh: f.Fh, Size: size}, make([]byte, size)))
	out := pieces(make([]byte, outHeaderSize+size))
	if n := testing.AllocsPerRun(100, func() { c.srv.Serve(&c.req, in, out) }); n != 0 {
		t.Errorf("WRITE: %v allocations", n)
	}
	in = pieces(c.request(opRead, 0, &fuse.ReadIn{Fh: f.Fh, Size: size}, nil))
	if n := testing.AllocsPerRun(100, func() { c.srv.Serve(&c.req, in, out) }); n != 0 {
		t.Errorf("READ: %v allocations", n)
	}
}

func TestLimits(t *testing.T) {
	for _, tc := range []struct {
		files  uint64
		shares int
		ok     bool
	}{
		{1024, 1, false},
		{2815, 1, false},
		{2816, 1, true},
		{2816, 2, false},
		{20000, 1, true},
		{20000, 16, true},
		{1 << 20, 1, true},
		{1<<64 - 1, 1, true},
	} {
		nodes, handles, err := limits(tc.files, tc.shares)
		if (err == nil) != tc.ok {
			t.Errorf("%d files, %d shares: %v", tc.files, tc.shares, err)
			continue
		}
		if err != nil {
			continue
		}
		// All shares full, each open file's inode forgotten, all connections and their listeners in use.
		used := uint64(tc.shares*(nodes+2*handles+2*64)) + 1023 + 32 + 256
		if used > tc.files || nodes > 128<<10 || nodes < 256 || handles < 64 {
			t.Errorf("%d files, %d shares: %d nodes and %d open files each", tc.files, tc.shares, nodes, handles)
		}
	}
}
