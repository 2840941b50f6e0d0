package vsock

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/config"
	vt "github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/virtio/virtiotest"
)

func noise(n int) []byte {
	b := make([]byte, n)
	rand.NewChaCha8([32]byte{1}).Read(b)
	return b
}

func listen(tb testing.TB, g *guest, port uint32) *net.UnixListener {
	tb.Helper()
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: fmt.Sprintf("%s_%d", g.path, port), Net: "unix"})
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { l.Close() })
	return l
}

func accept(tb testing.TB, l *net.UnixListener) *net.UnixConn {
	tb.Helper()
	l.SetDeadline(time.Now().Add(vt.Timeout))
	c, err := l.AcceptUnix()
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(vt.Timeout))
	return c
}

func dialHost(tb testing.TB, g *guest) *net.UnixConn {
	tb.Helper()
	c, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: g.path, Net: "unix"})
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(vt.Timeout))
	return c
}

// pair is an open connection that the guest asked for.
func pair(tb testing.TB) (*guest, *gsock, *net.UnixConn) {
	tb.Helper()
	g := newGuest(tb)
	l := listen(tb, g, 1024)
	s := g.dial(key{host: 1024, guest: 5000})
	if !s.connected {
		tb.Fatal("refused")
	}
	return g, s, accept(tb, l)
}

func TestNew(t *testing.T) {
	dir := t.TempDir()
	taken := filepath.Join(dir, "taken")
	if err := os.WriteFile(taken, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		name string
		cfg  config.Vsock
		err  string
	}{
		{"low cid", config.Vsock{GuestCID: 2, UDSPath: dir + "/a"}, "guest_cid is 2"},
		{"high cid", config.Vsock{GuestCID: 1<<32 - 1, UDSPath: dir + "/a"}, "guest_cid"},
		{"no path", config.Vsock{GuestCID: 3}, "uds_path"},
		{"long path", config.Vsock{GuestCID: 3, UDSPath: "/" + strings.Repeat("x", 100)}, "uds_path"},
		{"taken", config.Vsock{GuestCID: 3, UDSPath: taken}, "uds_path"},
		{"no folder", config.Vsock{GuestCID: 3, UDSPath: dir + "/none/a"}, "uds_path"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			d, err := New(tc.cfg)
			if err == nil {
				d.Close()
			}
			if err == nil || !strings.Contains(err.Error(), tc.err) {
				t.Fatalf("error %v, want %q in it", err, tc.err)
			}
		})
	}
	cfg := config.Vsock{GuestCID: 77, UDSPath: dir + "/good"}
	d, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	var p [8]byte
	if d.ReadConfig(0, p[:]); p != [8]byte{77} {
		t.Fatalf("configuration %x", p)
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Lstat(cfg.UDSPath); !os.IsNotExist(err) {
		t.Fatalf("socket after Close: %v", err)
	}
	// A socket that somebody else put there stays.
	if d, err = New(cfg); err != nil {
		t.Fatal(err)
	}
	os.Remove(cfg.UDSPath)
	if err := os.WriteFile(cfg.UDSPath, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	d.Close()
	if _, err := os.Lstat(cfg.UDSPath); err != nil {
		t.Fatal(err)
	}
}

func TestGuestConnects(t *testing.T) {
	g, s, c := pair(t)
	if _, err := c.Write([]byte("hello guest")); err != nil {
		t.Fatal(err)
	}
	s.until("data", func() bool { return s.in.Len() == 11 })
	if s.in.String() != "hello guest" {
		t.Fatalf("guest got %q", s.in.String())
	}
	s.write([]byte("hello host"), 4)
	var b [10]byte
	if _, err := io.ReadFull(c, b[:]); err != nil || string(b[:]) != "hello host" {
		t.Fatalf("host got %q, %v", b, err)
	}
	s.op(opCreditRequest, 0)
	if h := g.step(); h.op != opCreditUpdate || h.fwdCnt != 10 || h.bufAlloc != bufferSize {
		t.Fatalf("answer to a credit request: %+v", h)
	}
}

func TestRefused(t *testing.T) {
	g := newGuest(t)
	if s := g.dial(key{host: 99, guest: 5000}); !s.reset {
		t.Fatal("connected to nobody")
	}
	for _, tc := range []struct {
		name string
		h    header
		want bool
	}{
		{"data without a connection", header{op: opRW}, true},
		{"shutdown without a connection", header{op: opShutdown, flags: 3}, true},
		{"unknown operation", header{op: 99}, true},
		{"unknown type", header{op: opRequest, typ: 7}, true},
		{"announces more than there is", header{op: opRequest, len: 1 << 30}, true},
		{"reset without a connection", header{op: opRST}, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			g.strays = nil
			tc.h.srcPort, tc.h.dstPort = 6000, 7000
			g.send(tc.h, nil)
			if !tc.want {
				g.idle()
				return
			}
			if h := g.step(); h.op != opRST || h.srcPort != 7000 || h.dstPort != 6000 || (tc.h.typ != 0 && h.typ != tc.h.typ) {
				t.Fatalf("answer %+v, want a reset", h)
			}
		})
	}
}

