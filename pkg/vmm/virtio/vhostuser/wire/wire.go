// Package wire is the vhost-user protocol as bytes (QEMU's docs/interop/vhost-user.rst): the numbers of its messages and features,
// headers and payloads. Both ends use it; it knows no socket and no device. It must never take a message for something that it is
// not: sizes are exact, and what does not fit is an error.
//
// Integers are in the host's byte order, which is little-endian on all hosts that this project has.
package wire

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// Request is the kind of a message.
type Request uint32

// Messages from the front-end.
const (
	GetFeatures         Request = 1
	SetFeatures         Request = 2
	SetOwner            Request = 3
	SetMemTable         Request = 5
	SetVringNum         Request = 8
	SetVringAddr        Request = 9
	SetVringBase        Request = 10
	GetVringBase        Request = 11
	SetVringKick        Request = 12
	SetVringCall        Request = 13
	SetVringErr         Request = 14
	GetProtocolFeatures Request = 15
	SetProtocolFeatures Request = 16
	GetQueueNum         Request = 17
	SetVringEnable      Request = 18
	SetBackendReqFD     Request = 21
	GetConfig           Request = 24
	SetConfig           Request = 25
)

// BackendConfigChange is the message of the back-end's own channel that says that the configuration space has changed.
const BackendConfigChange Request = 2

// FeatureProtocol is the virtio feature bit by which a back-end says that it has protocol features. No driver sees it.
const FeatureProtocol = 1 << 30

// Protocol features.
const (
	ProtocolMQ         = 1 << 0
	ProtocolReplyAck   = 1 << 3
	ProtocolBackendReq = 1 << 5
	ProtocolConfig     = 1 << 9
)

// Sizes in bytes, and bounds.
const (
	HeaderSize = 12
	// MaxPayload bounds what either end sends here; the protocol has no bound.
	MaxPayload = 4096
	// MaxConfig is the largest piece of a configuration space in one message.
	MaxConfig = 256
	// MaxRegions is how many pieces of guest RAM a table has at most.
	MaxRegions = 8

	vringStateSize = 8
	vringAddrSize  = 40
	regionSize     = 32
	configSize     = 12
)

// Flags of a header.
const (
	version     = 1
	versionMask = 3
	// FlagReply marks a reply.
	FlagReply = 1 << 2
	// FlagNeedReply asks for a reply to a message that has none of its own: zero for success. It needs ProtocolReplyAck.
	FlagNeedReply = 1 << 3
)

// NoFD is the bit of SetVringKick's and SetVringCall's payload that says that no descriptor comes with it.
const NoFD = 1 << 8

// ErrMalformed is wrapped by the errors for messages that break the protocol.
var ErrMalformed = errors.New("malformed vhost-user message")

// Header begins each message.
type Header struct {
	Request Request
	Flags   uint32
	Size    uint32 // of the payload, in bytes
}

// Message is a message with this payload, at most MaxPayload bytes.
func Message(r Request, flags uint32, payload []byte) []byte {
	b := make([]byte, 0, HeaderSize+len(payload))
	b = binary.LittleEndian.AppendUint32(b, uint32(r))
	b = binary.LittleEndian.AppendUint32(b, flags|version)
	b = binary.LittleEndian.AppendUint32(b, uint32(len(payload)))
	return append(b, payload...)
}

// ParseHeader reads a header and checks its version and its size.
func ParseHeader(b *[HeaderSize]byte) (Header, error) {
	h := Header{
		Request: Request(binary.LittleEndian.Uint32(b[0:])),
		Flags:   binary.LittleEndian.Uint32(b[4:]),
		Size:    binary.LittleEndian.Uint32(b[8:]),
	}
	if h.Flags&versionMask != version {
		return h, fmt.Errorf("%w: version %d: want %d", ErrMalformed, h.Flags&versionMask, version)
	}
	if h.Size > MaxPayload {
		return h, fmt.Errorf("%w: message %d has %d bytes: want at most %d", ErrMalformed, h.Request, h.Size, MaxPayload)
	}
	return h, nil
}

// Read reads one message from r.
func Read(r io.Reader) (Header, []byte, error) {
	var b [HeaderSize]byte
	if _, err := io.ReadFull(r, b[:]); err != nil {
		return Header{}, nil, err
	}
	h, err := ParseHeader(&b)
	if err != nil {
		return h, nil, err
	}
	payload := make([]byte, h.Size)
	_, err = io.ReadFull(r, payload)
	return h, payload, err
}

func checkSize(what string, b []byte, want int) error {
	if len(b) != want {
		return fmt.Errorf("%w: %s of %d bytes: want %d", ErrMalformed, what, len(b), want)
	}
	return nil
}

// U64 is the payload of one number.
func U64(v uint64) []byte { return binary.LittleEndian.AppendUint64(nil, v) }

