package main

import (
	"bytes"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/config"
	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/virtio"
	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/vmmtest/hostile"
)

// target is a device for the hostile guest. A new one needs a row in newHostileHost, a line in machine, and for storms that reach
// deep a hostile.Payload.
type target struct {
	name string
	typ  uint32
	// queues that an honest driver uses which accepts no features.
	queues int
	// works has an honest driver use the device.
	works func(h *hostileHost, p *prey, d *hostile.Driver) error
}

const (
	hostileTAP    = "fchostile0"
	driveSectors  = 2048
	driveTail     = 300 // bytes behind the last whole sector: no sector, so not the guest's
	consoleBytes  = 64 << 10
	hostileOutput = 64 << 10 // most that a guest may have fc-vmm log
)

// hostileHost is what is on the host's side of the devices.
type hostileHost struct {
	dir     string
	secret  []byte // is where no guest can read
	targets []target
	// witnessTarget is the device that is never stormed, and witnessAt its window.
	witnessTarget target
	witnessAt     int
	drives        map[string][]byte // contents at the start
	outside       string            // what it was
	files         *subject          // fc-vmm fs
	boots, rounds int
	stormy        time.Duration // spent in storms

	quiet sync.RWMutex // held by who wants no traffic
	wire  int          // packet socket on the TAP
}