// What breaks the protocol costs the connection, on both sides.
func TestViolations(t *testing.T) {
	for _, tc := range []struct {
		name string
		do   func(s *gsock)
	}{
		{"second request", func(s *gsock) { s.op(opRequest, 0) }},
		{"response", func(s *gsock) { s.op(opResponse, 0) }},
		{"unknown operation", func(s *gsock) { s.op(99, 0) }},
		{"data behind the end", func(s *gsock) { s.op(opShutdown, shutdownSend); s.packet(opRW, 0, []byte("x")) }},
		{"length beyond the buffer", func(s *gsock) {
			s.g.send(header{srcPort: s.key.guest, dstPort: s.key.host, op: opRW, len: 100}, []byte("x"))
		}},
		{"more than the credit", func(s *gsock) {
			for range 64 { // the socket itself takes some of it
				s.packet(opRW, 0, make([]byte, maxPacket))
			}
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			_, s, c := pair(t)
			tc.do(s)
			for !s.reset {
				s.g.step()
			}
			if _, err := io.Copy(io.Discard, c); err != nil {
				t.Fatalf("host: %v", err)
			}
		})
	}
}

func TestHostConnects(t *testing.T) {
	g := newGuest(t)
	c := dialHost(t, g)
	fmt.Fprintf(c, "CONNECT 52\nearly") // what follows the line is the guest's
	s := g.accept(52)
	r := bufio.NewReader(c)
	line, err := r.ReadString('\n')
	if want := fmt.Sprintf("OK %d\n", s.key.host); err != nil || line != want {
		t.Fatalf("got %q, %v; want %q", line, err, want)
	}
	s.until("data", func() bool { return s.in.Len() == 5 })
	s.write([]byte("answer"), 100)
	s.op(opShutdown, shutdownSend|shutdownReceive)
	if b, err := io.ReadAll(r); err != nil || string(b) != "answer" {
		t.Fatalf("host got %q, %v", b, err)
	}
	for !s.reset {
		g.step()
	}
}

func TestHostIsRefused(t *testing.T) {
	g := newGuest(t)
	for _, line := range []string{"GET / HTTP/1.1\n", "CONNECT x\n", "CONNECT 4294967296\n", "CONNECT 1 \n", strings.Repeat("x", 100), ""} {
		c := dialHost(t, g)
		c.Write([]byte(line))
		c.CloseWrite()
		if b, err := io.ReadAll(c); len(b) != 0 {
			t.Fatalf("%q: got %q, %v", line, b, err)
		}
	}
	c := dialHost(t, g)
	fmt.Fprintf(c, "CONNECT 1\n")
	h := g.step()
	g.send(header{srcPort: 1, dstPort: h.srcPort, op: opRST}, nil)
	if b, err := io.ReadAll(c); len(b) != 0 || err != nil {
		t.Fatalf("guest refused: got %q, %v", b, err)
	}
	start := time.Now()
	silent, unanswered := dialHost(t, g), dialHost(t, g)
	fmt.Fprintf(unanswered, "CONNECT 1\n")
	for _, c := range []net.Conn{silent, unanswered} {
		if b, err := io.ReadAll(c); len(b) != 0 || err != nil {
			t.Fatalf("time limit: got %q, %v", b, err)
		}
	}
	if d := time.Since(start); d < requestTimeout || d > vt.Timeout {
		t.Fatalf("time limit of %v took %v", requestTimeout, d)
	}
	if g.step(); g.step().op != opRST {
		t.Fatal("guest was not told of the time limit")
	}
}

