package network

import (
	"fmt"
	"net"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/fcshim/containerd-shim-fc-v2/pkg/agent/agentpb"
)

// describe adds to r what the guest must know of an interface.
func describe(h *netlink.Handle, link netlink.Link, dev Device, r *agentpb.ConfigureNetworkRequest) error {
	a := link.Attrs()
	iface := &agentpb.Interface{DeviceMac: dev.MAC, Name: a.Name, Mac: a.HardwareAddr, Mtu: uint32(a.MTU)}
	addrs, err := h.AddrList(link, netlink.FAMILY_ALL)
	if err != nil {
		return fmt.Errorf("list its addresses: %w", err)
	}
	for _, addr := range addrs {
		// The guest makes its own link-local address, which is the same one, as the MAC is.
		if addr.IP.To4() == nil && addr.IP.IsLinkLocalUnicast() || addr.Flags&unix.IFA_F_DADFAILED != 0 {
			continue
		}
		iface.Addresses = append(iface.Addresses, addr.IPNet.String())
	}
	r.Interfaces = append(r.Interfaces, iface)
	if err := describeRoutes(h, link, r); err != nil {
		return err
	}
	neighbours, err := h.NeighList(a.Index, netlink.FAMILY_ALL)
	if err != nil {
		return fmt.Errorf("list its neighbours: %w", err)
	}
	for _, nb := range neighbours {
		if nb.State&unix.NUD_PERMANENT != 0 && len(nb.HardwareAddr) == 6 && !nb.IP.IsMulticast() {
			r.Neighbours = append(r.Neighbours, &agentpb.Neighbour{Address: nb.IP.String(), Mac: nb.HardwareAddr, Interface: a.Name})
		}
	}
	return nil
}

// describeRoutes adds the routes of the main table that lead through an interface. What the kernel makes for an address is
// left out: the guest's does the same.
func describeRoutes(h *netlink.Handle, link netlink.Link, r *agentpb.ConfigureNetworkRequest) error {
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		routes, err := h.RouteList(link, family)
		if err != nil {
			return fmt.Errorf("list its routes: %w", err)
		}
		for _, route := range routes {
			if route.Protocol == unix.RTPROT_KERNEL || route.Type != unix.RTN_UNICAST || route.Dst != nil && route.Dst.IP.IsMulticast() {
				continue
			}
			r.Routes = append(r.Routes, &agentpb.Route{
				Destination: destination(route.Dst, family), Gateway: text(route.Gw), Source: text(route.Src), Interface: link.Attrs().Name,
				Scope: uint32(route.Scope), Protocol: uint32(route.Protocol), Metric: uint32(route.Priority),
				Onlink: route.Flags&int(netlink.FLAG_ONLINK) != 0, Mtu: uint32(route.MTU),
			})
		}
	}
	return nil
}

func destination(dst *net.IPNet, family int) string {
	switch {
	case dst != nil:
		return dst.String()
	case family == netlink.FAMILY_V6:
		return "::/0"
	}
	return "0.0.0.0/0"
}

// text is an address, or nothing for none.
func text(ip net.IP) string {
	if ip == nil || ip.IsUnspecified() {
		return ""
	}
	return ip.String()
}
