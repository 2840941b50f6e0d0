package sdk

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"syscall"
	"time"

	"github.com/firecracker-microvm/firecracker-go-sdk/vsock"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// vsockPort is where the guest listens for commands.
const vsockPort = 1024

// guest is PID 1: it does what the lines say that come over its vsock, one command a connection, until told to end.
func guest() {
	for _, m := range []struct{ kind, dir string }{{"devtmpfs", "/dev"}, {"proc", "/proc"}, {"sysfs", "/sys"}} {
		if err := syscall.Mount(m.kind, m.dir, m.kind, 0, ""); err != nil && err != syscall.EBUSY {
			fmt.Println("guest: mount", m.dir, err)
		}
	}
	if err := configureNetwork(); err != nil {
		fmt.Println("guest: network:", err)
	}
	fmt.Println("guest: up")
	l, err := vsock.Listener(context.Background(), quiet(), vsockPort)
	if err != nil {
		fmt.Println("guest: no vsock:", err)
		select {}
	}
	for {
		c, err := l.Accept()
		if err != nil {
			fmt.Println("guest: accept:", err)
			continue
		}
		answer(c)
	}
}

// configureNetwork does what the kernel would do of ip=ADDRESS::GATEWAY:MASK:… on its command line, which the SDK writes there, if it
// had been built with that.
func configureNetwork() error {
	line, err := os.ReadFile("/proc/cmdline")
	if err != nil {
		return err
	}
	for _, word := range strings.Fields(string(line)) {
		value, ok := strings.CutPrefix(word, "ip=")
		if !ok {
			continue
		}
		part := append(strings.Split(value, ":"), make([]string, 8)...)
		address := &netlink.Addr{IPNet: &net.IPNet{IP: net.ParseIP(part[0]).To4(), Mask: net.IPMask(net.ParseIP(part[3]).To4())}}
		link, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		if err := netlink.AddrAdd(link, address); err != nil {
			return err
		}
		if err := netlink.LinkSetUp(link); err != nil {
			return err
		}
		// The metadata service is reached through the interface, whatever the routes are.
		return netlink.RouteAdd(&netlink.Route{LinkIndex: link.Attrs().Index, Scope: netlink.SCOPE_LINK,
			Dst: &net.IPNet{IP: net.IPv4(169, 254, 169, 254).To4(), Mask: net.CIDRMask(32, 32)}})
	}
	return nil
}

// metadata asks the metadata service as a guest of Firecracker's would: first for a token, then with it.
func metadata(path string) (string, error) {
	client := &http.Client{Timeout: time.Minute}
	ask := func(method, path, header, value string) (string, error) {
		r, err := http.NewRequest(method, "http://169.254.169.254"+path, nil)
		if err != nil {
			return "", err
		}
		r.Header.Set(header, value)
		resp, err := client.Do(r)
		if err != nil {
			return "", err
		}
		defer resp.Body.Close()
		text, err := io.ReadAll(resp.Body)
		return string(text), err
	}
	token, err := ask("PUT", "/latest/api/token", "X-metadata-token-ttl-seconds", "60")
	if err != nil {
		return "", err
	}
	return ask("GET", path, "X-metadata-token", token)
}

func answer(c net.Conn) {
	defer c.Close()
	c.SetDeadline(time.Now().Add(bound))
	line, err := bufio.NewReader(c).ReadString('\n')
	if err != nil {
		return
	}
	command, argument, _ := strings.Cut(strings.TrimSpace(line), " ")
	switch command {
	case "echo":
		fmt.Fprintln(c, argument)
	case "read": // the beginning of a file or device
		f, err := os.Open(argument)
		if err != nil {
			fmt.Fprintln(c, err)
			return
		}
		defer f.Close()
		p := make([]byte, 64)
		n, _ := io.ReadFull(f, p)
		fmt.Fprintf(c, "%s\n", p[:n])
	case "get": // what a TCP server sends
		tcp, err := net.DialTimeout("tcp", argument, time.Minute)
		if err != nil {
			fmt.Fprintln(c, err)
			return
		}
		defer tcp.Close()
		io.Copy(c, tcp)
	case "mmds": // what the metadata service, version 2, has at a path
		text, err := metadata(argument)
		fmt.Fprintln(c, text, err)
	case "mac":
		i, err := net.InterfaceByName("eth0")
		fmt.Fprintln(c, i.HardwareAddr, err)
	case "poweroff":
		unix.Sync()
		unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
	case "reboot":
		unix.Sync()
		unix.Reboot(unix.LINUX_REBOOT_CMD_RESTART)
	}
}
