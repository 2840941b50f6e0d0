package vhostuser_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/config"
	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/memory"
	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/virtio"
	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/virtio/block"
	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/virtio/queue"
	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/virtio/vhostuser"
	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/virtio/vhostuser/backend"
	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/virtio/vhostuser/vhosttest"
	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/virtio/vhostuser/wire"
	vt "github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/virtio/virtiotest"
)

const diskSize = 64 << 10

// disk makes a file of x and the device that a back-end serves it by.
func disk(t testing.TB, cfg config.Drive) (path string, dev *block.Device) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "disk")
	if err := os.WriteFile(path, bytes.Repeat([]byte("x"), diskSize), 0o600); err != nil {
		t.Fatal(err)
	}
	cfg.DriveID, cfg.PathOnHost = "served", path
	dev, err := block.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { dev.Close() })
	return path, dev
}

// serve has b serve the first who comes to the socket that it gives. hangUp ends that, from the back-end's side; ended yields its end.
func serve(t testing.TB, b *vhosttest.Backend) (path string, hangUp func(), ended <-chan error) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "socket")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path})
	if err != nil {
		t.Fatal(err)
	}
	conn := make(chan *net.UnixConn, 1)
	done := make(chan error, 1)
	go func() {
		c, err := l.AcceptUnix()
		if err == nil {
			conn <- c
			err = b.Serve(c)
		}
		done <- err
		close(done)
	}()
	t.Cleanup(func() {
		l.Close()
		select {
		case <-done:
		case <-time.After(vt.Timeout):
			t.Errorf("the back-end did not end within %v", vt.Timeout)
		}
	})
	return path, func() { (<-conn).Close() }, done
}

func connect(t testing.TB, path, cache string) *vhostuser.Drive {
	t.Helper()
	d, err := vhostuser.NewDrive(context.Background(), config.Drive{DriveID: "data", Socket: path, CacheType: cache})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := d.Close(); err != nil {
			t.Error(err)
		}
	})
	return d
}

// do sends a block request, and wants its status.
func do(t testing.TB, m *vt.Machine, kind uint32, sector uint64, out []byte, in int, status byte) []byte {
	t.Helper()
	head := m.Arena.Alloc(16)
	binary.LittleEndian.PutUint32(m.Bytes(head), kind)
	binary.LittleEndian.PutUint64(m.Bytes(head)[8:], sector)
	readable, writable := []vt.Span{head}, []vt.Span(nil)
	if len(out) > 0 {
		s := m.Arena.Alloc(uint32(len(out)))
		copy(m.Bytes(s), out)
		readable = append(readable, s)
	}
	if in > 0 {
		writable = append(writable, m.Arena.Alloc(uint32(in)))
	}
	last := m.Arena.Alloc(1)
	m.Bytes(last)[0] = 0xee
	m.Do(m.Rings[0], readable, append(writable, last))
	if got := m.Bytes(last)[0]; got != status {
		t.Fatalf("request %d: status %d, want %d", kind, got, status)
	}
	if in == 0 {
		return nil
	}
	return m.Bytes(writable[0])
}

