package tcpip

import "encoding/binary"

// Offsets and sizes of headers: Ethernet, ARP (RFC 826), IPv4 (RFC 791) and TCP (RFC 9293).
const (
	ethDst, ethSrc, ethType = 0, 6, 12
	ethLen                  = 14

	arpOp, arpSHA, arpSPA, arpTHA, arpTPA = 6, 8, 14, 18, 24
	arpLen                                = 28

	ipTotal, ipFragment, ipTTL, ipProtocol, ipSum, ipSrc, ipDst = 2, 6, 8, 9, 10, 12, 16
	ipLen                                                       = 20

	tcpSrc, tcpDst, tcpSeq, tcpAck, tcpOffset, tcpFlags, tcpWindow, tcpSum = 0, 2, 4, 8, 12, 13, 14, 16
	tcpLen                                                                 = 20
)

const (
	typeIPv4    = 0x0800
	typeARP     = 0x0806
	protocolTCP = 6

	fragmentDF   = 0x4000
	fragmentMask = 0x3fff // more fragments, and the offset

	optionEnd, optionNop, optionMSS = 0, 1, 2
)

// TCP's flags.
const (
	fin = 1 << 0
	syn = 1 << 1
	rst = 1 << 2
	psh = 1 << 3
	ack = 1 << 4
)

var be = binary.BigEndian

type (
	mac  = [6]byte
	ipv4 = [4]byte
)

// peer is the other end of a connection, in the guest.
type peer struct {
	addr ipv4
	port uint16
}

// segment is a TCP segment from the guest. Its data are a part of the frame.
type segment struct {
	mac      mac
	from     peer
	port     uint16 // here
	seq, ack uint32
	flags    byte
	window   uint16
	mss      uint16 // 0: not said
	data     []byte
}

// size is what the segment takes of the sequence numbers.
func (s *segment) size() uint32 {
	n := uint32(len(s.data))
	if s.flags&syn != 0 {
		n++
	}
	if s.flags&fin != 0 {
		n++
	}
	return n
}

// finding is what a frame turns out to be.
type finding int

const (
	good finding = iota
	malformed
	unusual // in order, and nothing that anybody here answers
)

// parseTCP takes apart a frame with an IPv4 packet for to. Checksums are left alone: nothing that lies between a driver and its device
// damages a frame, and a driver that leaves checksums to the device has not made any.
func parseTCP(frame []byte, to ipv4) (segment, finding) {
	if len(frame) < ethLen+ipLen || be.Uint16(frame[ethType:]) != typeIPv4 {
		return segment{}, malformed
	}
	ip := frame[ethLen:]
	header, total := int(ip[0]&15)*4, int(be.Uint16(ip[ipTotal:]))
	if ip[0]>>4 != 4 || header < ipLen || total < header || total > len(ip) {
		return segment{}, malformed
	}
	if ipv4(ip[ipDst:]) != to || ip[ipProtocol] != protocolTCP || be.Uint16(ip[ipFragment:])&fragmentMask != 0 {
		return segment{}, unusual
	}
	tcp := ip[header:total]
	if len(tcp) < tcpLen {
		return segment{}, malformed
	}
	offset := int(tcp[tcpOffset]>>4) * 4
	if offset < tcpLen || offset > len(tcp) {
		return segment{}, malformed
	}
	return segment{
		mac:    mac(frame[ethSrc:]),
		from:   peer{ipv4(ip[ipSrc:]), be.Uint16(tcp[tcpSrc:])},
		port:   be.Uint16(tcp[tcpDst:]),
		seq:    be.Uint32(tcp[tcpSeq:]),
		ack:    be.Uint32(tcp[tcpAck:]),
		flags:  tcp[tcpFlags],
		window: be.Uint16(tcp[tcpWindow:]),
		mss:    findMSS(tcp[tcpLen:offset]),
		data:   tcp[offset:],
	}, good
}

// findMSS looks for a segment's largest size among its options; 0 if it is not there.
func findMSS(options []byte) uint16 {
	for len(options) > 0 && options[0] != optionEnd {
		if options[0] == optionNop {
			options = options[1:]
			continue
		}
		if len(options) < 2 || options[1] < 2 || int(options[1]) > len(options) {
			return 0
		}
		if options[0] == optionMSS && options[1] == 4 {
			return be.Uint16(options[2:])
		}
		options = options[options[1]:]
	}
	return 0
}

