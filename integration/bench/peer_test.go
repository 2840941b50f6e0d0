package bench

import (
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"time"

	"github.com/fcshim/containerd-shim-fc-v2/integration/bench/guest/task"
	"github.com/fcshim/containerd-shim-fc-v2/integration/harness"
)

// serve runs the host's end of a guest's work until that ends, or the machine: then l is closed, which ends it.
func (v *vm) serve(f func() error, l io.Closer) {
	done := make(chan error, 1)
	go func() { done <- f() }()
	v.host = func() error {
		l.Close()
		return <-done
	}
}

// serveNet listens for the guest, whose kernel takes longer to come up than this does.
func (v *vm) serveNet(t task.Task) {
	v.b.Helper()
	if t.Work == task.PacketSend || t.Work == task.PacketRecv {
		c, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.ParseIP(task.HostIP), Port: task.Port})
		if err != nil {
			v.fatal(err)
		}
		v.serve(func() error { return talkPackets(c, t) }, c)
		return
	}
	l, err := net.Listen("tcp4", net.JoinHostPort(task.HostIP, strconv.Itoa(task.Port)))
	if err != nil {
		v.fatal(err)
	}
	v.serveStream(l, t)
}

// serveStream takes the guest's connection.
func (v *vm) serveStream(l net.Listener, t task.Task) {
	v.serve(func() error {
		defer l.Close()
		conn, err := l.Accept()
		if err != nil {
			return err
		}
		return talk(conn, t)
	}, l)
}

// talk is the host's end of a stream work.
func talk(conn net.Conn, t task.Task) error {
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(harness.Slow(guestTimeout))); err != nil {
		return err
	}
	buf, one := make([]byte, task.StreamChunk), make([]byte, 1)
	task.Fill(buf)
	for n := range t.Rounds {
		var err error
		switch t.Work {
		case task.StreamSend: // by the guest
			for got := 0; err == nil && got < t.Bytes; got += len(buf) {
				if _, err = io.ReadFull(conn, buf); err == nil {
					err = task.CheckMarks(buf, got/task.Page, n)
				}
			}
			if err == nil {
				_, err = conn.Write(one)
			}
			if err == nil {
				err = task.Check(buf, (t.Bytes-len(buf))/task.Page, n)
			}
		case task.StreamRecv:
			_, err = io.ReadFull(conn, one)
			for sent := 0; err == nil && sent < t.Bytes; sent += len(buf) {
				task.Mark(buf, sent/task.Page, n)
				_, err = conn.Write(buf)
			}
		case task.StreamTrip:
			for i := 0; err == nil && i < t.Count; i++ {
				if _, err = io.ReadFull(conn, one); err == nil {
					_, err = conn.Write(one)
				}
			}
		default:
			err = errors.New("no such work")
		}
		if err != nil {
			return fmt.Errorf("%s, round %d: %w", t.Work, n, err)
		}
	}
	return nil
}

// talkPackets is the host's end of a packet work. The guest checks what it gets; it gets nothing if anything is missing here.
func talkPackets(c *net.UDPConn, t task.Task) error {
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(harness.Slow(guestTimeout))); err != nil {
		return err
	}
	buf := make([]byte, task.PacketBytes)
	for n := range t.Rounds {
		for first := 0; first < t.Count; first += task.Window {
			in, out := task.Window, 1
			if t.Work == task.PacketRecv {
				in, out = out, in
			}
			for i := range in {
				_, from, err := c.ReadFromUDPAddrPort(buf)
				if err != nil {
					return fmt.Errorf("%s, round %d, packet %d: %w", t.Work, n, first+i, err)
				}
				if got := task.Number(buf); got != first+i {
					return fmt.Errorf("%s, round %d: packet %d came instead of %d", t.Work, n, got, first+i)
				}
				if i < in-1 {
					continue
				}
				for k := range out {
					task.SetNumber(buf, first+k)
					if _, err := c.WriteToUDPAddrPort(buf, from); err != nil {
						return err
					}
				}
			}
		}
	}
	return nil
}
