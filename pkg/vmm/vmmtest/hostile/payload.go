package hostile

import (
	"encoding/binary"
	"math/rand/v2"

	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/virtio"
)

// GuestCID is the address in packets of vsock; HostPort is where somebody should listen on the host.
const (
	GuestCID = 3
	HostPort = 1234
)

// Payload makes the part of a request that the device reads: what a driver could send, or nothing for a queue of empty buffers.
type Payload func(r *rand.Rand, queue int) []byte

// PayloadFor is a device type's; nil for one that is not known, whose requests are made of noise.
func PayloadFor(typ uint32) Payload {
	switch typ {
	case virtio.TypeBlock:
		return blockRequest
	case virtio.TypeNet:
		return frame
	case virtio.TypeVsock:
		return packet
	case virtio.TypeFS:
		return fuseRequest
	case virtio.TypeBalloon:
		return pageNumbers
	case virtio.TypeEntropy:
		return func(*rand.Rand, int) []byte { return nil }
	}
	return nil
}

func pick[T any](r *rand.Rand, list ...T) T { return list[r.IntN(len(list))] }

func noise(r *rand.Rand, n int) []byte {
	p := make([]byte, n)
	for i := 0; i+8 <= n; i += 8 {
		binary.LittleEndian.PutUint64(p[i:], r.Uint64())
	}
	return p
}

// blockRequest is a struct virtio_blk_req (virtio 1.2 §5.2.6) for a drive of some MiB.
func blockRequest(r *rand.Rand, _ int) []byte {
	le := binary.LittleEndian
	kind := pick(r, 0, 0, 1, 1, 1, 4, 8, 11, 13, r.Uint32())
	sector := pick(r, r.Uint64N(1<<11), r.Uint64N(1<<11), r.Uint64N(1<<11), r.Uint64N(1<<12), 0, 1<<11-1, 1<<11-2, 1<<11, 1<<55-1, 1<<55, 1<<63, ^uint64(0), r.Uint64())
	p := le.AppendUint64(le.AppendUint32(le.AppendUint32(nil, kind), r.Uint32()), sector)
	switch kind {
	case 1:
		p = append(p, noise(r, 512*r.IntN(20)+pick(r, 0, 0, 0, 0, 1, 511))...)
	case 11, 13:
		for range pick(r, 1, 1, 2, 32, 33) {
			p = le.AppendUint64(p, pick(r, sector, r.Uint64N(1<<12), r.Uint64()))
			p = le.AppendUint32(p, pick(r, r.Uint32N(64), r.Uint32N(64), 1<<16, 1<<19, ^uint32(0), r.Uint32()))
			p = le.AppendUint32(p, pick(r, 0, 0, 1, r.Uint32()))
		}
	}
	return p
}

// frame is one of Ethernet behind a struct virtio_net_hdr (virtio 1.2 §5.1.6), on the queue of those that are sent.
func frame(r *rand.Rand, queue int) []byte {
	if queue%2 == 0 {
		return nil
	}
	le := binary.LittleEndian
	h := []byte{pick[byte](r, 0, 0, 1, 1, 2, byte(r.Uint32())), pick[byte](r, 0, 0, 1, 3, 4, 0x81, 5, byte(r.Uint32()))}
	h = le.AppendUint16(h, uint16(pick(r, 54, 42, 0, r.IntN(1<<16)))) // hdr_len
	h = le.AppendUint16(h, uint16(pick(r, 1448, 1, 0, r.IntN(1<<16))))
	h = le.AppendUint16(h, uint16(pick(r, 34, 14, r.IntN(1<<16)))) // csum_start
	h = le.AppendUint16(h, uint16(pick(r, 16, 6, r.IntN(1<<16))))
	h = le.AppendUint16(h, uint16(r.Uint32()))
	f := noise(r, pick(r, 14, 13, 0, 60, 74, 1514, 1515, 9014, 65535, 14+4+40+65535, 14+4+40+65536, r.IntN(4096)))
	if len(f) >= 42 {
		copy(f, "\xff\xff\xff\xff\xff\xff\x02\x00\x00\x00\x00\x01")
		copy(f[12:], pick(r, "\x08\x00\x45\x00", "\x86\xdd\x60\x00", "\x08\x06\x00\x01", "\x81\x00\x00\x01"))
		copy(f[22:], pick(r, "\x40\x06", "\x40\x11", "\x40\x01")) // TTL and protocol
	}
	return append(h, f...)
}

// packet is a struct virtio_vsock_hdr and what follows (virtio 1.2 §5.10.6), on the queue of those that are sent.
func packet(r *rand.Rand, queue int) []byte {
	if queue != 1 {
		return nil
	}
	le := binary.LittleEndian
	data := noise(r, pick(r, 0, 0, 0, 8, 100, 4096, 65536, r.IntN(2000)))
	size := pick(r, uint32(len(data)), uint32(len(data)), uint32(len(data)), uint32(len(data)), r.Uint32())
	p := le.AppendUint64(nil, pick(r, GuestCID, GuestCID, GuestCID, GuestCID, GuestCID, GuestCID, GuestCID, 2, r.Uint64()))
	p = le.AppendUint64(p, pick(r, 2, 2, 2, 2, 2, 2, 2, 1, r.Uint64()))
	p = le.AppendUint32(p, pick(r, r.Uint32N(8), r.Uint32N(8), 80, r.Uint32()))                       // from
	p = le.AppendUint32(p, pick(r, HostPort, HostPort, HostPort, 1<<30+r.Uint32N(40), 1, r.Uint32())) // to
	p = le.AppendUint32(p, size)                                                                      //
	p = le.AppendUint16(p, uint16(pick(r, 1, 1, 1, 1, 1, 1, 1, 2, r.Uint32())))                       // type
	p = le.AppendUint16(p, uint16(pick(r, 1, 1, 1, 2, 3, 4, 5, 5, 5, 5, 6, 7, 0, r.Uint32())))        // operation
	p = le.AppendUint32(p, pick(r, 0, 0, 1, 2, 3, r.Uint32()))                                        // flags
	p = le.AppendUint32(p, pick(r, 0, 1, 4096, 1<<16, 1<<18, ^uint32(0), r.Uint32()))                 // buf_alloc
	p = le.AppendUint32(p, pick(r, 0, 0, 1, r.Uint32N(1<<16), ^uint32(0), r.Uint32()))                // fwd_cnt
	return append(p, data...)
}