func newHostileHost(t *testing.T) *hostileHost {
	t.Helper()
	// A network namespace of the test's own: its thread never goes back to other goroutines.
	runtime.LockOSThread()
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		t.Skip("needs a network namespace of its own:", err)
	}
	h := &hostileHost{dir: t.TempDir(), drives: make(map[string][]byte), wire: -1}
	h.secret = fmt.Appendf(nil, "secret-%s-secret", rand.Text())
	h.targets = []target{
		{"drive", virtio.TypeBlock, 1, driveWorks("drive", true)},
		{"read-only drive", virtio.TypeBlock, 1, driveWorks("fixed", false)},
		{"network interface", virtio.TypeNet, 2, netWorks},
		{"vsock", virtio.TypeVsock, 3, vsockWorks},
		{"entropy", virtio.TypeEntropy, 1, entropyWorks},
		{"filesystem", virtio.TypeFS, 2, fsWorks},
		{"filesystem of another process", virtio.TypeFS, 2, fsWorks},
		{"balloon", virtio.TypeBalloon, 2, balloonWorks},
	}
	h.witnessTarget = target{"read-only filesystem", virtio.TypeFS, 2, fsWorks}
	h.witnessAt = len(h.targets) - 1 // the machine puts it before the balloon
	for _, name := range []string{"drive", "fixed"} {
		b := make([]byte, driveSectors*512+driveTail)
		rand.Read(b)
		copy(b[driveSectors*512+10:], h.secret)
		h.drives[name] = b
		if err := os.WriteFile(filepath.Join(h.dir, name), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	// What the guest fills is no more than this.
	shared := filepath.Join(h.dir, "shared")
	must(t, os.Mkdir(shared, 0o755))
	must(t, unix.Mount("tmpfs", shared, "tmpfs", 0, "size=8m,nr_inodes=4k"))
	t.Cleanup(func() { unix.Unmount(shared, unix.MNT_DETACH) })
	for _, top := range []string{shared, filepath.Join(h.dir, "fixed-share")} {
		must(t, os.MkdirAll(filepath.Join(top, "dir"), 0o755))
		must(t, os.WriteFile(filepath.Join(top, "known"), []byte("known"), 0o644))
		must(t, os.WriteFile(filepath.Join(top, "file"), bytes.Repeat([]byte("file"), 5000), 0o644))
		must(t, os.Symlink("../outside/secret", filepath.Join(top, "link")))
	}
	must(t, os.MkdirAll(filepath.Join(h.dir, "outside", "dir"), 0o755))
	must(t, os.WriteFile(filepath.Join(h.dir, "outside", "secret"), h.secret, 0o644))
	h.outside = h.tree(t)
	h.files = observe(t, h.secret, "fs", "--socket-path", filepath.Join(h.dir, "fs.sock"), "--shared-dir", shared)
	listens(t, filepath.Join(h.dir, "fs.sock"))
	h.serve(t)
	return h
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func (h *hostileHost) uds() string { return filepath.Join(h.dir, "v.sock") }

// machine has the devices of targets, in their order, and the witness.
func (h *hostileHost) machine() config.VM {
	at := func(name string) string { return filepath.Join(h.dir, name) }
	return config.VM{
		Machine:    config.Machine{VCPUCount: hostile.CPUs, MemSizeMiB: hostile.RAMSize >> 20},
		BootSource: &config.BootSource{KernelImagePath: at("kernel")},
		Drives: []config.Drive{
			{DriveID: "drive", PathOnHost: at("drive"), CacheType: "Writeback"},
			{DriveID: "fixed", PathOnHost: at("fixed"), IsReadOnly: true},
		},
		NetworkInterfaces: []config.NetworkInterface{{IfaceID: "net", HostDevName: hostileTAP, GuestMAC: "02:00:00:00:00:01"}},
		Vsock:             &config.Vsock{GuestCID: hostile.GuestCID, UDSPath: h.uds()},
		Entropy:           &config.Entropy{},
		Filesystems: []config.Filesystem{
			{FSID: "shared", Tag: "shared", PathOnHost: at("shared")},
			{FSID: "served", Tag: "served", Socket: at("fs.sock")},
			{FSID: "fixed", Tag: "fixed", PathOnHost: at("fixed-share"), IsReadOnly: true},
		},
		Balloon: &config.Balloon{AmountMiB: 8, StatsPollingIntervalS: 1, FreePageHinting: true, FreePageReporting: true},
		Serial:  &config.Serial{SerialOutPath: at("console"), MaxBytes: consoleBytes},
	}
}

// serve is the host's part in vsock and on the network: programs that connect, answer, stall and leave.
func (h *hostileHost) serve(t *testing.T) {
	must(t, os.WriteFile(filepath.Join(h.dir, "kernel"), hostile.Kernel(), 0o600))
	l, err := net.Listen("unix", fmt.Sprintf("%s_%d", h.uds(), hostile.HostPort))
	must(t, err)
	stop := make(chan struct{})
	var done sync.WaitGroup
	t.Cleanup(func() {
		close(stop)
		l.Close()
		done.Wait()
		if h.wire >= 0 {
			unix.Close(h.wire)
		}
	})
	done.Go(func() {
		for n := 0; ; n++ {
			c, err := l.Accept()
			if err != nil {
				return
			}
			done.Go(func() { converse(c, n) })
		}
	})
	every := func(d time.Duration, f func(n int)) {
		done.Go(func() {
			for n := 0; ; n++ {
				select {
				case <-stop:
					return
				case <-time.After(d):
				}
				h.quiet.RLock()
				f(n)
				h.quiet.RUnlock()
			}
		})
	}
	every(30*time.Millisecond, func(n int) {
		if c, err := net.Dial("unix", h.uds()); err == nil {
			fmt.Fprintf(c, "CONNECT %d\n", n%9)
			done.Go(func() { converse(c, n) })
		}
	})
	every(5*time.Millisecond, func(n int) {
		if h.wire >= 0 {
			b := make([]byte, 14+n*37%1500)
			rand.Read(b)
			b[0] = 0xff
			unix.Write(h.wire, b) // fails while the TAP is not there
		}
	})
}

// converse is one of the ways in which programs treat a connection.
func converse(c net.Conn, n int) {
	defer c.Close()
	c.SetDeadline(time.Now().Add(time.Duration(100+n*71%900) * time.Millisecond))
	b := make([]byte, 20000)
	switch n % 4 {
	case 0:
		for {
			k, err := c.Read(b)
			if err != nil {
				return
			}
			c.Write(b[:k])
		}
	case 1:
		for {
			if _, err := c.Write(b); err != nil {
				return
			}
		}
	case 2:
		c.Read(b[:1])
	case 3:
		time.Sleep(50 * time.Millisecond)
	}
}

// connect takes the TAP up and attaches to it. It must be called from the test's thread.
func (h *hostileHost) connect() error {
	h.quiet.Lock()
	defer h.quiet.Unlock()
	if h.wire >= 0 {
		unix.Close(h.wire)
		h.wire = -1
	}
	control, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(control)
	r, err := unix.NewIfreq(hostileTAP)
	if err != nil {
		return err
	}
	r.SetUint16(unix.IFF_UP | unix.IFF_RUNNING)
	if err := unix.IoctlIfreq(control, unix.SIOCSIFFLAGS, r); err != nil {
		return fmt.Errorf("%s: %w", hostileTAP, err)
	}
	i, err := net.InterfaceByName(hostileTAP)
	if err != nil {
		return err
	}
	const all = unix.ETH_P_ALL<<8&0xff00 | unix.ETH_P_ALL>>8
	if h.wire, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, all); err != nil {
		return err
	}
	if err := unix.SetsockoptTimeval(h.wire, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 10}); err != nil {
		return err
	}
	return unix.Bind(h.wire, &unix.SockaddrLinklayer{Protocol: all, Ifindex: i.Index})
}

