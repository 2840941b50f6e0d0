package vmm

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/vmmtest"
)

// What a guest's requests weigh, in bytes.
const (
	limitsRead   = 4096
	limitsRandom = 64 // what Linux asks the device for at a time
	limitsFrame  = 1000
)

// limitsDrive is the size of the guest's drive, in bytes.
const limitsDrive = 1 << 20

// TestMain makes the tests' program a guest's PID 1, too.
func TestMain(m *testing.M) {
	if os.Getpid() == 1 {
		vmmtest.Init(limitsGuest)
	}
	os.Exit(m.Run())
}

// limitsGuest has more requests for its drive, its interface and its entropy device than they can meet, and says twice a second how many
// have been met. It goes on until the host ends it.
func limitsGuest() (err error) {
	console, err := os.OpenFile("/dev/console", os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer func() { fmt.Fprintln(console, "guest:", err) }()
	fail := make(chan error, 8)
	var reads atomic.Int64
	for range 4 {
		go func() { fail <- readDrive(&reads) }()
	}
	go func() { fail <- readRandom() }()
	go func() { fail <- sendFrames() }()

	begin := time.Now()
	for tick := time.Tick(500 * time.Millisecond); ; {
		before := time.Since(begin)
		// The kernel takes random numbers for itself, too. It asks for one lot at a time, so each is an interrupt.
		randoms, err := interrupts("/sys/bus/virtio/drivers/virtio_rng/virtio*")
		if err != nil {
			return err
		}
		counts := []int64{reads.Load(), randoms}
		for _, name := range []string{"rx_packets", "tx_packets", "rx_bytes", "tx_bytes"} {
			var n int64
			b, err := os.ReadFile("/sys/class/net/eth0/statistics/" + name)
			if err == nil {
				_, err = fmt.Sscan(string(b), &n)
			}
			if err != nil {
				return fmt.Errorf("%s: %w", name, err)
			}
			counts = append(counts, n)
		}
		fmt.Fprintf(console, "sample %d %d %d\n", before.Microseconds(), time.Since(begin).Microseconds(), counts)
		select {
		case <-tick:
		case err := <-fail:
			return err
		}
	}
}

func readDrive(n *atomic.Int64) error {
	fd, err := unix.Open("/dev/vda", unix.O_RDONLY|unix.O_DIRECT, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	// A page of its own is aligned as direct reads want it.
	page, err := unix.Mmap(-1, 0, limitsRead, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON)
	if err != nil {
		return err
	}
	for at := int64(0); ; at = (at + limitsRead) % limitsDrive {
		if got, err := unix.Pread(fd, page, at); err != nil || got != limitsRead {
			return fmt.Errorf("read of the drive: %d bytes, %w", got, err)
		}
		n.Add(1)
	}
}

// interrupts is how many there were of the device whose folder matches pattern.
func interrupts(pattern string) (n int64, err error) {
	devices, _ := filepath.Glob(pattern)
	if len(devices) != 1 {
		return 0, fmt.Errorf("%s are %q, want one device", pattern, devices)
	}
	b, err := os.ReadFile("/proc/interrupts")
	if err != nil {
		return 0, err
	}
	// NUMBER: COUNT CONTROLLER HARDWARE-NUMBER NAME, with one CPU.
	line := regexp.MustCompile(`(?m)^ *\d+: +(\d+) .* ` + filepath.Base(devices[0]) + `$`).FindSubmatch(b)
	if line == nil {
		return 0, fmt.Errorf("no %s in %s", filepath.Base(devices[0]), b)
	}
	return strconv.ParseInt(string(line[1]), 10, 64)
}

func readRandom() error {
	f, err := os.Open("/dev/hwrng")
	if err != nil {
		return err
	}
	defer f.Close()
	for b := make([]byte, limitsRandom); ; {
		if got, err := f.Read(b); err != nil || got != len(b) {
			return fmt.Errorf("random numbers: %d bytes, %w", got, err)
		}
	}
}

func sendFrames() error {
	s, err := packetSocket("eth0")
	if err != nil {
		return err
	}
	defer s.Close()
	// Few at a time: the driver counts those that have been sent when it takes them back, which is when most of them have been.
	if err := unix.SetsockoptInt(int(s.Fd()), unix.SOL_SOCKET, unix.SO_SNDBUF, 4096); err != nil {
		return err
	}
	for b := experimentalFrame(); ; {
		if _, err := s.Write(b); err != nil {
			return fmt.Errorf("a frame: %w", err)
		}
	}
}

// experimentalFrame is a frame of limitsFrame bytes for everybody and nobody: its type is IEEE 802's Local Experimental Ethertype 1.
func experimentalFrame() []byte {
	b := make([]byte, limitsFrame)
	copy(b, "\xff\xff\xff\xff\xff\xff\x02\xfc\x00\x00\x00\x01\x88\xb5")
	return b
}

// packetSocket sends frames over an interface of the thread's network namespace, which it brings up.
func packetSocket(name string) (*os.File, error) {
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), name)
	r, err := unix.NewIfreq(name)
	if err == nil {
		r.SetUint16(unix.IFF_UP)
		err = unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, r)
	}
	var i *net.Interface
	if err == nil {
		i, err = net.InterfaceByName(name)
	}
	if err == nil {
		err = unix.Bind(fd, &unix.SockaddrLinklayer{Ifindex: i.Index})
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, errors.Join(err, f.Close()))
	}
	return f, nil
}
