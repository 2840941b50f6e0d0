// Package network makes the guest's network interfaces what the pod's are on the host: names, MACs, addresses, routes and
// neighbours, over rtnetlink. It must never be called with what a container has written.
package network

import (
	"errors"
	"fmt"
	"net"
	"slices"

	"github.com/containerd/errdefs"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/fcshim/containerd-shim-fc-v2/pkg/agent/agentpb"
)

// Configure does what r says. Interfaces that it does not name stay as they are. It may be called again, with another r.
func Configure(r *agentpb.ConfigureNetworkRequest) error {
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return err
	}
	defer h.Close()
	links, err := find(h, r.Interfaces)
	if err != nil {
		return err
	}
	// One interface may want another's name: first, none has one that is wanted.
	for i, l := range links {
		if err := errors.Join(h.LinkSetDown(l), rename(h, l, fmt.Sprint("fc-", i))); err != nil {
			return fmt.Errorf("interface %s: %w", r.Interfaces[i].Name, err)
		}
	}
	for i, l := range links {
		if err := configure(h, l, r.Interfaces[i]); err != nil {
			return fmt.Errorf("interface %s: %w", r.Interfaces[i].Name, err)
		}
	}
	for _, route := range r.Routes {
		if err := addRoute(h, links, r.Interfaces, route); err != nil {
			return fmt.Errorf("route to %s: %w", route.Destination, err)
		}
	}
	for _, n := range r.Neighbours {
		if err := addNeighbour(h, links, r.Interfaces, n); err != nil {
			return fmt.Errorf("neighbour %s: %w", n.Address, err)
		}
	}
	return nil
}

// find finds the devices by their MACs, or by those that they had in the beginning.
func find(h *netlink.Handle, interfaces []*agentpb.Interface) ([]netlink.Link, error) {
	all, err := h.LinkList()
	if err != nil {
		return nil, fmt.Errorf("list the interfaces: %w", err)
	}
	found := make([]netlink.Link, len(interfaces))
	for i, iface := range interfaces {
		mac := net.HardwareAddr(iface.DeviceMac)
		at := slices.IndexFunc(all, func(l netlink.Link) bool { return l.Attrs().PermHWAddr.String() == mac.String() })
		if at < 0 {
			at = slices.IndexFunc(all, func(l netlink.Link) bool { return l.Attrs().HardwareAddr.String() == mac.String() })
		}
		if at < 0 || len(mac) != 6 {
			return nil, fmt.Errorf("interface %s: the guest has no device with MAC %s: %w", iface.Name, mac, errdefs.ErrNotFound)
		}
		found[i] = all[at]
	}
	return found, nil
}

func rename(h *netlink.Handle, l netlink.Link, name string) error {
	if err := h.LinkSetName(l, name); err != nil {
		return fmt.Errorf("name it %s: %w", name, err)
	}
	return nil
}

func configure(h *netlink.Handle, l netlink.Link, want *agentpb.Interface) error {
	if len(want.Mac) != 6 {
		return fmt.Errorf("MAC of %d bytes, want 6: %w", len(want.Mac), errdefs.ErrInvalidArgument)
	}
	if err := h.LinkSetHardwareAddr(l, want.Mac); err != nil {
		return fmt.Errorf("set MAC %s: %w", net.HardwareAddr(want.Mac), err)
	}
	if err := rename(h, l, want.Name); err != nil {
		return err
	}
	if err := h.LinkSetMTU(l, int(want.Mtu)); err != nil {
		return fmt.Errorf("set MTU %d: %w", want.Mtu, err)
	}
	old, err := h.AddrList(l, netlink.FAMILY_ALL)
	if err != nil {
		return err
	}
	for _, a := range old {
		if !slices.Contains(want.Addresses, a.IPNet.String()) {
			if err := h.AddrDel(l, &a); err != nil && !errors.Is(err, unix.EADDRNOTAVAIL) {
				return fmt.Errorf("remove address %s: %w", a.IPNet, err)
			}
		}
	}
	if err := h.LinkSetUp(l); err != nil {
		return fmt.Errorf("set it up: %w", err)
	}
	for _, text := range want.Addresses {
		a, err := netlink.ParseAddr(text)
		if err != nil {
			return fmt.Errorf("address %s: %w: %w", text, err, errdefs.ErrInvalidArgument)
		}
		// Whoever gave it to the pod has made sure that nobody else has it.
		a.Flags |= unix.IFA_F_NODAD
		if err := h.AddrReplace(l, a); err != nil {
			return fmt.Errorf("set address %s: %w", text, err)
		}
	}
	return nil
}

// index finds an interface by the name that it has been given.
func index(links []netlink.Link, interfaces []*agentpb.Interface, name string) (int, error) {
	for i, iface := range interfaces {
		if iface.Name == name {
			return links[i].Attrs().Index, nil
		}
	}
	return 0, fmt.Errorf("interface %q is not among those of the request: %w", name, errdefs.ErrInvalidArgument)
}

func parseIP(field, text string) (net.IP, error) {
	if text == "" {
		return nil, nil
	}
	ip := net.ParseIP(text)
	if ip == nil {
		return nil, fmt.Errorf("%s %q is no IP address: %w", field, text, errdefs.ErrInvalidArgument)
	}
	return ip, nil
}

func addRoute(h *netlink.Handle, links []netlink.Link, interfaces []*agentpb.Interface, r *agentpb.Route) error {
	at, err := index(links, interfaces, r.Interface)
	if err != nil {
		return err
	}
	_, dst, err := net.ParseCIDR(r.Destination)
	if err != nil {
		return fmt.Errorf("%w: %w", err, errdefs.ErrInvalidArgument)
	}
	gw, err := parseIP("gateway", r.Gateway)
	if err != nil {
		return err
	}
	src, err := parseIP("source", r.Source)
	if err != nil {
		return err
	}
	route := &netlink.Route{
		LinkIndex: at, Dst: dst, Gw: gw, Src: src, Scope: netlink.Scope(r.Scope), Protocol: netlink.RouteProtocol(r.Protocol),
		Priority: int(r.Metric), MTU: int(r.Mtu),
	}
	if r.Onlink {
		route.Flags = int(netlink.FLAG_ONLINK)
	}
	err = h.RouteReplace(route)
	if gw != nil && (errors.Is(err, unix.EHOSTUNREACH) || errors.Is(err, unix.ENETUNREACH)) {
		// IPv6 takes an interface for ready a moment after it has been set up, and knows no way to the gateway before. The
		// host's kernel has known one.
		route.Flags = int(netlink.FLAG_ONLINK)
		err = h.RouteReplace(route)
	}
	return err
}

func addNeighbour(h *netlink.Handle, links []netlink.Link, interfaces []*agentpb.Interface, n *agentpb.Neighbour) error {
	at, err := index(links, interfaces, n.Interface)
	if err != nil {
		return err
	}
	ip, err := parseIP("address", n.Address)
	if err != nil {
		return err
	}
	return h.NeighSet(&netlink.Neigh{LinkIndex: at, IP: ip, HardwareAddr: n.Mac, State: unix.NUD_PERMANENT})
}
