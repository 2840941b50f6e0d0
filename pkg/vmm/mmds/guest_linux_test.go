package mmds_test

import (
	"bufio"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

const (
	host, guest = "10.71.0.1", "10.71.0.2"
	controlPort = ":7000"
	// linkLocal is a second address of the guest's, so that the service is in its network.
	linkLocal = "169.254.1.1"
	// guestPatience bounds each wait of the guest's.
	guestPatience = 2 * time.Minute
)

// setAddress gives an interface an address, and takes it up.
func setAddress(name, addr string, mask [4]byte) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	a := netip.MustParseAddr(addr).As4()
	for _, do := range []struct {
		request uint
		fill    func(*unix.Ifreq) error
	}{
		{unix.SIOCSIFADDR, func(r *unix.Ifreq) error { return r.SetInet4Addr(a[:]) }},
		{unix.SIOCSIFNETMASK, func(r *unix.Ifreq) error { return r.SetInet4Addr(mask[:]) }},
		{unix.SIOCSIFFLAGS, func(r *unix.Ifreq) error { r.SetUint16(unix.IFF_UP | unix.IFF_RUNNING); return nil }},
	} {
		r, err := unix.NewIfreq(name)
		if err == nil {
			err = do.fill(r)
		}
		if err == nil {
			err = unix.IoctlIfreq(fd, do.request, r)
		}
		if err != nil {
			return fmt.Errorf("%s: ioctl %#x: %w", name, do.request, err)
		}
	}
	return nil
}

// guestServe does what the host asks for over a connection.
func guestServe() error {
	if err := errors.Join(setAddress("eth0", guest, [4]byte{255, 255, 255, 0}), setAddress("eth0:1", linkLocal, [4]byte{255, 255, 0, 0})); err != nil {
		return err
	}
	c, err := net.DialTimeout("tcp", host+controlPort, guestPatience)
	if err != nil {
		return err
	}
	defer c.Close()
	for in := bufio.NewScanner(c); in.Scan(); {
		answer, err := guestDo(strings.Split(in.Text(), "\t"))
		if err != nil {
			answer = "FAIL " + err.Error()
		}
		if _, err := fmt.Fprintln(c, strings.ReplaceAll(answer, "\n", " ")); err != nil {
			return err
		}
	}
	return nil
}

func guestDo(command []string) (string, error) {
	switch command[0] {
	case "http": // METHOD URL [HEADER: VALUE]...
		return request(http.DefaultClient, command[1:])
	case "many": // N METHOD URL [HEADER: VALUE]...: all at once, each a connection of its own
		n, err := strconv.Atoi(command[1])
		if err != nil {
			return "", err
		}
		var all sync.WaitGroup
		errs := make([]error, n)
		answers := make([]string, n)
		for i := range n {
			all.Go(func() {
				client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: guestPatience}
				answers[i], errs[i] = request(client, command[2:])
			})
		}
		all.Wait()
		for _, a := range answers {
			if a != answers[0] {
				errs = append(errs, fmt.Errorf("%s, and %s", answers[0], a))
			}
		}
		return answers[0], errors.Join(errs...)
	case "raw": // ADDRESS TEXT: what comes back until the end
		c, err := net.DialTimeout("tcp", command[1], guestPatience)
		if err != nil {
			return err.Error(), nil
		}
		defer c.Close()
		text, err := strconv.Unquote(command[2])
		if err != nil {
			return "", err
		}
		c.SetDeadline(time.Now().Add(guestPatience))
		if _, err := io.WriteString(c, text); err != nil {
			return "", err
		}
		b, err := io.ReadAll(c)
		return fmt.Sprintf("%q %v", b, err), nil
	case "arp":
		b, err := os.ReadFile("/proc/net/arp")
		for line := range strings.Lines(string(b)) {
			if f := strings.Fields(line); len(f) > 3 && f[0] == command[1] {
				return f[3], err
			}
		}
		return "unknown", err
	case "poll": // URL TEXT: until the answer is that
		for begin := time.Now(); ; time.Sleep(50 * time.Millisecond) {
			got, err := request(http.DefaultClient, []string{"GET", command[1]})
			if err != nil || strings.Contains(got, command[2]) || time.Since(begin) > guestPatience {
				return got, err
			}
		}
	}
	return "", fmt.Errorf("%q is no command", command)
}

// request gives an answer's status, type and body, or of a long one its length and sum.
func request(client *http.Client, args []string) (string, error) {
	r, err := http.NewRequest(args[0], args[1], nil)
	if err != nil {
		return "", err
	}
	for _, h := range args[2:] {
		name, value, _ := strings.Cut(h, ": ")
		r.Header.Set(name, value)
	}
	a, err := client.Do(r)
	if err != nil {
		return "", err
	}
	defer a.Body.Close()
	b, err := io.ReadAll(a.Body)
	if len(b) > 500 {
		b = fmt.Appendf(nil, "%d bytes, %x", len(b), sha256.Sum256(b))
	}
	return fmt.Sprintf("%d %s %q", a.StatusCode, a.Header.Get("Content-Type"), b), err
}