// Each side may end its sending while the other goes on.
func TestHalfClose(t *testing.T) {
	t.Run("guest first", func(t *testing.T) {
		_, s, c := pair(t)
		s.write([]byte("request"), 100)
		s.op(opShutdown, shutdownSend)
		if b, err := io.ReadAll(c); err != nil || string(b) != "request" {
			t.Fatalf("host got %q, %v", b, err)
		}
		c.Write([]byte("answer"))
		c.Close()
		for !s.reset {
			s.g.step()
		}
		if s.in.String() != "answer" {
			t.Fatalf("guest got %q", s.in.String())
		}
	})
	t.Run("host first", func(t *testing.T) {
		_, s, c := pair(t)
		c.Write([]byte("request"))
		c.CloseWrite()
		s.until("end of data", func() bool { return s.shut == shutdownSend })
		if s.in.String() != "request" {
			t.Fatalf("guest got %q", s.in.String())
		}
		s.write([]byte("answer"), 100)
		s.op(opShutdown, shutdownSend|shutdownReceive)
		if b, err := io.ReadAll(c); err != nil || string(b) != "answer" {
			t.Fatalf("host got %q, %v", b, err)
		}
		for !s.reset {
			s.g.step()
		}
	})
	t.Run("host gone", func(t *testing.T) {
		_, s, c := pair(t)
		c.Write([]byte("last words"))
		c.Close()
		for !s.reset {
			s.g.step()
		}
		if s.in.String() != "last words" {
			t.Fatalf("guest got %q", s.in.String())
		}
	})
	t.Run("host half, then gone", func(t *testing.T) {
		_, s, c := pair(t)
		c.CloseWrite()
		s.until("end of data", func() bool { return s.shut == shutdownSend })
		s.g.idle()
		c.Close()
		for !s.reset {
			s.g.step()
		}
	})
	t.Run("guest does not receive", func(t *testing.T) {
		_, s, c := pair(t)
		s.op(opShutdown, shutdownReceive)
		var err error
		for range 1000 {
			if _, err = c.Write([]byte("x")); err != nil {
				break
			}
			time.Sleep(time.Millisecond)
		}
		if err == nil {
			t.Fatal("host can still write")
		}
		s.write([]byte("still here"), 100)
		s.op(opShutdown, shutdownSend)
		if b, err := io.ReadAll(c); err != nil || string(b) != "still here" {
			t.Fatalf("host got %q, %v", b, err)
		}
	})
}

// The guest's last bytes arrive though the guest has gone and the host reads late, and though the host's own data lies
// unread.
func TestNothingLostAtExit(t *testing.T) {
	for _, end := range []string{"shutdown", "shutdown and reset", "reset"} {
		t.Run(end, func(t *testing.T) {
			_, s, c := pair(t)
			s.stalled = true
			c.Write(noise(1000))
			data := noise(1 << 20)
			sent := 0
			for sent < len(data) && s.sent-s.peerFwd < s.peerAlloc { // nobody reads: socket and credit get full
				n := min(8192, len(data)-sent, int(s.peerAlloc-(s.sent-s.peerFwd)))
				s.packet(opRW, 0, data[sent:sent+n])
				s.sent += uint32(n)
				sent += n
				for {
					time.Sleep(time.Millisecond)
					if load, _, _ := peekUsed(s.g); !load {
						break
					}
				}
			}
			t.Logf("%d bytes on the way", sent)
			if strings.HasPrefix(end, "shutdown") {
				s.op(opShutdown, shutdownSend|shutdownReceive)
			}
			if strings.HasSuffix(end, "reset") {
				s.op(opRST, 0)
			}
			time.Sleep(20 * time.Millisecond)
			b, err := io.ReadAll(c)
			if err != nil || !bytes.Equal(b, data[:sent]) {
				t.Fatalf("host got %d bytes of %d, %v", len(b), sent, err)
			}
			if end == "shutdown" {
				for !s.reset {
					s.g.step()
				}
			}
		})
	}
}

// peekUsed takes a packet if there is one.
func peekUsed(g *guest) (bool, header, error) {
	if g.rx.Arm() {
		return false, header{}, nil
	}
	return true, g.step(), nil
}

func TestBulk(t *testing.T) {
	data := noise(20 << 20)
	want := sha256.Sum256(data)
	t.Run("to host", func(t *testing.T) {
		_, s, c := pair(t)
		got := make(chan [32]byte)
		go func() {
			h := sha256.New()
			io.Copy(h, c)
			got <- [32]byte(h.Sum(nil))
		}()
		s.write(data, maxPacket)
		s.op(opShutdown, shutdownSend|shutdownReceive)
		if <-got != want {
			t.Fatal("data differ")
		}
	})
	t.Run("to guest", func(t *testing.T) {
		_, s, c := pair(t)
		go func() {
			c.Write(data)
			c.CloseWrite()
		}()
		s.until("end", func() bool { return s.shut&shutdownSend != 0 })
		if sha256.Sum256(s.in.Bytes()) != want {
			t.Fatalf("data differ: %d bytes of %d", s.in.Len(), len(data))
		}
		t.Logf("%d packets", s.packets)
	})
	t.Run("both at once", func(t *testing.T) {
		_, s, c := pair(t)
		got := make(chan [32]byte)
		go func() {
			h := sha256.New()
			io.Copy(h, c)
			got <- [32]byte(h.Sum(nil))
		}()
		go func() {
			c.Write(data)
			c.CloseWrite()
		}()
		s.write(data, 4096)
		s.op(opShutdown, shutdownSend)
		for !s.reset {
			s.g.step()
		}
		if <-got != want || sha256.Sum256(s.in.Bytes()) != want {
			t.Fatal("data differ")
		}
	})
}