// TestDrive reads and writes through another process's device, with all that a back-end may have or not, over several resets.
func TestDrive(t *testing.T) {
	without := func(bits uint64) func(uint64) uint64 { return func(f uint64) uint64 { return f &^ bits } }
	for _, tt := range []struct {
		name               string
		features, protocol func(uint64) uint64
		lacks              uint64
	}{
		{"all", nil, nil, 0},
		{"no acknowledgements, no channel", nil, without(wire.ProtocolReplyAck | wire.ProtocolBackendReq | wire.ProtocolMQ), 0},
		{"no event index", without(virtio.FeatureEventIdx), nil, virtio.FeatureEventIdx},
		{"no indirect descriptors", without(virtio.FeatureIndirectDesc), nil, virtio.FeatureIndirectDesc},
	} {
		t.Run(tt.name, func(t *testing.T) {
			file, dev := disk(t, config.Drive{CacheType: config.CacheWriteback})
			path, _, ended := serve(t, &vhosttest.Backend{Dev: dev, Features: tt.features, Protocol: tt.protocol})
			d := connect(t, path, config.CacheWriteback)
			if want := (virtio.FeatureEventIdx | virtio.FeatureIndirectDesc) &^ tt.lacks; d.RingFeatures() != want {
				t.Errorf("ring features %#x, want %#x", d.RingFeatures(), want)
			}
			if want := dev.Features(); d.Features() != want || d.ReadOnly() || d.Type() != virtio.TypeBlock || d.ID() != "data" {
				t.Errorf("features %#x, want %#x", d.Features(), want)
			}
			var space, want [64]byte
			d.ReadConfig(0, space[:])
			dev.ReadConfig(0, want[:])
			if space != want || binary.LittleEndian.Uint64(space[:]) != diskSize/512 {
				t.Errorf("configuration % x, want % x", space, want)
			}
			m := vt.Start(t, d, 1<<20)
			for i := range byte(3) {
				do(t, m, 1, uint64(i), bytes.Repeat([]byte{'a' + i}, 512), 0, 0)
				do(t, m, 4, 0, nil, 0, 0)
				if got := do(t, m, 0, 0, nil, 2048, 0); got[512*int(i)] != 'a'+i || got[512*(int(i)+1)] != 'x' {
					t.Errorf("read %.1q and %.1q", got[512*int(i):], got[512*(int(i)+1):])
				}
				if got := do(t, m, 8, 0, nil, 20, 0); !bytes.HasPrefix(got, []byte("served\x00")) {
					t.Errorf("id %q", got)
				}
				do(t, m, 0, diskSize/512, nil, 512, 1)
				for range 2 {
					if err := d.Reset(); err != nil {
						t.Fatal(err)
					}
				}
				m.Activate(d.Features() | d.RingFeatures() | virtio.FeatureVersion1)
			}
			if b, err := os.ReadFile(file); err != nil || string(b[:2048]) != strings.Repeat("a", 512)+strings.Repeat("b", 512)+strings.Repeat("c", 512)+strings.Repeat("x", 512) {
				t.Errorf("the file has %.2048q, %v", b, err)
			}
			if err := d.Close(); err != nil {
				t.Error(err)
			}
			if err := <-ended; err != nil {
				t.Errorf("back-end: %v", err)
			}
		})
	}
}

func TestReadOnlyAndUnsafe(t *testing.T) {
	_, dev := disk(t, config.Drive{IsReadOnly: true, CacheType: config.CacheWriteback})
	path, _, _ := serve(t, &vhosttest.Backend{Dev: dev})
	d := connect(t, path, config.CacheUnsafe)
	if !d.ReadOnly() || d.Features()&(1<<9) != 0 {
		t.Errorf("features %#x: want read-only and no flushes", d.Features())
	}
	m := vt.Start(t, d, 1<<20)
	do(t, m, 1, 0, make([]byte, 512), 0, 1)
}

