package block

import (
	"bytes"
	"encoding/binary"
	"os"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/config"
	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/virtio/queue"
	vt "github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/virtio/virtiotest"
)

// packed is the data of a discard or write-zeroes request.
func packed(segments ...segment) []byte {
	var b []byte
	for _, g := range segments {
		b = binary.LittleEndian.AppendUint64(b, g.sector)
		b = binary.LittleEndian.AppendUint32(b, g.sectors)
		b = binary.LittleEndian.AppendUint32(b, g.flags)
	}
	return b
}

const (
	punch = unix.FALLOC_FL_PUNCH_HOLE | unix.FALLOC_FL_KEEP_SIZE
	zero  = unix.FALLOC_FL_ZERO_RANGE | unix.FALLOC_FL_KEEP_SIZE
)

type allocation struct {
	mode   uint32
	off, n int64
}

// TestSegments has requests of both kinds carried out on hosts that know much or little. What must be zero afterwards is; what
// must not be touched is not; the file keeps its length.
func TestSegments(t *testing.T) {
	const size = 1 << 20
	all := uint64(featureDiscard | featureWriteZeroes)
	many := make([]segment, maxSegments)
	unsupported := []error{unix.EOPNOTSUPP, unix.EOPNOTSUPP, unix.EOPNOTSUPP}
	for _, tt := range []struct {
		name     string
		cfg      config.Drive
		features uint64
		typ      uint32
		data     []byte
		host     []error // of one fallocate after another
		want     byte
		calls    []allocation
		zeros    bool // bytes 4096 to 12288 must be zero
	}{
		{"discard", config.Drive{}, all, typeDiscard, packed(segment{8, 16, 0}), nil, statusOK, []allocation{{punch, 4096, 8192}}, false},
		{"discard of two", config.Drive{}, all, typeDiscard, packed(segment{8, 8, 0}, segment{16, 8, 0}), nil, statusOK, []allocation{{punch, 4096, 4096}, {punch, 8192, 4096}}, false},
		{"discard unknown to the host", config.Drive{}, all, typeDiscard, packed(segment{8, 16, 0}), unsupported, statusOK, []allocation{{punch, 4096, 8192}}, false},
		{"discard of too little for the host", config.Drive{}, all, typeDiscard, packed(segment{8, 1, 0}), []error{unix.EINVAL}, statusOK, []allocation{{punch, 4096, 512}}, false},
		{"discard interrupted", config.Drive{}, all, typeDiscard, packed(segment{8, 16, 0}), []error{unix.EINTR}, statusOK, []allocation{{punch, 4096, 8192}, {punch, 4096, 8192}}, false},
		{"discard fails", config.Drive{}, all, typeDiscard, packed(segment{8, 16, 0}), []error{unix.EIO}, statusIOErr, []allocation{{punch, 4096, 8192}}, false},
		{"discard of nothing at the end", config.Drive{}, all, typeDiscard, packed(segment{size / 512, 0, 0}), nil, statusOK, nil, false},
		{"discard with unmap", config.Drive{}, all, typeDiscard, packed(segment{8, 16, flagUnmap}), nil, statusUnsup, nil, false},
		{"discard, one segment good", config.Drive{}, all, typeDiscard, packed(segment{8, 16, 0}, segment{size/512 - 1, 2, 0}), nil, statusIOErr, nil, false},
		{"discard far behind the end", config.Drive{}, all, typeDiscard, packed(segment{1<<64 - 1, 2, 0}), nil, statusIOErr, nil, false},
		{"discard of too much", config.Drive{}, all, typeDiscard, packed(segment{0, maxDiscardSectors + 1, 0}), nil, statusIOErr, nil, false},
		{"discard of no segment", config.Drive{}, all, typeDiscard, nil, nil, statusIOErr, nil, false},
		{"discard of half a segment", config.Drive{}, all, typeDiscard, packed(segment{8, 16, 0})[:8], nil, statusIOErr, nil, false},
		{"discard of a segment and a half", config.Drive{}, all, typeDiscard, packed(segment{8, 16, 0}, segment{})[:24], nil, statusIOErr, nil, false},
		{"as many segments as can be", config.Drive{}, all, typeDiscard, packed(many...), nil, statusOK, nil, false},
		{"one segment more", config.Drive{}, all, typeDiscard, packed(append(many, segment{})...), nil, statusIOErr, nil, false},
		{"discard not negotiated", config.Drive{}, featureWriteZeroes, typeDiscard, packed(segment{8, 16, 0}), nil, statusUnsup, nil, false},
		{"discard, read-only", config.Drive{IsReadOnly: true}, all, typeDiscard, packed(segment{8, 16, 0}), nil, statusUnsup, nil, false},

		{"zeros", config.Drive{}, all, typeWriteZeroes, packed(segment{8, 16, 0}), nil, statusOK, []allocation{{zero, 4096, 8192}}, true},
		{"zeros, unmap", config.Drive{}, all, typeWriteZeroes, packed(segment{8, 16, flagUnmap}), nil, statusOK, []allocation{{punch, 4096, 8192}}, true},
		{"zeros, no holes", config.Drive{}, all, typeWriteZeroes, packed(segment{8, 16, flagUnmap}), unsupported[:1], statusOK, []allocation{{punch, 4096, 8192}, {zero, 4096, 8192}}, true},
		{"zeros, nothing known", config.Drive{}, all, typeWriteZeroes, packed(segment{8, 16, flagUnmap}), unsupported, statusOK, []allocation{{punch, 4096, 8192}, {zero, 4096, 8192}}, true},
		{"zeros written, odd and two, stable", config.Drive{CacheType: "Writeback"}, all, typeWriteZeroes, packed(segment{8, 1, 0}, segment{9, 15, 0}), unsupported, statusOK, []allocation{{zero, 4096, 512}, {zero, 4608, 7680}}, true},
		{"zeros, unknown flag", config.Drive{}, all, typeWriteZeroes, packed(segment{8, 16, 2}), nil, statusUnsup, nil, false},
		{"zeros behind the end", config.Drive{}, all, typeWriteZeroes, packed(segment{size / 512, 1, 0}), nil, statusIOErr, nil, false},
		{"zeros of too much", config.Drive{}, all, typeWriteZeroes, packed(segment{0, maxZeroesSectors + 1, 0}), nil, statusIOErr, nil, false},
		{"zeros not negotiated", config.Drive{}, featureDiscard, typeWriteZeroes, packed(segment{8, 16, 0}), nil, statusUnsup, nil, false},
		{"zeros, read-only", config.Drive{IsReadOnly: true}, all, typeWriteZeroes, packed(segment{8, 16, 0}), nil, statusUnsup, nil, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			d, before := drive(t, size, tt.cfg)
			s := d.serve(tt.features)
			var calls []allocation
			s.fallocate = func(fd int, mode uint32, off, n int64) error {
				calls = append(calls, allocation{mode, off, n})
				if i := len(calls) - 1; i < len(tt.host) {
					return tt.host[i]
				}
				err := unix.Fallocate(fd, mode, off, n)
				if err == unix.EOPNOTSUPP { // tmpfs, for one, has no ZERO_RANGE
					_, err = unix.Pwrite(fd, make([]byte, n), off)
				}
				return err
			}
			mem := vt.Memory(t, 1<<20).Regions()[0].Mem
			binary.LittleEndian.PutUint32(mem, tt.typ)
			n := headerSize + copy(mem[headerSize:], tt.data)
			// The segments lie across buffers.
			c := queue.Chain{Readable: [][]byte{mem[:min(7, n)], mem[min(7, n):min(21, n)], mem[min(21, n):n]}, Writable: [][]byte{mem[4096:4097]}}
			if written, err := s.handle(&c, running{}); err != nil || written != 1 || mem[4096] != tt.want {
				t.Fatalf("status %d, %d bytes, %v; want %d", mem[4096], written, err, tt.want)
			}
			if len(calls) != len(tt.calls) {
				t.Fatalf("the host was asked for %+v, want %+v", calls, tt.calls)
			}
			for i := range calls {
				if calls[i] != tt.calls[i] {
					t.Errorf("the host was asked for %+v, want %+v", calls[i], tt.calls[i])
				}
			}
			after, err := os.ReadFile(d.backing.file.Name())
			if err != nil || len(after) != size {
				t.Fatalf("%d bytes, %v", len(after), err)
			}
			if tt.zeros && !bytes.Equal(after[4096:12288], make([]byte, 8192)) {
				t.Error("no zeros where they should be")
			}
			if !bytes.Equal(after[:4096], before[:4096]) || !bytes.Equal(after[12288:], before[12288:]) {
				t.Error("more was touched than was asked for")
			}
			if tt.want != statusOK && !bytes.Equal(after, before) {
				t.Error("a refused request changed the drive")
			}
		})
	}
}

