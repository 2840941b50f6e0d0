package api

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"strconv"
)

// faultConn is a connection on which net/http's own refusals have this API's form: of a request that is no HTTP, that has headers which
// are too large or a transfer encoding that it does not know, a client is told by 400 and a fault message, as Firecracker's is. Such an
// answer reaches the connection in one piece, and is known by what it is not: a JSON document.
type faultConn struct{ net.Conn }

// Write sends an answer, or a part of one.
func (c *faultConn) Write(p []byte) (int, error) {
	msg, refused := plainRefusal(p)
	if !refused {
		return c.Conn.Write(p)
	}
	body, _ := json.Marshal(fault{msg}) // a string always marshals
	head := fmt.Sprintf("HTTP/1.1 400 Bad Request\r\nServer: Firecracker API\r\nContent-Type: application/json\r\nConnection: close\r\nContent-Length: %d\r\n\r\n", len(body))
	if _, err := c.Conn.Write(append([]byte(head), body...)); err != nil {
		return 0, err
	}
	return len(p), nil
}

// plainRefusal says what a refusal that net/http itself makes is about.
func plainRefusal(p []byte) (msg string, ok bool) {
	status, ok := bytes.CutPrefix(p, []byte("HTTP/1.1 "))
	if !ok || len(status) < 4 || status[0] != '4' && status[0] != '5' {
		return "", false
	}
	head, body, _ := bytes.Cut(status, []byte("\r\n\r\n"))
	if bytes.Contains(head, []byte("application/json")) {
		return "", false
	}
	if len(body) > 0 {
		return shorten(string(body)), true
	}
	code, _ := strconv.Atoi(string(status[:3]))
	return http.StatusText(code), true
}
