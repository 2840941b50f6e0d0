// Package network joins a pod's network namespace to its VM. Whoever makes the pod's network (CNI plugins, mostly) puts
// interfaces with addresses and routes into the namespace, and knows nothing of a VM. For each the VM has a virtio-net device,
// whose TAP is in the same namespace: what comes in at one of the two is redirected to leave at the other (tc's mirred action),
// and the guest gets the interface's MAC, addresses, routes and neighbours. The addresses stay on the interface as well, where
// clients look for them; the host's stack does not see its traffic any more.
//
// The package must never read what a guest has written; frames pass through the kernel only.
package network

import (
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/fcshim/containerd-shim-fc-v2/pkg/agent/agentpb"
)

// tapPrefix begins the names of TAPs that stand for a VM's devices.
const tapPrefix = "fctap"

// MaxDevices bounds the interfaces of a VM.
const MaxDevices = 8

// netlinkTimeout bounds each of the kernel's answers.
const netlinkTimeout = 10 * time.Second

// addrGenNone is IN6_ADDR_GEN_MODE_NONE of linux/if_link.h: no link-local address.
const addrGenNone = 1

// Device is a virtio-net device of the VM's.
type Device struct {
	// TAP is the name of its other end, in the pod's network namespace.
	TAP string
	// MAC is what the guest finds it by.
	MAC net.HardwareAddr
}

// Network is a pod's network namespace and the VM's devices in it.
type Network struct {
	ns      *os.File
	devices []Device
}

// Open takes a network namespace over: Close closes ns.
func Open(ns *os.File) *Network { return &Network{ns: ns} }

// Namespace is the namespace's file.
func (n *Network) Namespace() *os.File { return n.ns }

// Close leaves what is in the namespace as it is.
func (n *Network) Close() error { return n.ns.Close() }

func (n *Network) handle() (*netlink.Handle, error) {
	h, err := netlink.NewHandleAt(netns.NsHandle(n.ns.Fd()), unix.NETLINK_ROUTE)
	if err == nil {
		err = h.SetSocketTimeout(netlinkTimeout)
	}
	if err != nil {
		return nil, fmt.Errorf("network namespace %s: %w", n.ns.Name(), err)
	}
	return h, nil
}

// Plan says which devices the VM needs: one for each interface that is there, and at least atLeast, for those that come
// between the VM's start and its container's. The TAPs are made by the VMM.
func (n *Network) Plan(atLeast int) ([]Device, error) {
	h, err := n.handle()
	if err != nil {
		return nil, err
	}
	defer h.Close()
	if err := loopbackUp(h); err != nil {
		return nil, err
	}
	up, err := uplinks(h)
	if err != nil {
		return nil, err
	}
	if err := vacant(h); err != nil {
		return nil, err
	}
	if len(up) > MaxDevices {
		return nil, fmt.Errorf("the pod's network has %d interfaces, at most %d are allowed: %w", len(up), MaxDevices, errdefs.ErrInvalidArgument)
	}
	n.devices = nil
	for i := range max(len(up), atLeast) {
		mac := make(net.HardwareAddr, 6)
		rand.Read(mac) // never fails
		mac[0] = mac[0]&^1 | 2
		n.devices = append(n.devices, Device{TAP: fmt.Sprint(tapPrefix, i), MAC: mac})
	}
	return n.devices, nil
}

// vacant refuses a namespace whose interfaces lead to a VM already: a network has one owner.
func vacant(h *netlink.Handle) error {
	_, err := h.LinkByName(tapPrefix + "0")
	var none netlink.LinkNotFoundError
	switch {
	case errors.As(err, &none):
		return nil
	case err != nil:
		return fmt.Errorf("look for %s0: %w", tapPrefix, err)
	}
	return fmt.Errorf("the network namespace is that of another container in a VM (it has %s0), and cannot be shared: %w", tapPrefix, errdefs.ErrFailedPrecondition)
}

// loopbackUp is what every runtime does for a new namespace; somebody may listen there for the pod.
func loopbackUp(h *netlink.Handle) error {
	lo, err := h.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("lo: %w", err)
	}
	if lo.Attrs().Flags&net.FlagUp != 0 {
		return nil
	}
	if err := h.LinkSetUp(lo); err != nil {
		return fmt.Errorf("set lo up: %w", err)
	}
	return nil
}

// uplinks are the interfaces that lead out of the namespace: those that are up and Ethernet, in the order of their making.
func uplinks(h *netlink.Handle) ([]netlink.Link, error) {
	links, err := h.LinkList()
	if err != nil {
		return nil, fmt.Errorf("list the pod's interfaces: %w", err)
	}
	links = slices.DeleteFunc(links, func(l netlink.Link) bool {
		a := l.Attrs()
		return a.Flags&net.FlagUp == 0 || a.Flags&net.FlagLoopback != 0 || a.EncapType != "ether" || a.MasterIndex != 0 || strings.HasPrefix(a.Name, tapPrefix)
	})
	slices.SortFunc(links, func(a, b netlink.Link) int { return a.Attrs().Index - b.Attrs().Index })
	return links, nil
}

// Join is an interface and the TAP that it is to be joined with, by their indexes in the namespace.
type Join struct {
	Interface int `json:"interface"`
	TAP       int `json:"tap"`
}