// What a driver is told fits what the device takes, and a drive that nobody may write to says nothing of it.
func TestSegmentLimits(t *testing.T) {
	d, _ := drive(t, 4096, config.Drive{})
	var p [configLen]byte
	d.ReadConfig(0, p[:])
	var got [6]uint32
	for i := range got {
		got[i] = binary.LittleEndian.Uint32(p[36+4*i:])
	}
	if want := [6]uint32{maxDiscardSectors, maxSegments, 8, maxZeroesSectors, maxSegments, 1}; got != want || d.Features()&(1<<13|1<<14) != 1<<13|1<<14 {
		t.Errorf("limits %v, want %v; features %#x", got, want, d.Features())
	}
	d, _ = drive(t, 4096, config.Drive{IsReadOnly: true})
	d.ReadConfig(0, p[:])
	if !bytes.Equal(p[16:], make([]byte, configLen-16)) || d.Features()&(1<<13|1<<14) != 0 {
		t.Errorf("configuration % x, features %#x", p, d.Features())
	}
}

// A large segment is worked off in pieces, each once and in order, and a reset ends it between two of them.
func TestSegmentsInPieces(t *testing.T) {
	const size = 2*maxPiece + 1024
	d, _ := drive(t, 4096, config.Drive{})
	d.backing.sectors = size/SectorSize + 8
	s := d.serve(featureDiscard | featureWriteZeroes)
	mem := vt.Memory(t, 1<<20).Regions()[0].Mem
	for _, tt := range []struct {
		name       string
		typ, flags uint32
		modes      []uint32
		fails      int // the first mode, at this piece
	}{
		{"discard", typeDiscard, 0, []uint32{punch}, 0},
		{"zeros", typeWriteZeroes, 0, []uint32{zero}, 0},
		{"zeros, no hole at the end", typeWriteZeroes, flagUnmap, []uint32{punch, zero}, 3},
	} {
		t.Run(tt.name, func(t *testing.T) {
			sectors := uint32(size / SectorSize)
			if tt.typ == typeWriteZeroes {
				sectors = maxZeroesSectors // which are two pieces and no more
				tt.fails = min(tt.fails, 2)
			}
			var want []allocation
			for _, mode := range tt.modes {
				for off, left := int64(4096), int64(sectors)*SectorSize; left > 0; {
					n := min(left, maxPiece)
					want = append(want, allocation{mode, off, n})
					off, left = off+n, left-n
				}
			}
			q := &stopsLater{}
			var calls []allocation
			s.fallocate = func(_ int, mode uint32, off, n int64) error {
				calls = append(calls, allocation{mode, off, n})
				if q.left--; len(calls) == tt.fails {
					return unix.EOPNOTSUPP
				}
				return nil
			}
			binary.LittleEndian.PutUint32(mem, tt.typ)
			copy(mem[headerSize:], packed(segment{8, sectors, tt.flags}))
			c := queue.Chain{Readable: [][]byte{mem[:headerSize+segmentSize]}, Writable: [][]byte{mem[4096:4097]}}
			for stop := range len(want) {
				calls, q.left = nil, stop
				if _, err := s.handle(&c, q); err != queue.ErrStopped || !slices.Equal(calls, want[:stop]) {
					t.Fatalf("stopped after %d pieces: %v, the host was asked for %+v", stop, err, calls)
				}
			}
			calls, q.left = nil, len(want)
			if _, err := s.handle(&c, q); err != nil || mem[4096] != statusOK || !slices.Equal(calls, want) {
				t.Fatalf("status %d, %v, the host was asked for %+v, want %+v", mem[4096], err, calls, want)
			}
		})
	}
}