// A side that does not read holds the other back, and the rest of the connections go on.
func TestSlowReaders(t *testing.T) {
	g, s, c := pair(t)
	l := listen(t, g, 7)
	t.Run("guest", func(t *testing.T) {
		s.stalled = true
		data := noise(4 << 20)
		done := make(chan error, 1)
		go func() {
			_, err := c.Write(data)
			done <- err
		}()
		s.until("a full buffer", func() bool { return s.in.Len() == int(s.alloc) })
		g.idle()
		other := g.dial(key{host: 7, guest: 8})
		fmt.Fprint(accept(t, l), "hi")
		other.until("data", func() bool { return other.in.Len() == 2 })
		s.stalled = false
		s.fwd += uint32(s.in.Len())
		s.op(opCreditUpdate, 0)
		s.until("the rest", func() bool { return s.in.Len() == len(data) })
		if err := <-done; err != nil || !bytes.Equal(s.in.Bytes(), data) {
			t.Fatal("data differ", err)
		}
	})
	t.Run("host", func(t *testing.T) {
		data := noise(4 << 20)
		sent := 0
		for stuck := 0; stuck < 20; {
			if s.sent-s.peerFwd == s.peerAlloc {
				if ok, _, _ := peekUsed(g); !ok {
					stuck++
					time.Sleep(time.Millisecond)
				}
				continue
			}
			n := min(5000, int(s.peerAlloc-(s.sent-s.peerFwd)))
			s.packet(opRW, 0, data[sent:sent+n])
			s.sent, sent = s.sent+uint32(n), sent+n
		}
		other := g.dial(key{host: 7, guest: 9})
		o := accept(t, l)
		other.write([]byte("hi"), 2)
		var b [2]byte
		if _, err := io.ReadFull(o, b[:]); err != nil {
			t.Fatal(err)
		}
		got := make(chan []byte)
		go func() {
			b := make([]byte, len(data))
			n, _ := io.ReadFull(c, b)
			got <- b[:n]
		}()
		s.write(data[sent:], 5000)
		if !bytes.Equal(<-got, data) {
			t.Fatal("data differ")
		}
	})
}

// Without buffers in the rx queue nothing gets lost, and the tx queue goes on.
func TestGuestWithoutBuffers(t *testing.T) {
	g, s, c := pair(t)
	g.noPost = true
	data := noise(2 << 20)
	go c.Write(data)
	s.until("no more buffers", func() bool { return len(g.rxBufs) == 0 })
	s.write([]byte("through"), 10)
	var b [7]byte
	if _, err := io.ReadFull(c, b[:]); err != nil {
		t.Fatal(err)
	}
	g.noPost = false
	for _, b := range g.unpost {
		g.post(b)
	}
	g.rx.Kick()
	s.until("the rest", func() bool { return s.in.Len() == len(data) })
	if !bytes.Equal(s.in.Bytes(), data) {
		t.Fatal("data differ")
	}
}

// Small, odd and useless buffers are all filled as they are.
func TestOddBuffers(t *testing.T) {
	g, s, c := pair(t)
	g.noPost = true
	data := noise(128*4096 + 5000)
	go c.Write(data)
	s.until("no more buffers", func() bool { return len(g.rxBufs) == 0 })
	got := s.in.Len()
	g.rx.Add(nil, []vt.Span{g.Arena.Alloc(10)})
	g.rx.Add([]vt.Span{g.Arena.Alloc(100)}, nil)
	h, _ := g.rx.Add(nil, []vt.Span{g.Arena.Alloc(20), g.Arena.Alloc(24), g.Arena.Alloc(1), g.Arena.Alloc(2000)})
	g.rx.Kick()
	for {
		head, n := g.WaitUsed(g.rx)
		if head == h {
			if n != headerSize+2001 {
				t.Fatalf("%d bytes, want %d", n, headerSize+2001)
			}
			break
		}
		if n != 0 {
			t.Fatalf("%d bytes in a buffer of no use", n)
		}
	}
	s.in.Write(data[got : got+2001])
	for _, b := range g.unpost {
		g.post(b)
	}
	g.rx.Kick()
	s.until("the rest", func() bool { return s.in.Len() == len(data) })
	if !bytes.Equal(s.in.Bytes(), data) {
		t.Fatal("data differ")
	}
}

