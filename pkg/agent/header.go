package agent

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"time"
)

// HeaderLen is the length in bytes of what opens a stream: its id, big-endian.
const HeaderLen = 8

// ErrStreamID says that a stream's id is 0, which means "no stream" in agentpb.Streams.
var ErrStreamID = errors.New("stream id 0 is reserved")

// WriteHeader opens a stream by its id, which must not be 0.
func WriteHeader(w io.Writer, id uint64) error {
	if id == 0 {
		return ErrStreamID
	}
	var b [HeaderLen]byte
	binary.BigEndian.PutUint64(b[:], id)
	if _, err := w.Write(b[:]); err != nil {
		return fmt.Errorf("write the header of stream %d: %w", id, err)
	}
	return nil
}

// ReadHeader reads the header that opens a stream and not a byte more. It waits for at most timeout, and leaves conn
// without a read deadline.
func ReadHeader(conn net.Conn, timeout time.Duration) (uint64, error) {
	if err := conn.SetReadDeadline(time.Now().Add(timeout)); err != nil {
		return 0, fmt.Errorf("bound the wait for a stream's header: %w", err)
	}
	var b [HeaderLen]byte
	if _, err := io.ReadFull(conn, b[:]); err != nil {
		return 0, fmt.Errorf("wait up to %v for a stream's header: %w", timeout, err)
	}
	if err := conn.SetReadDeadline(time.Time{}); err != nil {
		return 0, fmt.Errorf("lift the bound on a stream: %w", err)
	}
	id := binary.BigEndian.Uint64(b[:])
	if id == 0 {
		return 0, ErrStreamID
	}
	return id, nil
}