// stopsLater is stopped once left is used up.
type stopsLater struct {
	running
	left int
}

func (s *stopsLater) Stopped() bool { return s.left <= 0 }

// A request of zeros to be written ends at a reset, between two writes.
func TestSegmentsStop(t *testing.T) {
	d, _ := drive(t, 4096, config.Drive{})
	s := d.serve(featureDiscard | featureWriteZeroes)
	s.fallocate = func(int, uint32, int64, int64) error { return unix.EOPNOTSUPP }
	mem := vt.Memory(t, 1<<20).Regions()[0].Mem
	for _, typ := range []uint32{typeDiscard, typeWriteZeroes} {
		binary.LittleEndian.PutUint32(mem, typ)
		copy(mem[headerSize:], packed(segment{0, 8, 0}))
		c := queue.Chain{Readable: [][]byte{mem[:headerSize+segmentSize]}, Writable: [][]byte{mem[4096:4097]}}
		if _, err := s.handle(&c, stopped{}); err != queue.ErrStopped {
			t.Errorf("type %d: %v", typ, err)
		}
	}
	s.disk = d.backing
	if _, err := s.overwrite(stopped{}, segment{0, 8, 0}); err != queue.ErrStopped {
		t.Error(err)
	}
}

type stopped struct{ running }

func (stopped) Stopped() bool { return true }
