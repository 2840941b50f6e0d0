package block

import (
	"bytes"
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/config"
	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/uring"
	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/virtio/queue"
	vt "github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/virtio/virtiotest"
)

// drive makes a file of size bytes of noise and a device on it.
func drive(tb testing.TB, size int, cfg config.Drive) (*Device, []byte) {
	tb.Helper()
	data := make([]byte, size)
	rand.NewChaCha8([32]byte{7}).Read(data)
	cfg.PathOnHost = filepath.Join(tb.TempDir(), "disk")
	if err := os.WriteFile(cfg.PathOnHost, data, 0o600); err != nil {
		tb.Fatal(err)
	}
	d, err := New(cfg)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { d.Close() })
	return d, data
}

func TestNew(t *testing.T) {
	dir := t.TempDir()
	file := func(name string, size int64) string {
		p := filepath.Join(dir, name)
		if err := os.WriteFile(p, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Truncate(p, size); err != nil {
			t.Fatal(err)
		}
		return p
	}
	fifo := filepath.Join(dir, "fifo")
	if err := unix.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		name    string
		cfg     config.Drive
		sectors uint64
		err     string
	}{
		{"good", config.Drive{PathOnHost: file("good", 1<<20)}, 2048, ""},
		{"rounded down", config.Drive{PathOnHost: file("odd", 1025), CacheType: "Writeback"}, 2, ""},
		{"missing", config.Drive{PathOnHost: dir + "/none"}, 0, "path_on_host"},
		{"empty", config.Drive{PathOnHost: file("empty", 0)}, 0, "want at least 512"},
		{"folder", config.Drive{PathOnHost: dir, IsReadOnly: true}, 0, "regular file or a block device"},
		{"fifo", config.Drive{PathOnHost: fifo}, 0, "regular file or a block device"},
		{"character device", config.Drive{PathOnHost: "/dev/null"}, 0, "regular file or a block device"},
		{"cache", config.Drive{PathOnHost: file("cache", 512), CacheType: "None"}, 0, "cache_type"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			d, err := New(tc.cfg)
			if tc.err != "" {
				if err == nil || !strings.Contains(err.Error(), tc.err) {
					t.Fatalf("error %v, want %q in it", err, tc.err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			defer d.Close()
			var p [8]byte
			if d.ReadConfig(0, p[:]); binary.LittleEndian.Uint64(p[:]) != tc.sectors {
				t.Fatalf("capacity %d, want %d", binary.LittleEndian.Uint64(p[:]), tc.sectors)
			}
			if d.ReadConfig(12, p[:]); binary.LittleEndian.Uint64(p[:]) != QueueSize-2 {
				t.Fatalf("seg_max: %x", p)
			}
			d.ReadConfig(1<<63, p[:])
		})
	}
}

type guest struct {
	*vt.Machine
	header, status vt.Span
}

func start(tb testing.TB, d *Device) *guest {
	m := vt.Start(tb, d, 16<<20)
	return &guest{m, m.Arena.Alloc(16), m.Arena.Alloc(1)}
}

func (g *guest) do(typ uint32, sector uint64, out, in []vt.Span) (status byte, written uint32) {
	h := g.Bytes(g.header)
	binary.LittleEndian.PutUint32(h, typ)
	binary.LittleEndian.PutUint64(h[8:], sector)
	g.Bytes(g.status)[0] = 0xff
	written = g.Do(g.Rings[0], append([]vt.Span{g.header}, out...), append(in, g.status))
	return g.Bytes(g.status)[0], written
}

// engines runs a test with each engine that the host has.
func engines(t *testing.T, test func(t *testing.T, engine string)) {
	for _, engine := range []string{config.IOSync, config.IOAsync} {
		t.Run(engine, func(t *testing.T) {
			if engine == config.IOAsync {
				needURing(t)
			}
			test(t, engine)
		})
	}
}

func needURing(t testing.TB) {
	t.Helper()
	r, err := uring.New(1)
	if errors.Is(err, uring.ErrUnusable) {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	r.Close()
}

func TestReadWrite(t *testing.T) { engines(t, testReadWrite) }

func testReadWrite(t *testing.T, engine string) {
	d, data := drive(t, 1<<20, config.Drive{DriveID: "root", CacheType: "Writeback", IOEngine: engine})
	g := start(t, d)
	buf := []vt.Span{g.Arena.Alloc(100), g.Arena.Alloc(4096), g.Arena.Alloc(412)}
	size := 100 + 4096 + 412
	gather := func() (b []byte) {
		for _, s := range buf {
			b = append(b, g.Bytes(s)...)
		}
		return b
	}
	if s, n := g.do(typeIn, 3, nil, buf); s != statusOK || n != uint32(size+1) || !bytes.Equal(gather(), data[3*512:3*512+size]) {
		t.Fatalf("read: status %d, %d bytes", s, n)
	}
	if s, n := g.do(typeOut, 100, buf, nil); s != statusOK || n != 1 {
		t.Fatalf("write: status %d, %d bytes", s, n)
	}
	if s, _ := g.do(typeFlush, 0, nil, nil); s != statusOK {
		t.Fatalf("flush: status %d", s)
	}
	copy(data[100*512:], data[3*512:3*512+size])
	if got, err := os.ReadFile(d.backing.file.Name()); err != nil || !bytes.Equal(got, data) {
		t.Fatal("file is not what was written", err)
	}
	// The last sector is there, the next is not.
	one := []vt.Span{g.Arena.Alloc(512)}
	if s, _ := g.do(typeIn, 2047, nil, one); s != statusOK || !bytes.Equal(g.Bytes(one[0]), data[2047*512:]) {
		t.Fatalf("last sector: status %d", s)
	}
	id := []vt.Span{g.Arena.Alloc(20)}
	if s, n := g.do(typeGetID, 0, nil, id); s != statusOK || n != 21 || string(g.Bytes(id[0])) != "root"+strings.Repeat("\x00", 16) {
		t.Fatalf("id: status %d, %d bytes, %q", s, n, g.Bytes(id[0]))
	}
	large := []vt.Span{g.Arena.Alloc(1 << 20)}
	if s, _ := g.do(typeIn, 0, nil, large); s != statusOK || !bytes.Equal(g.Bytes(large[0]), data) {
		t.Fatalf("whole drive: status %d", s)
	}
}

func TestRefused(t *testing.T) { engines(t, testRefused) }

func testRefused(t *testing.T, engine string) {
	d, _ := drive(t, 4096, config.Drive{IsReadOnly: true, IOEngine: engine})
	if d.Features()&featureRO == 0 || d.Features()&featureFlush != 0 {
		t.Fatalf("features %#x", d.Features())
	}
	g := start(t, d)
	one, odd, two := []vt.Span{g.Arena.Alloc(512)}, []vt.Span{g.Arena.Alloc(511)}, []vt.Span{g.Arena.Alloc(1024)}
	for _, tc := range []struct {
		name    string
		typ     uint32
		sector  uint64
		out, in []vt.Span
		want    byte
	}{
		{"write to a read-only drive", typeOut, 0, one, nil, statusIOErr},
		{"behind the end", typeIn, 8, nil, one, statusIOErr},
		{"across the end", typeIn, 7, nil, two, statusIOErr},
		{"far behind the end", typeIn, 1 << 55, nil, one, statusIOErr},
		{"last sector there is", typeIn, ^uint64(0), nil, one, statusIOErr},
		{"part of a sector", typeIn, 0, nil, odd, statusIOErr},
		{"discard", 11, 0, one, nil, statusUnsup},
		{"flush is harmless", typeFlush, 0, nil, nil, statusOK},
		{"nothing at the end", typeIn, 8, nil, nil, statusOK},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if s, n := g.do(tc.typ, tc.sector, tc.out, tc.in); s != tc.want || n != 1 {
				t.Fatalf("status %d, %d bytes; want %d", s, n, tc.want)
			}
		})
	}
	t.Run("no status", func(t *testing.T) {
		if n := g.Do(g.Rings[0], []vt.Span{g.header}, nil); n != 0 {
			t.Fatalf("%d bytes written to nothing", n)
		}
	})
	t.Run("short header", func(t *testing.T) {
		if g.Do(g.Rings[0], []vt.Span{{Addr: g.header.Addr, Len: 15}}, []vt.Span{g.status}); g.Bytes(g.status)[0] != statusIOErr {
			t.Fatal("no error")
		}
	})
	t.Run("file cut short", func(t *testing.T) {
		if err := os.Truncate(d.backing.file.Name(), 512); err != nil {
			t.Fatal(err)
		}
		if s, _ := g.do(typeIn, 0, nil, two); s != statusIOErr {
			t.Fatalf("status %d", s)
		}
	})
}

// A drive outlives its driver: a guest that reboots starts again.
func TestReset(t *testing.T) { engines(t, testReset) }

func testReset(t *testing.T, engine string) {
	d, data := drive(t, 4096, config.Drive{CacheType: "Writeback", IOEngine: engine})
	g := start(t, d)
	for range 3 {
		buf := []vt.Span{g.Arena.Alloc(512)}
		if s, _ := g.do(typeIn, 1, nil, buf); s != statusOK || !bytes.Equal(g.Bytes(buf[0]), data[512:1024]) {
			t.Fatalf("status %d", s)
		}
		// The second and third driver send no flushes.
		if s, _ := g.do(typeOut, 1, buf, nil); s != statusOK {
			t.Fatalf("status %d", s)
		}
		d.Reset()
		d.Reset()
		g.Activate(0)
		g.header, g.status = g.Arena.Alloc(16), g.Arena.Alloc(1)
	}
}

type running struct{}

func (running) Stopped() bool             { return false }
func (running) Sleep(time.Duration) error { return queue.ErrStopped }
func (running) Wake()                     {}

// FuzzBlockRequest gives a device chains of any shape over memory of any content: four bytes choose how the first of the
// rest are cut into buffers.
func FuzzBlockRequest(f *testing.F) {
	request := func(typ byte, sector byte, tail int) []byte {
		b := make([]byte, 16+tail)
		b[0], b[8] = typ, sector
		return b
	}
	f.Add(uint32(0x10100110), request(typeIn, 1, 513))
	f.Add(uint32(0x00200001), request(typeOut, 2, 1024))
	f.Add(uint32(0x03040501), request(typeGetID, 0, 21))
	f.Add(uint32(0), request(typeFlush, 0, 1))
	f.Add(uint32(0x08010101), append(append(request(typeDiscard, 0, 0), packed(segment{8, 4, 0}, segment{1, 16, 0})...), 0))
	f.Add(uint32(0x08010101), append(append(request(typeWriteZeroes, 0, 0), packed(segment{8, 4, flagUnmap}, segment{0, 1 << 31, 0})...), 0))
	mem := vt.Memory(f, 1<<20).Regions()[0].Mem
	d, _ := drive(f, 8192, config.Drive{DriveID: "fuzz", CacheType: "Writeback"})
	s := d.serve(d.Features())
	f.Fuzz(func(t *testing.T, cut uint32, data []byte) {
		if len(data) > len(mem) {
			return
		}
		n := copy(mem, data)
		var c queue.Chain
		writable := int(cut>>24) * n / 256
		for i, left := 0, mem[:n]; len(left) > 0; i++ {
			size := min(1+int(cut>>(8*(i%3))&0xff)*16, len(left))
			if len(left) <= writable {
				c.Writable = append(c.Writable, left[:size:size])
			} else {
				c.Readable = append(c.Readable, left[:size:size])
			}
			left = left[size:]
		}
		space := c.WritableLen()
		written, err := s.handle(&c, running{})
		if err != nil {
			t.Fatal(err)
		}
		if int(written) > space {
			t.Fatalf("%d bytes written to %d", written, space)
		}
		if space > 0 && mem[n-1] > statusUnsup {
			t.Fatalf("status %d", mem[n-1])
		}
		if fi, err := d.backing.file.Stat(); err != nil || fi.Size() != 8192 {
			t.Fatalf("drive has %d bytes, %v", fi.Size(), err)
		}
	})
}

func BenchmarkRead4K(b *testing.B)   { benchmarkRead(b, 4<<10) }
func BenchmarkRead128K(b *testing.B) { benchmarkRead(b, 128<<10) }

// benchmarkRead is what a request of size bytes costs beside the queue. One more copy of the data shows in it.
func benchmarkRead(b *testing.B, size int) {
	d, _ := drive(b, 1<<20, config.Drive{})
	m := vt.Memory(b, 1<<20).Regions()[0].Mem
	s := d.serve(0)
	c := queue.Chain{Readable: [][]byte{m[:16]}, Writable: [][]byte{m[4096 : 4096+size], m[16:17]}}
	b.SetBytes(int64(size))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := s.handle(&c, running{}); err != nil || m[16] != statusOK {
			b.Fatal(err, m[16])
		}
	}
}
