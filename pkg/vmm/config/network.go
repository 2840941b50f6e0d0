package config

import (
	"encoding/hex"
	"fmt"
	"strings"

	"github.com/containerd/errdefs"
)

// Limits of network interfaces.
const (
	// MaxDevName bounds the name of a host's interface, in bytes: IFNAMSIZ without its final NUL.
	MaxDevName = 15
	// MinMTU is the smallest that IPv4 works with, and the smallest that Linux's driver takes (RFC 791).
	MinMTU = 68
	// MaxMTU is what the device's configuration space can say.
	MaxMTU = 65535
)

const wantMAC = "six pairs of hexadecimal digits with colons between, a unicast address that is not zero"

func (vm *VM) validateNetworkInterfaces() error {
	ids := make(map[string]bool, len(vm.NetworkInterfaces))
	names := make(map[string]bool, len(vm.NetworkInterfaces))
	macs := make(map[[6]byte]bool, len(vm.NetworkInterfaces))
	for i := range vm.NetworkInterfaces {
		n := &vm.NetworkInterfaces[i]
		if err := n.Validate(); err != nil {
			return err
		}
		at := "network-interfaces/" + n.IfaceID + "/"
		if ids[n.IfaceID] {
			return BadString("iface_id", n.IfaceID, "an id that no other network interface has")
		}
		if names[n.HostDevName] {
			return BadString(at+"host_dev_name", n.HostDevName, "a TAP that no other network interface has")
		}
		ids[n.IfaceID], names[n.HostDevName] = true, true
		if n.GuestMAC == "" {
			continue
		}
		mac, err := ParseMAC(n.GuestMAC)
		if err != nil {
			return err // Validate has had it
		}
		if macs[mac] {
			return BadString(at+"guest_mac", n.GuestMAC, "an address that no other network interface has")
		}
		macs[mac] = true
	}
	return nil
}

// Validate checks a network interface for itself; that it shares nothing with others is the VM's matter.
func (n *NetworkInterface) Validate() error {
	if err := checkID("iface_id", n.IfaceID); err != nil {
		return err
	}
	at := "network-interfaces/" + n.IfaceID + "/"
	if !validDevName(n.HostDevName) {
		return BadString(at+"host_dev_name", n.HostDevName,
			fmt.Sprintf("the name of a TAP, 1 to %d printable ASCII characters without space, '/', ':' and '%%'", MaxDevName))
	}
	if n.GuestMAC != "" {
		if _, err := ParseMAC(n.GuestMAC); err != nil {
			return BadString(at+"guest_mac", n.GuestMAC, wantMAC)
		}
	}
	if n.MTU != 0 && (n.MTU < MinMTU || n.MTU > MaxMTU) {
		return bad(at+"mtu", n.MTU, fmt.Sprintf("%d to %d bytes, or 0 for the guest's own", MinMTU, MaxMTU))
	}
	if err := n.RxRateLimiter.validate(at + "rx_rate_limiter"); err != nil {
		return err
	}
	return n.TxRateLimiter.validate(at + "tx_rate_limiter")
}

// validDevName is the kernel's rule (dev_valid_name) for ASCII, and no '%': the kernel would take that for a pattern, and make up
// a name.
func validDevName(name string) bool {
	return name != "" && len(name) <= MaxDevName && name != "." && name != ".." && !strings.ContainsAny(name, "/:%") &&
		!strings.ContainsFunc(name, func(r rune) bool { return r <= ' ' || r > '~' })
}

// ParseMAC reads the address of a network interface. It must be one that an interface can have: not zero, no multicast.
func ParseMAC(s string) (mac [6]byte, err error) {
	bad := fmt.Errorf("%.64q: want %s: %w", s, wantMAC, errdefs.ErrInvalidArgument)
	parts := strings.Split(s, ":")
	if len(parts) != len(mac) {
		return mac, bad
	}
	for i, p := range parts {
		b, err := hex.DecodeString(p)
		if err != nil || len(b) != 1 {
			return [6]byte{}, bad
		}
		mac[i] = b[0]
	}
	if mac[0]&1 != 0 || mac == [6]byte{} {
		return [6]byte{}, bad
	}
	return mac, nil
}
