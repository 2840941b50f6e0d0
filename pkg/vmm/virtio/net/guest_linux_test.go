package net_test

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"
)

const (
	host0, guest0 = "10.70.0.1", "10.70.0.2"
	host1, guest1 = "10.70.1.1", "10.70.1.2"

	controlPort = ":7000"
	sinkPort    = ":7001" // takes what the guest sends
	sourcePort  = ":7002" // sends
	echoPort    = ":7003" // UDP

	streamBytes = 32 << 20
	fromGuest   = 1 // seeds of the streams
	fromHost    = 2

	// guestPatience bounds each wait of the guest's.
	guestPatience = time.Minute
)

// stream is a reproducible sequence of streamBytes bytes.
func stream(seed byte) io.Reader {
	return io.LimitReader(rand.NewChaCha8([32]byte{seed}), streamBytes)
}

func sum(r io.Reader) (string, error) {
	h := sha256.New()
	n, err := io.Copy(h, r)
	return fmt.Sprintf("%d:%x", n, h.Sum(nil)), err
}

// guestServe does what the host asks for over a connection.
func guestServe() error {
	l, err := newLinks()
	if err != nil {
		return err
	}
	if err := errors.Join(l.address("eth0", guest0), l.address("eth1", guest1)); err != nil {
		return err
	}
	c, err := net.DialTimeout("tcp", host0+controlPort, guestPatience)
	if err != nil {
		return err
	}
	defer c.Close()
	for in := bufio.NewScanner(c); in.Scan(); {
		answer, err := guestDo(l, strings.Fields(in.Text()))
		if err != nil {
			answer = "FAIL " + err.Error()
		}
		if _, err := fmt.Fprintln(c, answer); err != nil {
			return err
		}
	}
	return nil
}

func guestDo(l links, command []string) (string, error) {
	switch command[0] {
	case "info":
		i, err := net.InterfaceByName(command[1])
		if err != nil {
			return "", err
		}
		return fmt.Sprintf("%s mtu %d", i.HardwareAddr, i.MTU), nil
	case "read":
		b, err := os.ReadFile(command[1])
		return string(bytes.TrimSpace(b)), err
	case "send":
		c, err := net.DialTimeout("tcp", host0+sinkPort, guestPatience)
		if err != nil {
			return "", err
		}
		defer c.Close()
		_, err = io.Copy(c, stream(fromGuest))
		return "sent", err
	case "receive":
		c, err := net.DialTimeout("tcp", host0+sourcePort, guestPatience)
		if err != nil {
			return "", err
		}
		defer c.Close()
		return sum(c)
	case "echo":
		return "echoed", guestEcho(command[1])
	case "pour":
		return "poured", pour(command[1])
	case "flood":
		return "flooding", flood(command[1])
	case "rate":
		return guestRate(command[1], command[2], 5*time.Second)
	case "rebind":
		dev, err := os.Readlink("/sys/class/net/eth1/device")
		if err != nil {
			return "", err
		}
		for _, what := range []string{"unbind", "bind"} {
			if err := os.WriteFile("/sys/bus/virtio/drivers/virtio_net/"+what, []byte(filepath.Base(dev)), 0); err != nil {
				return "", err
			}
		}
		return "bound", l.address("eth1", guest1)
	case "carrier":
		b := []byte(nil)
		for begin := time.Now(); time.Since(begin) < guestPatience; time.Sleep(10 * time.Millisecond) {
			var err error
			if b, err = os.ReadFile("/sys/class/net/" + command[1] + "/carrier"); err == nil && string(b) == command[2]+"\n" {
				return "carrier", nil
			}
		}
		return "", fmt.Errorf("carrier of %s is %q", command[1], b)
	}
	return "", fmt.Errorf("%q is no command", command)
}

// guestEcho has datagrams of several sizes come back. UDP may lose some.
func guestEcho(addr string) error {
	c, err := net.Dial("udp", addr)
	if err != nil {
		return err
	}
	defer c.Close()
	in := make([]byte, 1<<16)
	for _, size := range []int{1, 100, 1472, 1473, 8000, 60000} {
		out := make([]byte, size)
		rand.NewChaCha8([32]byte{byte(size)}).Read(out)
		ok := false
		for begin := time.Now(); !ok && time.Since(begin) < guestPatience; {
			if _, err := c.Write(out); err != nil {
				return fmt.Errorf("%d bytes: %w", size, err)
			}
			if err := c.SetReadDeadline(time.Now().Add(2 * time.Second)); err != nil {
				return err
			}
			n, err := c.Read(in)
			ok = err == nil && bytes.Equal(in[:n], out)
		}
		if !ok {
			return fmt.Errorf("no answer to %d bytes within %s", size, guestPatience)
		}
	}
	return nil
}

// guestRate is how many bytes a second an interface moves in a direction, over seconds of the guest's clock. It never says more than
// there were.
func guestRate(iface, direction string, d time.Duration) (string, error) {
	count := func() (n float64, err error) {
		b, err := os.ReadFile("/sys/class/net/" + iface + "/statistics/" + direction + "_bytes")
		if err == nil {
			_, err = fmt.Sscan(string(b), &n)
		}
		return n, err
	}
	begin := time.Now()
	before, err := count()
	if err != nil {
		return "", err
	}
	time.Sleep(d)
	after, err := count()
	return fmt.Sprint((after - before) / time.Since(begin).Seconds()), err
}

// pour sends to the host for as long as it takes, or drinks what comes from there, in the background.
func pour(port string) error {
	c, err := net.DialTimeout("tcp", host1+port, guestPatience)
	if err != nil {
		return err
	}
	go func() {
		defer c.Close()
		if port == sinkPort {
			io.Copy(c, rand.NewChaCha8([32]byte{fromGuest}))
		} else {
			io.Copy(io.Discard, c)
		}
	}()
	return nil
}

// flood sends small datagrams without end, in the background.
func flood(addr string) error {
	c, err := net.Dial("udp", addr)
	if err != nil {
		return err
	}
	go func() {
		for b := make([]byte, 64); ; {
			c.Write(b) // nobody listens, says an answer at times
		}
	}()
	return nil
}