// Describe returns what the guest must be told of the namespace's interfaces, and what Connect must join; nil if there is no
// interface.
func (n *Network) Describe() (*agentpb.ConfigureNetworkRequest, []Join, error) {
	h, err := n.handle()
	if err != nil {
		return nil, nil, err
	}
	defer h.Close()
	up, err := uplinks(h)
	if err != nil || len(up) == 0 {
		return nil, nil, err
	}
	if len(up) > len(n.devices) {
		return nil, nil, fmt.Errorf("the pod's network has %d interfaces, but its VM was started with room for %d: make the network before the container, or raise spare_interfaces in fc.toml: %w",
			len(up), len(n.devices), errdefs.ErrFailedPrecondition)
	}
	r := &agentpb.ConfigureNetworkRequest{}
	var joins []Join
	for i, link := range up {
		if err := describe(h, link, n.devices[i], r); err != nil {
			return nil, nil, fmt.Errorf("interface %s: %w", link.Attrs().Name, err)
		}
		tap, err := h.LinkByName(n.devices[i].TAP)
		if err != nil {
			return nil, nil, fmt.Errorf("interface %s: the VM's end %s: %w", link.Attrs().Name, n.devices[i].TAP, err)
		}
		joins = append(joins, Join{Interface: link.Attrs().Index, TAP: tap.Attrs().Index})
	}
	// What has no gateway makes the gateways of the others reachable.
	slices.SortStableFunc(r.Routes, func(a, b *agentpb.Route) int { return min(1, len(a.Gateway)) - min(1, len(b.Gateway)) })
	return r, joins, nil
}

// Connect redirects each interface's traffic to its TAP and back. It may be called again.
func (n *Network) Connect(joins []Join) error {
	h, err := n.handle()
	if err != nil {
		return err
	}
	defer h.Close()
	for _, j := range joins {
		link, err := h.LinkByIndex(j.Interface)
		if err != nil {
			return fmt.Errorf("interface %d: %w", j.Interface, err)
		}
		tap, err := h.LinkByIndex(j.TAP)
		if err == nil {
			err = connect(h, link, tap)
		}
		if err != nil {
			return fmt.Errorf("connect interface %s to the VM: %w", link.Attrs().Name, err)
		}
	}
	return nil
}

// connect joins an interface and a TAP.
func connect(h *netlink.Handle, link, tap netlink.Link) error {
	name := tap.Attrs().Name
	// The host shall say nothing of its own there. Kernels without IPv6 refuse, and have nothing to say.
	_ = h.LinkSetIP6AddrGenMode(tap, addrGenNone)
	if err := h.LinkSetMTU(tap, link.Attrs().MTU); err != nil {
		return fmt.Errorf("set %s's MTU to %d: %w", name, link.Attrs().MTU, err)
	}
	if err := h.LinkSetUp(tap); err != nil {
		return fmt.Errorf("set %s up: %w", name, err)
	}
	if err := redirect(h, link, tap); err != nil {
		return err
	}
	return redirect(h, tap, link)
}

// The handle of an ingress qdisc, and the parent of its filters.
const ingressHandle = 0xffff0000

func ingress(link int) *netlink.Ingress {
	return &netlink.Ingress{QdiscAttrs: netlink.QdiscAttrs{LinkIndex: link, Handle: ingressHandle, Parent: netlink.HANDLE_INGRESS}}
}

// redirect has everything that comes in at one interface leave at another.
func redirect(h *netlink.Handle, from, to netlink.Link) error {
	// A matchall filter cannot be changed, only replaced.
	if err := restore(h, from.Attrs().Index, to.Attrs().Index); err != nil {
		return err
	}
	if err := h.QdiscAdd(ingress(from.Attrs().Index)); err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("make an ingress qdisc at %s: %w", from.Attrs().Name, err)
	}
	filter := &netlink.MatchAll{
		FilterAttrs: netlink.FilterAttrs{LinkIndex: from.Attrs().Index, Parent: ingressHandle, Priority: 1, Protocol: unix.ETH_P_ALL},
		Actions:     []netlink.Action{netlink.NewMirredAction(to.Attrs().Index)},
	}
	if err := h.FilterAdd(filter); err != nil {
		return fmt.Errorf("redirect from %s to %s: %w", from.Attrs().Name, to.Attrs().Name, err)
	}
	return nil
}

// Disconnect gives interfaces back to the host's stack. The TAPs go away with the VM; interfaces may have gone, too.
func (n *Network) Disconnect(joins []Join) error {
	h, err := n.handle()
	if err != nil {
		return err
	}
	defer h.Close()
	var errs []error
	for _, j := range joins {
		errs = append(errs, restore(h, j.Interface, j.TAP))
	}
	return errors.Join(errs...)
}

// restore removes the redirection from one interface to another, and nothing of anybody else's: the qdisc stays if it has
// other filters. A redirection whose TAP has gone leads to number 0, and is of no use to anybody.
func restore(h *netlink.Handle, from, to int) error {
	link, err := h.LinkByIndex(from)
	var none netlink.LinkNotFoundError
	if errors.As(err, &none) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("interface %d: %w", from, err)
	}
	filters, err := h.FilterList(link, ingressHandle)
	if err != nil {
		return fmt.Errorf("interface %s: list its filters: %w", link.Attrs().Name, err)
	}
	left := len(filters)
	for _, f := range filters {
		m, ok := f.(*netlink.MatchAll)
		if !ok || len(m.Actions) != 1 {
			continue
		}
		if a, ok := m.Actions[0].(*netlink.MirredAction); !ok || a.Ifindex != to && a.Ifindex != 0 {
			continue
		}
		if err := h.FilterDel(f); err != nil && !errors.Is(err, unix.ENOENT) {
			return fmt.Errorf("interface %s: remove its redirection: %w", link.Attrs().Name, err)
		}
		left--
	}
	if left == 0 && len(filters) > 0 {
		if err := h.QdiscDel(ingress(from)); err != nil && !errors.Is(err, unix.ENOENT) {
			return fmt.Errorf("interface %s: remove its ingress qdisc: %w", link.Attrs().Name, err)
		}
	}
	return nil
}