// pageNumbers are those of pages to give up and to take back (virtio 1.2 §5.5.6), but for the program's own, or statistics, or
// a command; queues behind these have what a device may free in their buffers.
func pageNumbers(r *rand.Rand, queue int) []byte {
	const pages = RAMSize >> 12
	var p []byte
	switch le := binary.LittleEndian; queue {
	case 0, 1:
		next := r.Uint32N(pages)
		for range r.IntN(300) {
			n := pick(r, next+1, next+1, next+1, next-1, r.Uint32N(pages), pages-1, pages, 3<<30>>12, 1<<20, ^uint32(0), r.Uint32())
			if next = n; harmless(uint64(n)<<12, 1<<12) {
				p = le.AppendUint32(p, n)
			}
		}
	case 2:
		for range r.IntN(20) {
			p = le.AppendUint64(le.AppendUint16(p, uint16(pick(r, r.Uint32N(16), r.Uint32()))), r.Uint64())
		}
	default:
		return pick(r, nil, le.AppendUint32(nil, pick(r, 0, 1, 2, r.Uint32())))
	}
	return p
}

// fuseRequest is a struct fuse_in_header and a body (linux/fuse.h).
func fuseRequest(r *rand.Rand, _ int) []byte {
	le := binary.LittleEndian
	names := []string{"file", "file", "dir", "..", ".", "", "/etc/passwd", "../outside/secret", "link", "new", "a/b", "\x00", "\xff\xfe", string(make([]byte, 300))}
	op := pick(r, 26, 26, 26, 1, 1, 3, 14, 15, 16, 27, 28, 44, 35, 2, 42, r.Uint32N(54), r.Uint32N(54), r.Uint32N(54), r.Uint32())
	var body []byte
	u32 := func(v ...uint32) {
		for _, v := range v {
			body = le.AppendUint32(body, v)
		}
	}
	u64 := func(v ...uint64) {
		for _, v := range v {
			body = le.AppendUint64(body, v)
		}
	}
	name := func() { body = append(append(body, pick(r, names...)...), 0) }
	small := func() uint64 { return pick(r, 0, 1, 2, 3, r.Uint64N(16), 1<<32|r.Uint64N(16), r.Uint64()) }
	offset := func() uint64 { return pick(r, 0, 1, 4096, r.Uint64N(1<<20), 1<<40, 1<<63-1, 1<<63, ^uint64(0)) }
	length := func() uint32 { return pick(r, 0, 1, 4096, 1<<16, 1<<20, 1<<20+1, ^uint32(0), r.Uint32N(1<<16)) }
	switch op {
	case 26: // INIT
		u32(pick[uint32](r, 7, 7, 7, 7, 8, 0), pick[uint32](r, 27, 31, 38, 40, 0, ^uint32(0)), r.Uint32(), r.Uint32(), r.Uint32())
		body = append(body, make([]byte, 44)...)
	case 1, 10, 11, 6: // names only
		name()
		name()
	case 8, 9, 35, 51: // MKNOD, MKDIR, CREATE, TMPFILE
		u32(r.Uint32(), r.Uint32(), 0, r.Uint32())
		name()
	case 12, 13, 45: // RENAME, LINK, RENAME2
		u64(small(), small())
		name()
		name()
	case 14, 27: // OPEN, OPENDIR
		u32(pick(r, 0, 1, 2, r.Uint32()), r.Uint32())
	case 15, 28, 44, 16: // READ, READDIR, READDIRPLUS, WRITE
		u64(small(), offset())
		n := length()
		u32(n, r.Uint32())
		u64(small())
		u32(pick(r, 0, 1, 2, r.Uint32()), 0)
		if op == 16 {
			body = append(body, noise(r, int(min(n, 8192)))...)
		}
	case 43, 46: // FALLOCATE, LSEEK
		u64(small(), offset(), offset())
		u32(pick(r, 0, 1, 3, 0x10, r.Uint32()), 0)
	case 42: // BATCH_FORGET
		n := pick(r, 0, 1, 3, r.Uint32())
		u32(n, 0)
		for range min(n, 8) {
			u64(small(), small())
		}
	default:
		u64(small(), small(), small())
		name()
		body = append(body, noise(r, r.IntN(128))...)
	}
	size := pick(r, uint32(40+len(body)), uint32(40+len(body)), uint32(40+len(body)), uint32(40+len(body)), r.Uint32())
	h := le.AppendUint32(le.AppendUint32(nil, size), op)
	h = le.AppendUint64(h, r.Uint64())
	h = le.AppendUint64(h, pick(r, 1, 1, 1, 2, 3, r.Uint64N(16), 1<<32|r.Uint64N(16), 0, r.Uint64()))
	h = le.AppendUint32(h, pick(r, 0, 0, 1000, r.Uint32()))
	h = le.AppendUint32(h, pick(r, 0, 0, 1000, r.Uint32()))
	h = le.AppendUint64(h, uint64(r.Uint32()))
	return append(h, body...)
}
