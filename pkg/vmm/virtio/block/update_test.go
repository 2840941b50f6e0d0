package block

import (
	"bytes"
	"encoding/binary"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/config"
	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/ratelimit"
	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/virtio/queue"
	vt "github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/virtio/virtiotest"
)

// sleeper has requests wait for tokens by counting what they wait for.
type sleeper struct {
	running
	slept time.Duration
}

func (s *sleeper) Sleep(d time.Duration) error {
	s.slept += d
	return queue.ErrStopped
}

var _ ratelimit.Sleeper = (*sleeper)(nil)

// What a request costs is seen by what is left in a bucket that practically never refills.
func TestCosts(t *testing.T) {
	const size = 1 << 20
	limit := config.RateLimiter{Bandwidth: &config.TokenBucket{Size: size, RefillTime: 1e12}, Ops: &config.TokenBucket{Size: 10, RefillTime: 1e12}}
	mem := vt.Memory(t, 1<<20).Regions()[0].Mem
	for _, tt := range []struct {
		name          string
		typ           uint32
		header        int
		out, in, cost int
	}{
		{"read", typeIn, headerSize, 0, 4096, 4096},
		{"write", typeOut, headerSize, 8192, 0, 8192},
		{"read beyond the end", typeIn, headerSize, 0, 1 << 18, 1 << 18},
		{"flush", typeFlush, headerSize, 0, 0, 0},
		{"id", typeGetID, headerSize, 0, 20, 0},
		{"unknown", 99, headerSize, 512, 512, 0},
		{"discard", typeDiscard, headerSize, 16, 0, 0},
		{"zeros", typeWriteZeroes, headerSize, 32, 0, 2 * 7 * 512},
		{"zeros, half a segment", typeWriteZeroes, headerSize, 24, 0, 0},
		{"short header", typeIn, 15, 0, 512, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			limit := limit
			d, _ := drive(t, 1<<16, config.Drive{CacheType: "Writeback", RateLimiter: &limit})
			s := d.serve(d.Features())
			clear(mem[:headerSize])
			binary.LittleEndian.PutUint32(mem, tt.typ)
			copy(mem[4096:], packed(segment{0, 7, 0}, segment{100, 7, 0}))
			c := queue.Chain{Readable: [][]byte{mem[:tt.header], mem[4096:][:tt.out]}, Writable: [][]byte{mem[1<<19:][:tt.in], mem[4095:4096]}}
			if _, err := s.handle(&c, running{}); err != nil {
				t.Fatal(err)
			}
			// All the rest, exactly, and nothing more.
			if err := d.limiter.Await(&sleeper{}, uint64(size-tt.cost)); err != nil {
				t.Error("cost more")
			}
			if err := d.limiter.Await(&sleeper{}, 1); err == nil {
				t.Error("cost less")
			}
			for range 8 {
				if err := d.limiter.Await(&sleeper{}, 0); err != nil {
					t.Error("cost more than an operation")
				}
			}
			if err := d.limiter.Await(&sleeper{}, 0); err == nil {
				t.Error("cost no operation")
			}
		})
	}
}

// Requests wait in the ring, in order, for a limit of hours; a reset gives them up, and does not fill the bucket; a new limit
// lets them go.
func TestBlocked(t *testing.T) { engines(t, testBlocked) }

func testBlocked(t *testing.T, engine string) {
	d, data := drive(t, 1<<20, config.Drive{IOEngine: engine, RateLimiter: &config.RateLimiter{Ops: &config.TokenBucket{Size: 1, RefillTime: 1e9}}})
	g := start(t, d)
	buf := g.Arena.Alloc(512)
	if s, _ := g.do(typeIn, 1, nil, []vt.Span{buf}); s != statusOK {
		t.Fatalf("status %d", s)
	}
	add := func(sector uint64) (head uint16, buf vt.Span) {
		h, status := g.Arena.Alloc(headerSize), g.Arena.Alloc(1)
		buf = g.Arena.Alloc(512)
		binary.LittleEndian.PutUint64(g.Bytes(h)[8:], sector)
		head, ok := g.Rings[0].Add([]vt.Span{h}, []vt.Span{buf, status})
		if !ok {
			t.Fatal("no descriptors")
		}
		g.Rings[0].Kick()
		return head, buf
	}
	for range 2 {
		add(2)
		g.WantBlocked(g.Rings[0])
		if err := d.Reset(); err != nil {
			t.Fatal(err)
		}
		g.Activate(0)
	}
	var heads []uint16
	var bufs []vt.Span
	for i := range uint64(20) {
		h, b := add(i)
		heads, bufs = append(heads, h), append(bufs, b)
		vt.Kick(g.Rings[0].Cfg.Notify) // a driver that knows no patience
	}
	g.WantBlocked(g.Rings[0])
	d.Limit(&config.RateLimiter{Ops: &config.TokenBucket{}})
	for _, want := range heads {
		if got, _ := g.WaitUsed(g.Rings[0]); got != want && engine == config.IOSync {
			t.Fatalf("chain %d came back, want %d", got, want)
		}
	}
	for i := range heads {
		if !bytes.Equal(g.Bytes(bufs[i]), data[i*512:][:512]) {
			t.Errorf("request %d read something else", i)
		}
	}
	// A device can be closed while a request waits.
	d.Limit(&config.RateLimiter{Ops: &config.TokenBucket{Size: 1, RefillTime: 1e9}})
	add(0)
	g.WaitUsed(g.Rings[0])
	add(0)
	g.WantBlocked(g.Rings[0])
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
}