func TestLimit(t *testing.T) {
	if testing.Short() {
		t.Skip("takes 2046 descriptors")
	}
	g := newGuest(t)
	l := listen(t, g, 1)
	go func() {
		for {
			c, err := l.AcceptUnix()
			if err != nil {
				return
			}
			t.Cleanup(func() { c.Close() })
		}
	}()
	var first *gsock
	for i := range MaxConns {
		s := g.dial(key{host: 1, guest: uint32(10000 + i)})
		if !s.connected {
			t.Fatalf("connection %d refused", i)
		}
		if first == nil {
			first = s
		}
	}
	if s := g.dial(key{host: 1, guest: 9}); s.connected {
		t.Fatalf("connection %d accepted", MaxConns+1)
	}
	if b, err := io.ReadAll(dialHost(t, g)); len(b) != 0 {
		t.Fatalf("host's connection accepted: %q, %v", b, err)
	}
	first.op(opShutdown, 3)
	for !first.reset {
		g.step()
	}
	// The slot is free when the connection's goroutines have left, too, which may be a moment after its reset.
	deadline := time.Now().Add(10 * time.Second)
	for port := uint32(10); !g.dial(key{host: 1, guest: port}).connected; port++ {
		if time.Now().After(deadline) {
			t.Fatal("no room 10 s after a connection ended")
		}
	}
}

// A reset closes all connections and a new driver starts afresh.
func TestReset(t *testing.T) {
	g := newGuest(t)
	l := listen(t, g, 1)
	for range 3 {
		s := g.dial(key{host: 1, guest: 2})
		a := accept(t, l)
		b := dialHost(t, g)
		fmt.Fprintf(b, "CONNECT 52\n")
		g.accept(52)
		pending, silent := dialHost(t, g), dialHost(t, g)
		fmt.Fprintf(pending, "CONNECT 53\n")
		g.step()
		s.stalled = true
		go io.Copy(a, bytes.NewReader(make([]byte, 1<<20)))
		s.until("a full buffer", func() bool { return s.in.Len() == int(s.alloc) })
		g.dev.Reset()
		g.dev.Reset()
		for i, c := range []net.Conn{a, b, pending, silent} {
			if _, err := io.ReadAll(c); err != nil && !strings.Contains(err.Error(), "reset") {
				t.Fatalf("connection %d after reset: %v", i, err)
			}
		}
		// Whoever comes before the driver waits for it.
		early := dialHost(t, g)
		fmt.Fprintf(early, "CONNECT 52\n")
		g.Activate(0)
		g.setup()
		h := g.accept(52)
		if line, err := bufio.NewReader(early).ReadString('\n'); err != nil || line != fmt.Sprintf("OK %d\n", h.key.host) {
			t.Fatalf("connection before the driver: %q, %v", line, err)
		}
	}
}

// A connection that waits for a driver ends with the device.
func TestCloseWithoutDriver(t *testing.T) {
	g := newGuest(t)
	g.dev.Reset()
	early, second := dialHost(t, g), dialHost(t, g)
	if err := g.dev.Close(); err != nil {
		t.Fatal(err)
	}
	for _, c := range []net.Conn{early, second} {
		if b, err := io.ReadAll(c); len(b) != 0 || os.IsTimeout(err) {
			t.Errorf("got %q, %v", b, err)
		}
	}
}

// bench carries b.N packets of 64 KiB; allocations are those of both sides.
func BenchmarkToHost(b *testing.B) {
	_, s, c := pair(b)
	c.SetDeadline(time.Time{})
	go io.Copy(struct{ io.Writer }{io.Discard}, struct{ io.Reader }{c})
	data := noise(maxPacket)
	b.SetBytes(maxPacket)
	b.ReportAllocs()
	for b.Loop() {
		s.write(data, maxPacket)
	}
}

func BenchmarkToGuest(b *testing.B) {
	_, s, c := pair(b)
	c.SetDeadline(time.Time{})
	data := noise(1 << 20)
	stop := make(chan struct{})
	defer close(stop)
	go func() {
		for {
			select {
			case <-stop:
				return
			default:
			}
			if _, err := c.Write(data); err != nil {
				return
			}
		}
	}()
	b.SetBytes(maxPacket)
	b.ReportAllocs()
	for b.Loop() {
		s.until("data", func() bool { return s.in.Len() >= maxPacket })
		s.in.Next(maxPacket)
		if s.in.Len() == 0 {
			s.in.Reset()
		}
	}
}