// ParseU64 reads U64's.
func ParseU64(b []byte) (uint64, error) {
	if err := checkSize("number", b, 8); err != nil {
		return 0, err
	}
	return binary.LittleEndian.Uint64(b), nil
}

// VringState is a queue's index with a number: its size, its next available entry, or whether it is enabled.
type VringState struct{ Index, Num uint32 }

// Bytes is the payload.
func (s VringState) Bytes() []byte {
	return binary.LittleEndian.AppendUint32(binary.LittleEndian.AppendUint32(nil, s.Index), s.Num)
}

// ParseVringState reads VringState's payload.
func ParseVringState(b []byte) (VringState, error) {
	if err := checkSize("vring state", b, vringStateSize); err != nil {
		return VringState{}, err
	}
	return VringState{binary.LittleEndian.Uint32(b), binary.LittleEndian.Uint32(b[4:])}, nil
}

// VringAddr says where a queue is, by the addresses that the regions of guest RAM have as Region.User.
type VringAddr struct {
	Index             uint32
	Desc, Used, Avail uint64
}

// Bytes is the payload, without a log.
func (a VringAddr) Bytes() []byte {
	b := make([]byte, vringAddrSize)
	binary.LittleEndian.PutUint32(b, a.Index)
	binary.LittleEndian.PutUint64(b[8:], a.Desc)
	binary.LittleEndian.PutUint64(b[16:], a.Used)
	binary.LittleEndian.PutUint64(b[24:], a.Avail)
	return b
}

// ParseVringAddr reads VringAddr's payload.
func ParseVringAddr(b []byte) (VringAddr, error) {
	if err := checkSize("vring address", b, vringAddrSize); err != nil {
		return VringAddr{}, err
	}
	return VringAddr{
		Index: binary.LittleEndian.Uint32(b),
		Desc:  binary.LittleEndian.Uint64(b[8:]),
		Used:  binary.LittleEndian.Uint64(b[16:]),
		Avail: binary.LittleEndian.Uint64(b[24:]),
	}, nil
}

// Region is a piece of guest RAM, whose file comes with the message.
type Region struct {
	// Guest is its guest-physical address, User its address in VringAddr, Offset its place in the file.
	Guest, Size, User, Offset uint64
}

// MemTable is the payload of the regions.
func MemTable(regions []Region) []byte {
	b := binary.LittleEndian.AppendUint64(nil, uint64(len(regions)))
	for _, r := range regions {
		for _, v := range [...]uint64{r.Guest, r.Size, r.User, r.Offset} {
			b = binary.LittleEndian.AppendUint64(b, v)
		}
	}
	return b
}

// ParseMemTable reads MemTable's.
func ParseMemTable(b []byte) ([]Region, error) {
	if len(b) < 8 {
		return nil, checkSize("memory table", b, 8)
	}
	n := binary.LittleEndian.Uint32(b)
	if n > MaxRegions {
		return nil, fmt.Errorf("%w: %d regions: want at most %d", ErrMalformed, n, MaxRegions)
	}
	// What follows the regions is padding: some front-ends always send the whole table.
	if len(b) < 8+int(n)*regionSize {
		return nil, checkSize("memory table", b, 8+int(n)*regionSize)
	}
	regions := make([]Region, n)
	for i := range regions {
		p := b[8+i*regionSize:]
		regions[i] = Region{
			Guest:  binary.LittleEndian.Uint64(p),
			Size:   binary.LittleEndian.Uint64(p[8:]),
			User:   binary.LittleEndian.Uint64(p[16:]),
			Offset: binary.LittleEndian.Uint64(p[24:]),
		}
	}
	return regions, nil
}

// Config is the payload with the bytes of a configuration space from offset off: those to be stored, or room for those asked for.
func Config(off uint32, space []byte) []byte {
	b := binary.LittleEndian.AppendUint32(nil, off)
	b = binary.LittleEndian.AppendUint32(b, uint32(len(space)))
	b = binary.LittleEndian.AppendUint32(b, 0) // flags: what a driver may write
	return append(b, space...)
}

// ParseConfig reads Config's. Of a reply, no bytes mean that the back-end has refused.
func ParseConfig(b []byte) (off uint32, space []byte, err error) {
	if len(b) < configSize {
		return 0, nil, checkSize("configuration", b, configSize)
	}
	off, n := binary.LittleEndian.Uint32(b), binary.LittleEndian.Uint32(b[4:])
	if n > MaxConfig || n != 0 && int(n) != len(b)-configSize {
		return 0, nil, fmt.Errorf("%w: configuration of %d bytes in %d", ErrMalformed, n, len(b)-configSize)
	}
	return off, b[configSize : configSize+n], nil
}