// unharmed looks at all that was not the guest's to write, after the last machine's end.
func (h *hostileHost) unharmed(t *testing.T, p *prey) {
	t.Helper()
	for name, was := range h.drives {
		b, err := os.ReadFile(filepath.Join(h.dir, name))
		must(t, err)
		if n := driveSectors * 512; len(b) != len(was) || !bytes.Equal(b[n:], was[n:]) {
			t.Errorf("%s: bytes behind the last sector have changed, or how many there are: %d, were %d", name, len(b), len(was))
		}
		switch same := bytes.Equal(b, was); {
		case name == "fixed" && !same:
			t.Errorf("%s, which is read-only, has changed", name)
		case name == "drive" && same && h.rounds > 100:
			t.Error("no storm has written to the drive: they do not reach what they should")
		}
	}
	if now := h.tree(t); now != h.outside {
		t.Errorf("outside the shared folder, or in the read-only one:\n%s\nwas:\n%s", now, h.outside)
	}
	if p.guest.Contains(h.secret) {
		t.Error("the guest has read what is none of its own")
	}
	if fi, err := os.Stat(filepath.Join(h.dir, "console")); err != nil || fi.Size() > consoleBytes {
		t.Errorf("the console's file: %v, %v", fi, err)
	}
	for _, s := range []*subject{p.subject, h.files} {
		if n := len(s.out.String()); n > hostileOutput {
			t.Errorf("the guest has had %.20q log %d bytes:\n%.2000s", s.Args[1:], n, s.out)
		}
	}
	if _, err := os.Lstat(h.uds()); err == nil {
		t.Error("the vsock device's socket was left behind")
	}
}

// tree tells of all that lies beside the shared folder and is not the VMM's to change.
func (h *hostileHost) tree(t *testing.T) string {
	t.Helper()
	var b strings.Builder
	for _, top := range []string{"outside", "fixed-share"} {
		must(t, filepath.WalkDir(filepath.Join(h.dir, top), func(path string, d fs.DirEntry, err error) error {
			if err != nil {
				return err
			}
			fi, err := d.Info()
			if err != nil {
				return err
			}
			st := fi.Sys().(*syscall.Stat_t)
			fmt.Fprintf(&b, "%s %v %d %d %d:%d %v %v\n", path, fi.Mode(), fi.Size(), st.Nlink, st.Uid, st.Gid, st.Mtim, st.Ctim)
			if fi.Mode().IsRegular() {
				text, err := os.ReadFile(path)
				fmt.Fprintf(&b, "%x\n", text)
				return err
			}
			return nil
		}))
	}
	return b.String()
}

var errUnwell = errors.New("does not work")

func driveWorks(name string, writable bool) func(*hostileHost, *prey, *hostile.Driver) error {
	return func(h *hostileHost, _ *prey, d *hostile.Driver) error {
		const sector = 7
		want := h.drives[name][sector*512:][:512]
		request := func(kind uint32) []byte {
			p := make([]byte, 16)
			binary.LittleEndian.PutUint32(p, kind)
			binary.LittleEndian.PutUint64(p[8:], sector)
			return p
		}
		status, err := d.Do(0, append(request(1), want...), 1)
		if err != nil {
			return err
		}
		if len(status) != 1 || (status[0] == 0) != writable {
			return fmt.Errorf("%w: a write has status %v", errUnwell, status)
		}
		got, err := d.Do(0, request(0), 513)
		if err != nil {
			return err
		}
		if len(got) != 513 || got[512] != 0 || !bytes.Equal(got[:512], want) {
			return fmt.Errorf("%w: a read gives %d bytes, status %v, right: %v", errUnwell, len(got), got[min(len(got), 512):], bytes.HasPrefix(got, want))
		}
		return nil
	}
}

// balloonWorks gives a page up, which reads as zero then.
func balloonWorks(_ *hostileHost, p *prey, d *hostile.Driver) error {
	const page = 5 << 20
	copy(p.ram[page:], "not empty")
	if _, err := d.Do(0, binary.LittleEndian.AppendUint32(nil, page>>12), 0); err != nil {
		return err
	}
	if p.ram[page] != 0 {
		return fmt.Errorf("%w: a page that was given up still has its contents", errUnwell)
	}
	return nil
}

