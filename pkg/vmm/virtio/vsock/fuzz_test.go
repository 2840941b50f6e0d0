package vsock

import (
	"encoding/binary"
	"io"
	"net"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/memory"
	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/virtio"
	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/virtio/queue"
	vt "github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/virtio/virtiotest"
)

type noInterrupt struct{}

func (noInterrupt) Queue()       {}
func (noInterrupt) Config()      {}
func (noInterrupt) Broken(error) {}

// FuzzPacket lets a guest send any packets: sixteen bytes of the script make one, or a host program's connection. On port 1
// of the host sits a program that echoes, on port 2 one that never reads, on port 3 one that leaves at once.
func FuzzPacket(f *testing.F) {
	record := func(op, flags, ports byte, n uint16, lie byte) []byte {
		b := []byte{0, op, flags, ports, 0, 0, 0, 4, 0, 0, 0, 0, lie, typeStream, 0, 0}
		binary.LittleEndian.PutUint16(b[4:], n)
		return b
	}
	join := func(r ...[]byte) (b []byte) {
		for _, r := range r {
			b = append(b, r...)
		}
		return b
	}
	f.Add(join(record(opRequest, 0, 1, 0, 0), record(opRW, 0, 1, 500, 0), record(opShutdown, 3, 1, 0, 0)))
	f.Add(join(record(opRequest, 0, 2, 0, 0), record(opRW, 0, 2, 60000, 0), record(opRW, 0, 2, 60000, 0), record(opRST, 0, 2, 0, 0)))
	f.Add(join(record(opRequest, 0, 3, 0, 0), record(opRW, 0, 3, 9, 0), record(opShutdown, 2, 3, 0, 0), record(opRW, 0, 3, 9, 0)))
	f.Add(join(record(opRequest, 0, 1, 0, 0), record(opRW, 0, 1, 9, 200), record(opCreditRequest, 0, 1, 0, 0)))
	f.Add(join([]byte{1}, make([]byte, 15), record(opResponse, 0, 8, 0, 0), record(opRequest, 0, 0xff, 0, 0)))

	path := filepath.Join(f.TempDir(), "v")
	for port, serve := range map[int]func(c *net.UnixConn){
		1: func(c *net.UnixConn) { io.Copy(c, c); c.Close() },
		2: func(c *net.UnixConn) { time.AfterFunc(time.Second, func() { c.Close() }) },
		3: func(c *net.UnixConn) { c.Close() },
	} {
		l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path + "_" + strconv.Itoa(port), Net: "unix"})
		if err != nil {
			f.Fatal(err)
		}
		f.Cleanup(func() { l.Close() })
		go func() {
			for {
				c, err := l.AcceptUnix()
				if err != nil {
					return
				}
				go serve(c)
			}
		}()
	}
	hosts, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { hosts.Close() })
	mem, err := memory.New(4<<20, memory.HostPages)
	if err != nil {
		f.Fatal(err)
	}
	rxFD, txFD := vt.Eventfd(f), vt.Eventfd(f)

	f.Fuzz(func(t *testing.T, script []byte) {
		if len(script) > 16*64 {
			return
		}
		rx, tx := vt.NewRing(mem, 4096, QueueSize, true, rxFD), vt.NewRing(mem, 64<<10, QueueSize, true, txFD)
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
		arena := vt.NewArena(1 << 20)
		for range 64 {
			rx.Add(nil, []vt.Span{arena.Alloc(2048)})
		}
		packet := rx.Bytes(arena.Alloc(headerSize + maxPacket))
		var scratch [headerSize]byte
		for ; len(script) >= 16; script = script[16:] {
			r := script[:16]
			if r[0] == 1 {
				go func() {
					if c, err := net.Dial("unix", path); err == nil {
						c.Write([]byte("CONNECT 8\nhello"))
						time.AfterFunc(time.Second, func() { c.Close() })
					}
				}()
				if c, err := hosts.AcceptUnix(); err == nil && !s.accept(c) {
					c.Close()
				}
				continue
			}
			n := int(binary.LittleEndian.Uint16(r[4:]))
			h := header{
				srcCID: guestCID, dstCID: hostCID, op: uint16(r[1]), flags: uint32(r[2]),
				dstPort: uint32(r[3] & 7), srcPort: uint32(r[3] >> 3), len: uint32(n) + uint32(r[12])<<20,
				bufAlloc: binary.LittleEndian.Uint32(r[6:]), fwdCnt: uint32(r[10]) | uint32(r[11])<<24, typ: uint16(r[13]),
			}
			if r[3]&7 == 7 {
				h.dstPort = firstHostPort + uint32(r[3]>>3)&1
				h.srcPort = 8
			}
			h.srcCID += uint64(r[14])
			h.format([][]byte{packet}, &scratch)
			bufs := [][]byte{packet[:headerSize], packet[headerSize : headerSize+n]}
			if cut := int(r[15]); cut > 0 {
				bufs = [][]byte{packet[:min(cut, headerSize+n)], packet[min(cut, headerSize+n) : headerSize+n]}
			}
			s.packet(bufs)
			s.rx.answer()
			for {
				head, n, ok := rx.Used()
				if !ok {
					break
				}
				if n > 2048 {
					t.Fatalf("%d bytes in a buffer of 2048", n)
				}
				rx.Add(nil, []vt.Span{{Addr: 1<<20 + uint64(head)*2048, Len: 2048}})
				rx.Kick()
			}
			s.mu.Lock()
			if len(s.slots) > MaxConns || len(s.conns) > len(s.slots) {
				t.Errorf("%d slots, %d names", len(s.slots), len(s.conns))
			}
			s.mu.Unlock()
		}
		done := make(chan struct{})
		go func() { s.stop(); close(done) }()
		select {
		case <-done:
		case <-time.After(vt.Timeout):
			panic("session does not stop")
		}
		if len(s.slots)+len(s.conns) != 0 {
			t.Fatalf("%d slots and %d names left", len(s.slots), len(s.conns))
		}
	})
}