// TestNegotiation has back-ends that will not do, and some that talk nonsense: errors name the drive, the socket, and what is wrong.
func TestNegotiation(t *testing.T) {
	answer := func(r wire.Request, raw []byte) func(wire.Header, []byte) ([]byte, bool) {
		return func(h wire.Header, _ []byte) ([]byte, bool) { return raw, h.Request != r }
	}
	raw := func(b ...byte) []byte { return b }
	for _, tt := range []struct {
		name string
		b    *vhosttest.Backend
		want string
	}{
		{"old virtio", &vhosttest.Backend{Features: func(f uint64) uint64 { return f &^ virtio.FeatureVersion1 }}, "VIRTIO_F_VERSION_1"},
		{"no protocol features", &vhosttest.Backend{Features: func(f uint64) uint64 { return f &^ wire.FeatureProtocol }}, "CONFIG (bit 9)"},
		{"no configuration", &vhosttest.Backend{Protocol: func(f uint64) uint64 { return f &^ wire.ProtocolConfig }}, "CONFIG (bit 9)"},
		{"silence", &vhosttest.Backend{Before: answer(wire.GetFeatures, nil)}, "waiting for the reply to message 1: the back-end does not answer"},
		{"another reply", &vhosttest.Backend{Before: answer(wire.GetFeatures, wire.Message(wire.GetQueueNum, wire.FlagReply, wire.U64(0)))}, "message 17 (flags 0x5) is no reply that was asked for"},
		{"no reply", &vhosttest.Backend{Before: answer(wire.GetFeatures, wire.Message(wire.GetFeatures, 0, wire.U64(0)))}, "is no reply"},
		{"reply to nothing", &vhosttest.Backend{Before: answer(wire.SetOwner, wire.Message(wire.SetOwner, wire.FlagReply, wire.U64(0)))}, "is no reply"},
		{"short reply", &vhosttest.Backend{Before: answer(wire.GetFeatures, wire.Message(wire.GetFeatures, wire.FlagReply, make([]byte, 4)))}, "number of 4 bytes: want 8"},
		{"another version", &vhosttest.Backend{Before: answer(wire.GetFeatures, raw(1, 0, 0, 0, 6, 0, 0, 0, 8, 0, 0, 0))}, "version 2: want 1"},
		{"too long", &vhosttest.Backend{Before: answer(wire.GetFeatures, raw(1, 0, 0, 0, 5, 0, 0, 0, 0, 0, 0, 1))}, "16777216 bytes: want at most 4096"},
		{"no space", &vhosttest.Backend{Before: answer(wire.GetConfig, wire.Message(wire.GetConfig, wire.FlagReply, wire.Config(0, nil)))}, "gives 0 bytes of its configuration space"},
		{"another part", &vhosttest.Backend{Before: answer(wire.GetConfig, wire.Message(wire.GetConfig, wire.FlagReply, wire.Config(4, make([]byte, 60))))}, "from offset 4"},
		{"no configuration in it", &vhosttest.Backend{Before: answer(wire.GetConfig, wire.Message(wire.GetConfig, wire.FlagReply, make([]byte, 3)))}, "configuration of 3 bytes"},
		{"lengths that differ", &vhosttest.Backend{Before: answer(wire.GetConfig, wire.Message(wire.GetConfig, wire.FlagReply, append(wire.Config(0, make([]byte, 60)), 0)))}, "configuration of 60 bytes in 61"},
		{"no channel", &vhosttest.Backend{Before: answer(wire.SetBackendReqFD, wire.Message(wire.SetBackendReqFD, wire.FlagReply, wire.U64(9)))}, "it refuses, with 9"},
		{"broken off", &vhosttest.Backend{Dev: &echo{}, Before: func(h wire.Header, _ []byte) ([]byte, bool) {
			return raw(1, 0, 0), h.Request != wire.GetFeatures
		}}, "deadline"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if tt.b.Dev == nil {
				_, tt.b.Dev = disk(t, config.Drive{})
			}
			path, _, _ := serve(t, tt.b)
			ctx := context.Background()
			if tt.name == "silence" || tt.name == "broken off" {
				var cancel func()
				ctx, cancel = context.WithTimeout(ctx, 100*time.Millisecond)
				defer cancel()
			}
			d, err := vhostuser.NewDrive(ctx, config.Drive{DriveID: "data", Socket: path})
			if err == nil {
				d.Close()
			}
			if err == nil || !strings.Contains(err.Error(), tt.want) || !strings.HasPrefix(err.Error(), `drive "data": socket "`+path+`": vhost-user: `) {
				t.Errorf("%v, want %q in it", err, tt.want)
			}
		})
	}
}

