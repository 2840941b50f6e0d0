package vhostuser_test

import (
	"context"
	"io"
	"net"
	"path/filepath"
	"testing"
	"time"

	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/config"
	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/virtio/vhostuser"
	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/virtio/vhostuser/wire"
)

// FuzzBackend is a back-end that answers anything: the front-end connects or gives up, in time. What it says is a byte of length for each
// answer, and the answer.
func FuzzBackend(f *testing.F) {
	answers := func(raw ...[]byte) (said []byte) {
		for _, r := range raw {
			said = append(append(said, byte(len(r))), r...)
		}
		return said
	}
	reply := func(r wire.Request, p []byte) []byte { return wire.Message(r, wire.FlagReply, p) }
	features := reply(wire.GetFeatures, wire.U64(1<<32|wire.FeatureProtocol))
	protocol := reply(wire.GetProtocolFeatures, wire.U64(wire.ProtocolConfig|wire.ProtocolReplyAck|wire.ProtocolBackendReq))
	f.Add([]byte{})
	f.Add(answers(features))
	f.Add(answers(features, protocol, reply(wire.GetConfig, wire.Config(0, make([]byte, 60)))))
	f.Add(answers(features, protocol, reply(wire.GetConfig, wire.Config(0, make([]byte, 60))), reply(wire.SetBackendReqFD, wire.U64(0))))
	f.Add(answers(features, protocol, reply(wire.GetConfig, wire.Config(0, make([]byte, 200)))))
	f.Add(answers(features, protocol, reply(wire.GetConfig, nil)))
	path := filepath.Join(f.TempDir(), "socket")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path})
	if err != nil {
		f.Fatal(err)
	}
	defer l.Close()
	f.Fuzz(func(t *testing.T, said []byte) {
		done := make(chan struct{})
		go func() {
			defer close(done)
			if d, err := vhostuser.NewDrive(context.Background(), config.Drive{DriveID: "data", Socket: path}); err == nil {
				d.Close()
			}
		}()
		c, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		say(c, said)
		c.Close()
		select {
		case <-done:
		case <-time.After(20 * time.Second):
			t.Fatal("the front-end waits for ever")
		}
	})
}

// say answers the messages that want an answer, as long as there is something to say.
func say(c net.Conn, said []byte) {
	for {
		var b [wire.HeaderSize]byte
		// A front-end that waits for the rest of an answer sends nothing.
		if err := c.SetReadDeadline(time.Now().Add(20 * time.Millisecond)); err != nil {
			return
		}
		if _, err := io.ReadFull(c, b[:]); err != nil {
			return
		}
		h, err := wire.ParseHeader(&b)
		if err != nil {
			return
		}
		if _, err := io.CopyN(io.Discard, c, int64(h.Size)); err != nil {
			return
		}
		if h.Flags&wire.FlagNeedReply == 0 && (h.Request == wire.SetOwner || h.Request == wire.SetProtocolFeatures) {
			continue
		}
		if len(said) == 0 {
			return
		}
		n := min(int(said[0]), len(said)-1)
		if _, err := c.Write(said[1 : 1+n]); err != nil {
			return
		}
		said = said[1+n:]
	}
}