// outgoing is a segment to the guest without its data.
type outgoing struct {
	mac      mac
	to       peer
	port     uint16
	seq, ack uint32
	flags    byte
	window   uint16
	mss      uint16 // 0: not said
}

// dataAt is where the data of a segment without options lie in a frame.
const dataAt = ethLen + ipLen + tcpLen

// write makes a frame of o in p, whose data, n bytes, are at dataAt already. It returns the frame's size.
func (o *outgoing) write(p []byte, from ipv4, n int) int {
	header := tcpLen
	if o.mss != 0 {
		header += 4 // such a segment has no data
		copy(p[dataAt:], []byte{optionMSS, 4, byte(o.mss >> 8), byte(o.mss)})
	}
	total := ipLen + header + n
	p = p[:ethLen+total]
	writeEthernet(p, o.mac, typeIPv4)

	ip := p[ethLen:]
	clear(ip[:ipLen])
	ip[0] = 4<<4 | ipLen/4
	be.PutUint16(ip[ipTotal:], uint16(total))
	be.PutUint16(ip[ipFragment:], fragmentDF)
	ip[ipTTL], ip[ipProtocol] = 64, protocolTCP
	copy(ip[ipSrc:], from[:])
	copy(ip[ipDst:], o.to.addr[:])
	be.PutUint16(ip[ipSum:], ^fold(sum(0, ip[:ipLen])))

	tcp := ip[ipLen:]
	clear(tcp[:tcpLen])
	be.PutUint16(tcp[tcpSrc:], o.port)
	be.PutUint16(tcp[tcpDst:], o.to.port)
	be.PutUint32(tcp[tcpSeq:], o.seq)
	be.PutUint32(tcp[tcpAck:], o.ack)
	tcp[tcpOffset], tcp[tcpFlags] = byte(header/4)<<4, o.flags
	be.PutUint16(tcp[tcpWindow:], o.window)
	pseudo := sum(protocolTCP+uint32(len(tcp)), ip[ipSrc:ipLen])
	be.PutUint16(tcp[tcpSum:], ^fold(sum(pseudo, tcp)))
	return len(p)
}

// sum adds b to a checksum (RFC 1071). b is shorter than 64 KiB, so that nothing overflows.
func sum(to uint32, b []byte) uint32 {
	for ; len(b) >= 2; b = b[2:] {
		to += uint32(be.Uint16(b))
	}
	if len(b) > 0 {
		to += uint32(b[0]) << 8
	}
	return to
}

func fold(sum uint32) uint16 {
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return uint16(sum)
}

func writeEthernet(p []byte, to mac, kind uint16) {
	copy(p[ethDst:], to[:])
	copy(p[ethSrc:], serverMAC[:])
	be.PutUint16(p[ethType:], kind)
}

// arpReply says to a guest's interface who has an address.
type arpReply struct {
	mac  mac
	addr ipv4
}

// arpHeader is Ethernet and IPv4, with addresses of 6 and 4 bytes.
var arpHeader = [arpOp]byte{0, 1, 8, 0, 6, 4}

// parseARP takes apart a frame with a request for the hardware address of addr.
func parseARP(frame []byte, addr ipv4) (arpReply, finding) {
	if len(frame) < ethLen+arpLen || be.Uint16(frame[ethType:]) != typeARP {
		return arpReply{}, malformed
	}
	arp := frame[ethLen:]
	if [arpOp]byte(arp) != arpHeader {
		return arpReply{}, malformed
	}
	if be.Uint16(arp[arpOp:]) != 1 || ipv4(arp[arpTPA:]) != addr {
		return arpReply{}, unusual
	}
	return arpReply{mac(arp[arpSHA:]), ipv4(arp[arpSPA:])}, good
}

func (r *arpReply) write(p []byte, from ipv4) int {
	p = p[:ethLen+arpLen]
	writeEthernet(p, r.mac, typeARP)
	arp := p[ethLen:]
	copy(arp, arpHeader[:])
	be.PutUint16(arp[arpOp:], 2)
	copy(arp[arpSHA:], serverMAC[:])
	copy(arp[arpSPA:], from[:])
	copy(arp[arpTHA:], r.mac[:])
	copy(arp[arpTPA:], r.addr[:])
	return len(p)
}