func TestNobodyListens(t *testing.T) {
	dir := t.TempDir()
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: dir + "/old"})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	l.Close()
	for name, want := range map[string]string{"none": "no such file", "old": "connection refused"} {
		_, err := vhostuser.NewDrive(context.Background(), config.Drive{DriveID: "data", Socket: dir + "/" + name})
		if err == nil || !strings.Contains(err.Error(), want) || strings.Count(err.Error(), dir) != 1 {
			t.Errorf("%s: %v, want %q in it", name, err, want)
		}
	}
}

// TestLost: a back-end that goes away while it is in use is told of once, a reset does not wait for it, and the device never starts again.
func TestLost(t *testing.T) {
	_, dev := disk(t, config.Drive{})
	path, hangUp, _ := serve(t, &vhosttest.Backend{Dev: dev})
	d := connect(t, path, "")
	m := vt.Start(t, d, 1<<20)
	do(t, m, 0, 0, nil, 512, 0)
	hangUp()
	select {
	case err := <-m.Broken:
		if !errors.Is(err, io.EOF) || !strings.Contains(err.Error(), `drive "data": vhost-user: the back-end has closed the connection`) {
			t.Error(err)
		}
	case <-time.After(vt.Timeout):
		t.Fatal("nobody was told")
	}
	if _, err := d.Refresh(context.Background()); !errors.Is(err, io.EOF) {
		t.Errorf("refresh: %v", err)
	}
	if err := d.Reset(); err != nil {
		t.Errorf("reset: %v", err)
	}
	q, err := queue.New(m.Mem, queue.Config{Size: 8, Desc: 4096, Avail: 8192, Used: 12288})
	if err != nil {
		t.Fatal(err)
	}
	if err := d.Activate(virtio.Activation{Memory: m.Mem, Queues: []*queue.Queue{q}}); !errors.Is(err, io.EOF) {
		t.Errorf("activated: %v", err)
	}
}

// TestHung: a back-end that does not stop is waited for as long as a reset may take, and then no more until it has ended the connection.
func TestHung(t *testing.T) {
	_, dev := disk(t, config.Drive{})
	hung := make(chan struct{})
	path, _, _ := serve(t, &vhosttest.Backend{Dev: dev, Before: func(h wire.Header, _ []byte) ([]byte, bool) {
		if h.Request == wire.GetVringBase {
			<-hung
		}
		return nil, h.Request != wire.GetVringBase
	}})
	d := connect(t, path, "")
	mem := vt.Memory(t, 1<<20)
	activate := func() error {
		q, err := queue.New(mem, queue.Config{Size: 8, Desc: 4096, Avail: 8192, Used: 12288})
		if err != nil {
			t.Fatal(err)
		}
		return d.Activate(virtio.Activation{Features: virtio.FeatureVersion1, Memory: mem, Queues: []*queue.Queue{q}})
	}
	if err := activate(); err != nil {
		t.Fatal(err)
	}
	begin := time.Now()
	err := d.Reset()
	if err == nil || !strings.Contains(err.Error(), "stopping the queues: queue 0: waiting for the reply to message 11") || time.Since(begin) < virtio.ResetTimeout {
		t.Errorf("%v, after %v", err, time.Since(begin))
	}
	for range 2 {
		if again := d.Reset(); again != err {
			t.Errorf("second reset: %v", again)
		}
		if again := activate(); again != err {
			t.Errorf("activated: %v", again)
		}
	}
	close(hung)
	for begin := time.Now(); d.Reset() != nil; time.Sleep(time.Millisecond) {
		if time.Since(begin) > vt.Timeout {
			t.Fatal("it has not stopped although its connection has ended")
		}
	}
}

// slow is a device whose Reset takes its time, or does not come to its end.
type slow struct {
	echo
	reset chan struct{} // Reset waits for it
	busy  atomic.Bool
}

func (s *slow) Reset() error {
	<-s.reset
	if s.busy.Load() {
		return fmt.Errorf("stuck: %w", virtio.ErrBusy)
	}
	return s.echo.Reset()
}

