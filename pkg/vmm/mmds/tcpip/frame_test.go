package tcpip

import (
	"bytes"
	"testing"
)

// arp is a request for an address.
func arp(tpa ipv4) []byte {
	b := make([]byte, ethLen+arpLen)
	copy(b[ethDst:], "\xff\xff\xff\xff\xff\xff")
	copy(b[ethSrc:], guest[:])
	be.PutUint16(b[ethType:], typeARP)
	copy(b[ethLen:], arpHeader[:])
	b[ethLen+arpOp+1] = 1
	copy(b[ethLen+arpSHA:], guest[:])
	copy(b[ethLen+arpSPA:], there[:])
	copy(b[ethLen+arpTPA:], tpa[:])
	return b
}

// at is b with a byte changed.
func at(b []byte, i int, v byte) []byte {
	b = bytes.Clone(b)
	b[i] = v
	return b
}

func TestARP(t *testing.T) {
	w := newWorld(t)
	if f := arp(here); !w.s.Wants(f) || !w.s.Receive(f) {
		t.Fatal("not wanted")
	}
	n, _ := w.s.Next(w.p[:])
	want := "\x02\x00\x00\x00\x00\x09\x06\x01\x23\x45\x67\x01\x08\x06\x00\x01\x08\x00\x06\x04\x00\x02" +
		"\x06\x01\x23\x45\x67\x01\xa9\xfe\xa9\xfe\x02\x00\x00\x00\x00\x09\x0a\x00\x00\x02"
	if string(w.p[:n]) != want {
		t.Errorf("% x", w.p[:n])
	}
	w.silent()
	for name, f := range map[string][]byte{
		"short":          arp(here)[:ethLen+arpLen-1],
		"a reply":        at(arp(here), ethLen+arpOp+1, 2),
		"of IPv6":        at(arp(here), ethLen+2, 0x86),
		"long addresses": at(arp(here), ethLen+5, 16),
	} {
		if w.s.Receive(f) {
			t.Errorf("%s: taken", name)
		}
	}
	w.silent()
	for range 3 * maxARPs {
		w.s.Receive(arp(here))
	}
	for range maxARPs {
		if n, _ := w.s.Next(w.p[:]); n == 0 {
			t.Error("too few answers")
		}
	}
	w.silent()
}

func TestWants(t *testing.T) {
	s := newWorld(t).s
	tcp := frame(peer{there, 1}, 80, 0, 0, syn, 0, nil, nil)
	for _, tt := range []struct {
		name string
		head []byte
		want bool
	}{
		{"TCP", tcp, true},
		{"TCP, its head", tcp[:HeadLen], true},
		{"UDP", at(tcp, ethLen+ipProtocol, 17), true},
		{"other address", at(tcp, ethLen+ipDst+3, 253), false},
		{"IPv6", at(tcp, ethType, 0x86), false},
		{"VLAN", at(at(tcp, ethType, 0x81), ethType+1, 0), false},
		{"no IPv4 header", tcp[:ethLen+ipLen-1], false},
		{"nothing", nil, false},
		{"ARP", arp(here), true},
		{"ARP for another", arp(there), false},
		{"short ARP", arp(here)[:ethLen+arpLen-1], false},
	} {
		if got := s.Wants(tt.head); got != tt.want {
			t.Errorf("%s: %v", tt.name, got)
		}
	}
}

// What is no segment for the server is swallowed.
func TestNoSegments(t *testing.T) {
	w := newWorld(t)
	ok := frame(peer{there, 1}, 80, 0, 0, syn, 0, []byte{optionMSS, 4, 1, 0}, nil)
	for name, f := range map[string][]byte{
		"UDP":              at(ok, ethLen+ipProtocol, 17),
		"version":          at(ok, ethLen, 0x65),
		"short header":     at(ok, ethLen, 0x44),
		"long header":      at(ok, ethLen, 0x4f),
		"total too large":  at(ok, ethLen+ipTotal, 1),
		"total too small":  at(ok, ethLen+ipTotal+1, 39),
		"fragment":         at(ok, ethLen+ipFragment+1, 1),
		"more fragments":   at(ok, ethLen+ipFragment, 0x20),
		"other address":    at(ok, ethLen+ipDst, 1),
		"short TCP header": at(ok, ethLen+ipLen+tcpOffset, 4<<4),
		"long TCP header":  at(ok, ethLen+ipLen+tcpOffset, 15<<4),
		"cut":              ok[:ethLen+ipLen+tcpLen-1],
		"Ethernet's":       ok[:ethLen],
		"nothing":          {},
	} {
		if w.s.Receive(f) {
			t.Errorf("%s: taken", name)
		}
	}
	w.silent()
	if len(w.s.conns) != 0 {
		t.Error("a connection")
	}
}

func TestMSS(t *testing.T) {
	for _, tt := range []struct {
		options string
		found   uint16
		used    uint32
	}{
		{"", 0, defaultMSS},
		{"\x02\x04\x05\xb4", 1460, 1460},
		{"\x02\x04\x23\x00", 8960, 1460},
		{"\x02\x04\x00\x01", 1, minMSS},
		{"\x01\x01\x02\x04\x02\x00\x00\x00", 512, 512},
		{"\x04\x02\x02\x04\x02\x00\x01\x01", 512, 512},
		{"\x00\x00\x00\x00\x02\x04\x02\x00", 0, defaultMSS},
		{"\x02\x03\x02\x00", 0, defaultMSS},
		{"\x05\x00\x02\x04", 0, defaultMSS},
		{"\x01\x01\x01\x02", 0, defaultMSS},
		{"\x05\xff\x02\x04", 0, defaultMSS},
	} {
		seg, is := parseTCP(frame(peer{there, 1}, 80, 0, 0, syn, 0, []byte(tt.options), nil), here)
		if is != good || seg.mss != tt.found {
			t.Errorf("% x: %d, %v", tt.options, seg.mss, is)
		}
		if c := newConn(&seg, 80, 0, 0); c.mss != tt.used {
			t.Errorf("% x: uses %d", tt.options, c.mss)
		}
	}
}
