package config

import (
	"net/netip"
	"slices"
)

// MMDS is how the guest reaches the microVM metadata service. Its data are not a part of the description.
type MMDS struct {
	// Version is "V1", the default, or "V2", with which the guest needs a session token.
	Version string `json:"version,omitempty"`
	// NetworkInterfaces has the ids of those, one at least, whose frames to IPv4Address are the service's.
	NetworkInterfaces []string `json:"network_interfaces"`
	// IPv4Address is a link-local one that a host can have (RFC 3927 §2.1); the default is DefaultMMDSAddress.
	IPv4Address string `json:"ipv4_address,omitempty"`
	// IMDSCompat has all answers be plain text, as EC2's service gives them.
	IMDSCompat bool `json:"imds_compat"`
}

// Values of MMDS.
const (
	MMDSV1             = "V1"
	MMDSV2             = "V2"
	DefaultMMDSAddress = "169.254.169.254"
)

func (m *MMDS) applyDefaults() {
	if m.Version == "" {
		m.Version = MMDSV1
	}
	if m.IPv4Address == "" {
		m.IPv4Address = DefaultMMDSAddress
	}
}

// Validate checks the service for itself; that the interfaces are there is the VM's matter.
func (m *MMDS) Validate() error {
	switch m.Version {
	case "", MMDSV1, MMDSV2:
	default:
		return BadString("mmds-config/version", m.Version, `"V1" or "V2"`)
	}
	if len(m.NetworkInterfaces) == 0 {
		return bad("mmds-config/network_interfaces", "[]", "the id of one network interface at least")
	}
	if m.IPv4Address == "" {
		return nil
	}
	a, err := netip.ParseAddr(m.IPv4Address)
	if err != nil || !a.Is4() || !a.IsLinkLocalUnicast() || a.As4()[2] == 0 || a.As4()[2] == 255 {
		return BadString("mmds-config/ipv4_address", m.IPv4Address, "a link-local IPv4 address, 169.254.1.0 to 169.254.254.255")
	}
	return nil
}

// Serves says whether the service is on a network interface.
func (m *MMDS) Serves(ifaceID string) bool {
	return m != nil && slices.Contains(m.NetworkInterfaces, ifaceID)
}

// Address is IPv4Address as numbers; Validate has found it right.
func (m *MMDS) Address() [4]byte {
	a, _ := netip.ParseAddr(m.IPv4Address)
	if !a.Is4() {
		a = netip.MustParseAddr(DefaultMMDSAddress)
	}
	return a.As4()
}

func (vm *VM) validateMMDS() error {
	if vm.MMDS == nil {
		return nil
	}
	if err := vm.MMDS.Validate(); err != nil {
		return err
	}
	for _, id := range vm.MMDS.NetworkInterfaces {
		if !slices.ContainsFunc(vm.NetworkInterfaces, func(n NetworkInterface) bool { return n.IfaceID == id }) {
			return UnknownID("mmds-config/network_interfaces", id, "network interface")
		}
	}
	return nil
}