// TestSlowEnd: whatever ends a session, the front-end's reset does not come to its end before the device's has, unless by an error.
func TestSlowEnd(t *testing.T) {
	for _, tt := range []struct {
		name string
		end  func(m *vt.Machine, cancel func())
		busy bool
	}{
		{"driver breaks a queue", func(m *vt.Machine, _ func()) { m.Rings[1].SetAvail(1000); m.Rings[1].Kick() }, false},
		{"told to stop", func(_ *vt.Machine, cancel func()) { cancel() }, false},
		{"reset", func(*vt.Machine, func()) {}, false},
		{"device is stuck", func(*vt.Machine, func()) {}, true},
		{"driver breaks a queue of a device that is stuck", func(m *vt.Machine, _ func()) { m.Rings[1].SetAvail(1000); m.Rings[1].Kick() }, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "socket")
			l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path})
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close()
			dev := &slow{reset: make(chan struct{})}
			dev.busy.Store(tt.busy)
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			served := make(chan error, 1)
			go func() { served <- backend.Serve(ctx, l, dev) }()
			d, err := vhostuser.New(t.Context(), sharedFS(path))
			if err != nil {
				t.Fatal(err)
			}
			defer d.Close()
			m := vt.Start(t, d, 1<<20)
			m.Do(m.Rings[1], nil, []vt.Span{m.Arena.Alloc(64)})
			tt.end(m, cancel)
			done := make(chan error, 1)
			go func() { done <- d.Reset() }()
			select {
			case err := <-done:
				t.Fatalf("reset before the device: %v", err)
			case <-time.After(50 * time.Millisecond):
			}
			close(dev.reset)
			select {
			case err = <-done:
			case <-time.After(vt.Timeout):
				t.Fatal("the reset does not end")
			}
			if (err != nil) != tt.busy {
				t.Errorf("reset: %v", err)
			}
			if tt.busy {
				if err := <-served; !errors.Is(err, virtio.ErrBusy) {
					t.Errorf("served: %v", err)
				}
			}
		})
	}
}

// TestRefusals: what the back-end refuses when the driver is ready makes no active device.
func TestRefusals(t *testing.T) {
	for _, r := range []wire.Request{wire.SetFeatures, wire.SetMemTable, wire.SetVringNum, wire.SetVringAddr, wire.SetVringKick, wire.SetVringCall, wire.SetVringEnable} {
		refused := false
		_, dev := disk(t, config.Drive{})
		path, _, _ := serve(t, &vhosttest.Backend{Dev: dev, Before: func(h wire.Header, _ []byte) ([]byte, bool) {
			if h.Request != r || refused {
				return nil, true
			}
			refused = true
			return wire.Message(r, wire.FlagReply, wire.U64(1)), false
		}})
		d := connect(t, path, "")
		mem := vt.Memory(t, 1<<20)
		q, err := queue.New(mem, queue.Config{Size: 8, Desc: 4096, Avail: 8192, Used: 12288})
		if err != nil {
			t.Fatal(err)
		}
		a := virtio.Activation{Features: virtio.FeatureVersion1, Memory: mem, Queues: []*queue.Queue{q}}
		if err := d.Activate(a); !errors.Is(err, vhostuser.ErrBackend) {
			t.Errorf("message %d: %v, want %v", r, err, vhostuser.ErrBackend)
		}
		if err := d.Reset(); err != nil {
			t.Errorf("message %d: reset: %v", r, err)
		}
		if err := d.Activate(a); err != nil {
			t.Errorf("message %d: once more: %v", r, err)
		}
		if err := d.Reset(); err != nil {
			t.Errorf("message %d: second reset: %v", r, err)
		}
		a.Queues = []*queue.Queue{nil}
		if err := d.Activate(a); err == nil {
			t.Error("activated without a queue")
		}
		if err := d.Reset(); err != nil {
			t.Error(err)
		}
	}
}

// ring is an interrupt for a test that has no virtiotest.Start.
type ring struct{ *vt.Ring }