func capacity(d *Device) uint64 {
	var p [8]byte
	d.ReadConfig(0, p[:])
	return binary.LittleEndian.Uint64(p[:])
}

func isOpen(b *Backing) bool {
	_, err := b.file.Stat()
	return err == nil
}

func TestSwap(t *testing.T) { engines(t, testSwap) }

func testSwap(t *testing.T, engine string) {
	d, data := drive(t, 1<<16, config.Drive{IOEngine: engine})
	g := start(t, d)
	buf := []vt.Span{g.Arena.Alloc(512)}
	read := func(sector uint64) (byte, []byte) {
		s, _ := g.do(typeIn, sector, nil, buf)
		return s, g.Bytes(buf[0])
	}
	first := d.backing
	path := first.file.Name()

	// The same file, which has grown.
	if err := os.Truncate(path, 1<<17); err != nil {
		t.Fatal(err)
	}
	if s, _ := read(1 << 7); s != statusIOErr || capacity(d) != 1<<7 {
		t.Fatalf("status %d behind the old end, capacity %d", s, capacity(d))
	}
	b, err := d.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	if old := d.Swap(b); old != first {
		t.Error("the old file is not given back")
	}
	if s, p := read(1 << 7); s != statusOK || !bytes.Equal(p, make([]byte, 512)) || capacity(d) != 1<<8 {
		t.Fatalf("status %d behind the old end, capacity %d", s, capacity(d))
	}
	if s, p := read(1); s != statusOK || !bytes.Equal(p, data[512:1024]) {
		t.Fatalf("status %d", s)
	}
	if !isOpen(first) {
		t.Error("closed where others wait")
	}
	first.Close()

	// Another file, smaller, while a request waits for tokens, and another one again.
	d.Limit(&config.RateLimiter{Ops: &config.TokenBucket{Size: 1, RefillTime: 1e9}})
	read(0)
	g.Bytes(g.status)[0] = 0xff
	g.Rings[0].Add([]vt.Span{g.header}, append(buf, g.status))
	g.Rings[0].Kick()
	g.WantBlocked(g.Rings[0])
	other := filepath.Join(t.TempDir(), "other")
	if err := os.WriteFile(other, bytes.Repeat([]byte("new!"), 256), 0o600); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		b, err := d.Open(other)
		if err != nil {
			t.Fatal(err)
		}
		d.Swap(b).Close()
	}
	d.Limit(&config.RateLimiter{Ops: &config.TokenBucket{}})
	g.WaitUsed(g.Rings[0])
	if s := g.Bytes(g.status)[0]; s != statusOK || string(g.Bytes(buf[0])[:4]) != "new!" || capacity(d) != 2 {
		t.Errorf("status %d, %q, capacity %d", s, g.Bytes(buf[0])[:4], capacity(d))
	}
	if s, _ := read(2); s != statusIOErr {
		t.Errorf("status %d behind the new end", s)
	}

	for path, want := range map[string]string{
		filepath.Join(t.TempDir(), "none"): "no such file",
		t.TempDir():                        "", // it depends: a folder cannot be written to
		"/dev/null":                        "regular file or a block device",
	} {
		if _, err := d.Open(path); err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), "path_on_host") {
			t.Errorf("%s: %v", path, err)
		}
	}
}

// A request that is in work stays where it began, and its file is closed after it.
func TestSwapWhileBusy(t *testing.T) {
	d, _ := drive(t, 1<<16, config.Drive{})
	old := d.begin()
	var backings []*Backing
	for range 2 {
		b, err := d.Open(old.file.Name())
		if err != nil {
			t.Fatal(err)
		}
		unused := d.Swap(b)
		backings = append(backings, b)
		if len(backings) == 1 && unused != nil || len(backings) == 2 && unused != backings[0] {
			t.Fatalf("swap %d gave back %v", len(backings), unused)
		}
	}
	backings[0].Close()
	if !isOpen(old) || !isOpen(backings[1]) {
		t.Error("the request's file and the drive's must be open")
	}
	d.end(old)
	for begin := time.Now(); isOpen(old); time.Sleep(time.Millisecond) {
		if time.Since(begin) > vt.Timeout {
			t.Fatal("the request's file is not closed after it")
		}
	}
	if !isOpen(backings[1]) {
		t.Error("the drive's file must be open")
	}
	if d.end(d.begin()); !isOpen(backings[1]) {
		t.Error("the drive's file was closed")
	}
}
