package integration

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
)

// The test binary is also a program for containers, which have it mounted: with peerEnv set it is the far end of network tests.
const peerEnv = "FC_PEER"

// Ports of the peer.
const (
	udpEcho   = 5300 // what comes goes back
	tcpSource = 8001 // sends a stream of streamBytes
	tcpSink   = 8002 // takes a stream to its end, and answers with its checksum
)

const streamBytes = 24 << 20

// stream gives the bytes that both ends know.
func stream() io.Reader {
	return io.LimitReader(rand.NewChaCha8([32]byte{1}), streamBytes)
}

// checksum reads r to its end.
func checksum(r io.Reader) (string, error) {
	h := sha256.New()
	if _, err := io.Copy(h, r); err != nil {
		return "", err
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

// peer serves until it is killed.
func peer() error {
	udp, err := net.ListenPacket("udp", fmt.Sprint(":", udpEcho))
	if err != nil {
		return err
	}
	go func() {
		buf := make([]byte, 64<<10)
		for {
			n, from, err := udp.ReadFrom(buf)
			if err == nil {
				udp.WriteTo(buf[:n], from)
			}
		}
	}()
	for port, serve := range map[int]func(*net.TCPConn){
		tcpSource: func(c *net.TCPConn) { io.Copy(c, stream()) },
		tcpSink: func(c *net.TCPConn) {
			sum, _ := checksum(c)
			fmt.Fprintln(c, sum)
		},
	} {
		l, err := net.Listen("tcp", fmt.Sprint(":", port))
		if err != nil {
			return err
		}
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				go func() {
					defer c.Close()
					serve(c.(*net.TCPConn))
				}()
			}
		}()
	}
	fmt.Println("ready")
	select {}
}