func (r ring) Queue()       { r.Interrupt() }
func (r ring) Config()      {}
func (r ring) Broken(error) {}

// TestAboveTheGap: guest RAM in two pieces, with queue and data in the upper one.
func TestAboveTheGap(t *testing.T) {
	_, dev := disk(t, config.Drive{})
	path, _, _ := serve(t, &vhosttest.Backend{Dev: dev})
	d := connect(t, path, "")
	m := &vt.Machine{TB: t, Dev: d, Mem: vt.Memory(t, memory.GapStart+1<<20), Arena: vt.NewArena(memory.GapEnd + 64<<10)}
	r := vt.NewRing(m.Mem, memory.GapEnd+4096, 16, false, d.NotifyFDs()[0])
	m.Rings = []*vt.Ring{r}
	cfg := r.Cfg
	cfg.Notify = nil
	q, err := queue.New(m.Mem, cfg)
	if err != nil {
		t.Fatal(err)
	}
	if err := d.Activate(virtio.Activation{Features: virtio.FeatureVersion1, Memory: m.Mem, Queues: []*queue.Queue{q}, Interrupt: ring{r}}); err != nil {
		t.Fatal(err)
	}
	if got := do(t, m, 0, 1, nil, 512, 0); string(got) != strings.Repeat("x", 512) {
		t.Errorf("read %.20q", got)
	}
}

// TestComesBack: the driver's next activation finds another back-end at the socket, unless that lacks what the driver uses.
func TestComesBack(t *testing.T) {
	_, dev := disk(t, config.Drive{})
	path := filepath.Join(t.TempDir(), "socket")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path})
	if err != nil {
		t.Fatal(err)
	}
	backends := make(chan *vhosttest.Backend, 1)
	conns := make(chan *net.UnixConn, 1)
	var serving sync.WaitGroup
	defer func() {
		l.Close()
		if !t.Failed() { // else it may still serve
			serving.Wait()
		}
	}()
	serving.Go(func() {
		for b := range backends {
			c, err := l.AcceptUnix()
			if err != nil {
				t.Error(err)
				return
			}
			conns <- c
			if err := b.Serve(c); err != nil {
				t.Errorf("back-end: %v", err)
			}
		}
	})
	defer close(backends)
	backends <- &vhosttest.Backend{Dev: dev}
	d := connect(t, path, "")
	m := vt.Start(t, d, 1<<20)
	features := d.Features() | d.RingFeatures() | virtio.FeatureVersion1
	lose := func() {
		t.Helper()
		(<-conns).Close()
		select {
		case <-m.Broken:
		case <-time.After(vt.Timeout):
			t.Fatal("nobody was told")
		}
		if err := d.Reset(); err != nil {
			t.Fatal(err)
		}
	}
	for range 3 {
		do(t, m, 0, 0, nil, 512, 0)
		lose()
		backends <- &vhosttest.Backend{Dev: dev}
		m.Activate(features)
	}
	do(t, m, 0, 0, nil, 512, 0)
	lose()
	backends <- &vhosttest.Backend{Dev: dev, Features: func(f uint64) uint64 { return f &^ virtio.FeatureEventIdx }}
	q, err := queue.New(m.Mem, queue.Config{Size: 8, Desc: 4096, Avail: 8192, Used: 12288})
	if err != nil {
		t.Fatal(err)
	}
	err = d.Activate(virtio.Activation{Features: features, Memory: m.Mem, Queues: []*queue.Queue{q}})
	if !errors.Is(err, vhostuser.ErrBackend) || !strings.Contains(err.Error(), "come back without features 0x20000000") {
		t.Errorf("activated: %v", err)
	}
	if c := d.Metrics(); c.InitTime.Value() == 0 || c.ActivateTime.Value() == 0 {
		t.Errorf("%d us to connect, %d us to activate", c.InitTime.Value(), c.ActivateTime.Value())
	}
	(<-conns).Close()
}
