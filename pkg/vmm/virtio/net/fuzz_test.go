package net

import (
	"encoding/binary"
	"os"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/config"
	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/virtio"
	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/virtio/queue"
	vt "github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/virtio/virtiotest"
)

type noInterrupt struct{}

func (noInterrupt) Queue()       {}
func (noInterrupt) Config()      {}
func (noInterrupt) Broken(error) {}

// FuzzFrame has a guest send any bytes, cut into any pieces, with any features: what reaches the host's kernel is a frame
// with a header that was negotiated and that lies within the frame, and it is the guest's frame.
func FuzzFrame(f *testing.F) {
	f.Add(uint64(allFeatures), uint32(0), frame(60))
	f.Add(uint64(allFeatures), uint32(0x0c0105), frame(1514, 1, 1, 54, 0, 0xa8, 5, 34, 0, 16))
	f.Add(uint64(0), uint32(0x0b), frame(60, 1, 0, 0, 0, 0, 0, 34, 0, 24))
	f.Add(uint64(featureCSUM|featureHostUFO), uint32(0xff), frame(4000, 1, 3, 42, 0, 0xa8, 5, 34, 0, 6))
	f.Add(uint64(allFeatures), uint32(1), frame(14, 1, 0x84, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff))
	f.Add(uint64(allFeatures), uint32(0), []byte{1})

	mem := vt.Memory(f, 1<<20).Regions()[0].Mem
	r, w, err := os.Pipe()
	if err != nil {
		f.Fatal(err)
	}
	defer w.Close()
	d, err := newDevice(config.NetworkInterface{IfaceID: "fuzz"}, r, func(int) error { return nil })
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { d.Close() })
	f.Fuzz(func(t *testing.T, accepted uint64, cut uint32, data []byte) {
		if len(data) > len(mem) {
			return
		}
		n := copy(mem, data)
		s := &session{d: d, irq: noInterrupt{}}
		s.tx.init(s, nil, accepted)
		for i, left := 0, mem[:n]; len(left) > 0; i++ {
			size := min(1+int(cut>>(8*(i%4))&0xff), len(left))
			if len(s.tx.chain.Readable) == QueueSize-1 {
				size = len(left)
			}
			s.tx.chain.Readable = append(s.tx.chain.Readable, left[:size:size])
			left = left[size:]
		}
		ok := s.tx.load()
		if !ok {
			return
		}
		size := n - headerSize
		if s.tx.vec.Len() != n || size < minFrame || size > MaxFrame {
			t.Fatalf("%d bytes of %d", s.tx.vec.Len(), n)
		}
		h, le := s.tx.header[0], binary.LittleEndian
		if csum := h[hdrFlags] != 0; csum && (accepted&featureCSUM == 0 || h[hdrFlags] != 1 || int(le.Uint16(h[hdrStart:]))+int(le.Uint16(h[hdrOffset:]))+2 > size) ||
			h[hdrGSOType] != 0 && (!csum || accepted&(featureHostTSO4|featureHostTSO6|featureHostUFO) == 0 || le.Uint16(h[hdrGSOSize:]) == 0) {
			t.Fatalf("features %#x, frame of %d: header % x", accepted, size, h)
		}
	})
}

// FuzzReceive has a guest give buffers of any sizes for frames of any sizes: each frame arrives whole or not at all.
func FuzzReceive(f *testing.F) {
	f.Add(true, uint16(1514), []byte{100, 3, 0, 1, 255, 255})
	f.Add(true, uint16(65535), []byte{255, 0, 255})
	f.Add(false, uint16(60), []byte{0, 5, 100})
	f.Add(true, uint16(400), []byte{12, 13, 1, 12, 200, 200})
	mem := vt.Memory(f, 8<<20)
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		f.Fatal(err)
	}
	defer unix.Close(fds[1])
	d, err := newDevice(config.NetworkInterface{IfaceID: "fuzz"}, os.NewFile(uintptr(fds[0]), "tap"), func(int) error { return nil })
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { d.Close() })
	f.Fuzz(func(t *testing.T, merge bool, size uint16, bufs []byte) {
		if len(bufs) == 0 || len(bufs) > QueueSize {
			return
		}
		ring := vt.NewRing(mem, 4096, QueueSize, true, nil)
		q, err := queue.New(mem, ring.Cfg)
		if err != nil {
			t.Fatal(err)
		}
		accepted, room, largest := uint64(0), 0, 0
		if merge {
			accepted = featureMrgRxbuf
		}
		s := newSession(d, virtio.Activation{Features: accepted, Queues: []*queue.Queue{q, q}, Interrupt: noInterrupt{}})
		arena := vt.NewArena(64 << 10)
		spans := map[uint16]vt.Span{}
		for _, b := range bufs {
			n := uint32(b) * uint32(b) / 4
			span := arena.Alloc(n)
			head, _ := ring.Add(nil, []vt.Span{span})
			spans[head] = span
			if n >= headerSize {
				room += int(n)
				if largest == 0 {
					largest = int(n) // the first is what a frame gets that may not be merged
				}
			}
		}
		if room == 0 {
			return
		}
		want := frame(int(size))
		if _, err := unix.Write(fds[1], want); err != nil {
			t.Fatal(err)
		}
		r := &s.rx
		if err := r.await(1); err != nil {
			t.Fatal(err)
		}
		direct := r.offer()
		n, err := r.read()
		if err != nil || n != len(want) {
			t.Fatalf("%d bytes of %d, %v", n, len(want), err)
		}
		if merge && n > room {
			return // it would wait for more
		}
		if err := r.deliver(n, direct); err != nil {
			t.Fatal(err)
		}
		var got []byte
		buffers := 0
		for {
			head, n, ok := ring.Used()
			if !ok {
				break
			}
			if n == 0 {
				continue
			}
			got = append(got, ring.Bytes(spans[head])[:n]...)
			buffers++
		}
		if !merge && n > largest {
			if buffers != 0 {
				t.Fatalf("%d bytes of a frame of %d", len(got), n)
			}
			return
		}
		binary.LittleEndian.PutUint16(want[hdrBuffers:], uint16(buffers))
		if string(got) != string(want) || !merge && buffers != 1 {
			t.Fatalf("%d bytes of %d in %d buffers", len(got), len(want), buffers)
		}
	})
}
