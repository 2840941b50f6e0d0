package tcpip

import (
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"runtime"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/metrics"
)

// newTAP makes a TAP with an address in the stack's network, in a network namespace of the test's own; the thread never goes back to
// other goroutines.
func newTAP(t *testing.T) *os.File {
	t.Helper()
	runtime.LockOSThread()
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		t.Skip("needs a network namespace of its own:", err)
	}
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Skip("needs TAPs:", err)
	}
	s, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(s)
	for _, do := range []struct {
		fd      int
		request uint
		fill    func(*unix.Ifreq) error
	}{
		{fd, unix.TUNSETIFF, func(r *unix.Ifreq) error { r.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI); return nil }},
		{s, unix.SIOCSIFADDR, func(r *unix.Ifreq) error { return r.SetInet4Addr([]byte{169, 254, 1, 1}) }},
		{s, unix.SIOCSIFNETMASK, func(r *unix.Ifreq) error { return r.SetInet4Addr([]byte{255, 255, 0, 0}) }},
		{s, unix.SIOCSIFFLAGS, func(r *unix.Ifreq) error { r.SetUint16(unix.IFF_UP | unix.IFF_RUNNING); return nil }},
	} {
		r, err := unix.NewIfreq("fc0")
		if err == nil {
			err = do.fill(r)
		}
		if err == nil {
			err = unix.IoctlIfreq(do.fd, do.request, r)
		}
		if err != nil {
			unix.Close(fd)
			if do.request == unix.TUNSETIFF {
				t.Skip("needs TAPs:", err)
			}
			t.Fatalf("ioctl %#x: %v", do.request, err)
		}
	}
	f := os.NewFile(uintptr(fd), "tap") // not before it is one: the poller would take it for broken
	t.Cleanup(func() { f.Close() })
	return f
}

// carry takes frames between a TAP and a stack until the TAP is closed. One frame in lossy, 0 for none, is lost.
func carry(tap *os.File, s *Stack, lossy int) {
	r := rand.New(rand.NewPCG(1, 2))
	p := make([]byte, 1<<16)
	for {
		n, wait := s.Next(p)
		if n > 0 {
			if lossy == 0 || r.IntN(lossy) > 0 {
				tap.Write(p[:n])
			}
			continue
		}
		var at time.Time
		if wait > 0 {
			at = time.Now().Add(wait)
		}
		tap.SetReadDeadline(at)
		n, err := tap.Read(p)
		switch {
		case errors.Is(err, os.ErrDeadlineExceeded):
		case err != nil:
			return
		case s.Wants(p[:min(n, HeadLen)]) && (lossy == 0 || r.IntN(lossy) > 0):
			s.Receive(p[:n])
		}
	}
}

// TestLinux has this machine's TCP talk to the stack: the other end that it is made for.
func TestLinux(t *testing.T) {
	for _, lossy := range []int{0, 10} {
		t.Run(fmt.Sprintf("one of %d lost", lossy), func(t *testing.T) {
			tap := newTAP(t)
			s := New(here, 80, server{}, new(metrics.MMDS))
			go carry(tap, s, lossy)
			dial := func(port int) (net.Conn, error) {
				return (&net.Dialer{Timeout: time.Minute}).Dial("tcp4", fmt.Sprintf("169.254.169.254:%d", port))
			}
			ask := func(c net.Conn, n int, closes string) error {
				c.SetDeadline(time.Now().Add(2 * time.Minute))
				if _, err := fmt.Fprintf(c, "%s%d\n", closes, n); err != nil {
					return err
				}
				got := make([]byte, n)
				if m, err := io.ReadFull(c, got); err != nil {
					return fmt.Errorf("%d bytes of %d: %w", m, n, err)
				}
				if string(got) != pattern(n) {
					return fmt.Errorf("not the %d bytes that were sent", n)
				}
				if closes == "" {
					return nil
				}
				if m, err := c.Read(got); m != 0 || err != io.EOF {
					return fmt.Errorf("behind the end: %d bytes, %w", m, err)
				}
				return nil
			}
			conns, largest := 20, 1<<20
			if lossy > 0 {
				conns, largest = 5, 200000 // a lost SYN costs a second
			}
			var all sync.WaitGroup
			// Sockets are made here, where the namespace is. Each is closed by another side.
			for i := range conns {
				c, err := dial(80)
				if err != nil {
					t.Fatal(err)
				}
				all.Go(func() {
					defer c.Close()
					for _, n := range []int{1, 1460, largest} {
						if err := ask(c, n, ""); err != nil {
							t.Error(err)
							return
						}
					}
					if i%2 == 0 {
						if err := ask(c, 5000, "close "); err != nil {
							t.Error(err)
						}
					}
				})
			}
			all.Wait()
			if lossy == 0 {
				if c, err := dial(81); !errors.Is(err, unix.ECONNREFUSED) {
					t.Errorf("another port: %v, %v", c, err)
				}
			}
			// A reader that is slow closes the window, and opens it again.
			c, err := dial(80)
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			if err := c.(*net.TCPConn).SetReadBuffer(4096); err != nil {
				t.Fatal(err)
			}
			c.SetDeadline(time.Now().Add(2 * time.Minute))
			fmt.Fprintf(c, "100000\n")
			time.Sleep(100 * time.Millisecond)
			if err := func() error {
				got := make([]byte, 100000)
				_, err := io.ReadFull(c, got)
				if err == nil && string(got) != pattern(len(got)) {
					err = errors.New("not what was sent")
				}
				return err
			}(); err != nil {
				t.Errorf("slow reader: %v", err)
			}
		})
	}
}