func entropyWorks(_ *hostileHost, _ *prey, d *hostile.Driver) error {
	got, err := d.Do(0, nil, 64)
	if err == nil && (len(got) != 64 || bytes.Count(got, []byte{0}) > 16) {
		err = fmt.Errorf("%w: %x", errUnwell, got)
	}
	return err
}

// netWorks sends a frame each way, among those that others send.
func netWorks(h *hostileHost, _ *prey, d *hostile.Driver) error {
	h.quiet.Lock() // no others, as far as possible
	defer h.quiet.Unlock()
	const headerSize = 12
	frame := func(text string) []byte {
		return append([]byte("\xff\xff\xff\xff\xff\xff\x02\x00\x00\x00\x00\x09\x88\xb5"), fmt.Sprintf("%-60s", text+rand.Text())...)
	}
	out := frame("from the guest ")
	if _, err := d.Do(1, append(make([]byte, headerSize), out...), 0); err != nil {
		return err
	}
	b := make([]byte, 1<<17)
	for deadline := time.Now().Add(hostilePatience); ; {
		n, err := unix.Read(h.wire, b)
		if err == nil && bytes.Equal(b[:n], out) {
			break
		}
		if err != nil && err != unix.EINTR || time.Now().After(deadline) {
			return fmt.Errorf("%w: the guest's frame does not arrive: %v", errUnwell, err)
		}
	}
	in := frame("for the guest ")
	if err := d.Send(0, nil, 2048); err != nil {
		return err
	}
	if _, err := unix.Write(h.wire, in); err != nil {
		return err
	}
	for range 1000 {
		got, err := d.Answer(0)
		if err != nil {
			return err
		}
		if len(got) >= headerSize && bytes.Equal(got[headerSize:], in) {
			return nil
		}
		if err := d.Send(0, nil, 2048); err != nil {
			return err
		}
	}
	return fmt.Errorf("%w: the host's frame does not arrive", errUnwell)
}

// vsockWorks connects to the host's program.
func vsockWorks(_ *hostileHost, _ *prey, d *hostile.Driver) error {
	const size, opRequest, opResponse, opRST, port = 44, 1, 2, 3, 99999
	packet := func(op uint16) []byte {
		le := binary.LittleEndian
		p := le.AppendUint64(le.AppendUint64(nil, hostile.GuestCID), 2)
		p = le.AppendUint32(le.AppendUint32(p, port), hostile.HostPort)
		p = le.AppendUint16(le.AppendUint16(le.AppendUint32(p, 0), 1), op)
		return le.AppendUint32(le.AppendUint32(le.AppendUint32(p, 0), 1<<16), 0)
	}
	if err := d.Send(0, nil, 4096); err != nil {
		return err
	}
	if _, err := d.Do(1, packet(opRequest), 0); err != nil {
		return err
	}
	for range 1000 { // host programs send requests of their own
		got, err := d.Answer(0)
		if err != nil {
			return err
		}
		if len(got) >= size && binary.LittleEndian.Uint32(got[20:]) == port {
			if op := binary.LittleEndian.Uint16(got[30:]); op != opResponse {
				return fmt.Errorf("%w: a request is answered by operation %d", errUnwell, op)
			}
			_, err = d.Do(1, packet(opRST), 0)
			return err
		}
		if err := d.Send(0, nil, 4096); err != nil {
			return err
		}
	}
	return fmt.Errorf("%w: no answer to a request", errUnwell)
}

// fsWorks mounts and looks a file up.
func fsWorks(_ *hostileHost, _ *prey, d *hostile.Driver) error {
	request := func(op uint32, body []byte) []byte {
		le := binary.LittleEndian
		p := le.AppendUint32(le.AppendUint32(nil, uint32(40+len(body))), op)
		p = le.AppendUint64(le.AppendUint64(p, 4711), 1)
		return append(append(p, make([]byte, 16)...), body...)
	}
	init := make([]byte, 64)
	copy(init, "\x07\x00\x00\x00\x26\x00\x00\x00")
	for _, r := range [][]byte{request(26, init), request(1, []byte("known\x00"))} {
		got, err := d.Do(1, r, 4096)
		if err != nil {
			return err
		}
		if len(got) < 16 || binary.LittleEndian.Uint32(got[4:]) != 0 {
			return fmt.Errorf("%w: request %d is answered by %x", errUnwell, r[4], got[:min(len(got), 16)])
		}
	}
	return nil
}
