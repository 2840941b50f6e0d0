package vsock

import (
	"net"
	"path/filepath"
	"testing"
	"time"

	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/virtio"
	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/virtio/queue"
	vt "github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/virtio/virtiotest"
)

// TestGuestTakesNothing has a guest open and break connections for ever without a buffer for the answers.
func TestGuestTakesNothing(t *testing.T) {
	for _, tc := range []struct {
		name string
		end  header
	}{
		{"bad packet", header{op: 99}},
		{"reset", header{op: opRST}},
	} {
		t.Run(tc.name, func(t *testing.T) { takesNothing(t, tc.end) })
	}
}

func takesNothing(t *testing.T, end header) {
	path := filepath.Join(t.TempDir(), "v")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path + "_1", Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		for {
			c, err := l.AcceptUnix()
			if err != nil {
				return
			}
			c.Close()
		}
	}()
	mem := vt.Memory(t, 4<<20)
	rx, tx := vt.NewRing(mem, 4096, QueueSize, true, vt.Eventfd(t)), vt.NewRing(mem, 64<<10, QueueSize, true, vt.Eventfd(t))
	var qs []*queue.Queue
	for _, r := range []*vt.Ring{rx, tx} {
		q, err := queue.New(mem, r.Cfg)
		if err != nil {
			t.Fatal(err)
		}
		qs = append(qs, q)
	}
	s := newSession(guestCID, path, virtio.Activation{Memory: mem, Queues: qs, Interrupt: noInterrupt{}})
	s.spawn(func() { s.end("rx", s.rx.serve()) })
	packet := rx.Bytes(vt.NewArena(1 << 20).Alloc(headerSize))
	var scratch [headerSize]byte
	send := func(h header, port uint32) {
		h.srcCID, h.dstCID, h.srcPort, h.dstPort, h.typ = guestCID, hostCID, port, 1, typeStream
		h.format([][]byte{packet}, &scratch)
		s.packet([][]byte{packet})
		if err := s.rx.answer(); err != nil {
			t.Fatal(err)
		}
	}
	listed := func() (n int) {
		s.rx.mu.Lock()
		defer s.rx.mu.Unlock()
		for c := s.rx.head; c != nil; c = c.next {
			n++
		}
		return n
	}
	for i := range uint32(10 * MaxConns) {
		send(header{op: opRequest}, i)
		send(end, i)
	}
	if n := listed(); n == 0 || n > MaxConns {
		t.Errorf("%d connections have something pending, want 1 to %d", n, MaxConns)
	}
	// Once the guest takes what is pending, all slots get free.
	for range 64 {
		rx.Add(nil, []vt.Span{{Addr: 2 << 20, Len: 2048}})
	}
	rx.Kick()
	left := func() int {
		s.mu.Lock()
		defer s.mu.Unlock()
		return len(s.slots)
	}
	for begin := time.Now(); left() > 0; time.Sleep(time.Millisecond) {
		for {
			if _, _, ok := rx.Used(); !ok {
				break
			}
			rx.Add(nil, []vt.Span{{Addr: 2 << 20, Len: 2048}})
		}
		rx.Kick()
		if time.Since(begin) > vt.Timeout {
			t.Fatalf("%d slots taken after %v", left(), vt.Timeout)
		}
	}
	for i := range uint32(MaxConns) {
		send(header{op: opRequest}, i)
	}
	s.stop()
	if n := left() + listed(); n != 0 {
		t.Errorf("%d slots and pending connections after the end", n)
	}
}
