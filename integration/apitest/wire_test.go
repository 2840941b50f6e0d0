package apitest

import (
	"fmt"
	"strings"
)

// wire is the bytes of some requests, how they are sent, and what may come back.
type wire struct {
	pieces  []string // sent one after the other, with a short pause in between
	answers int      // complete requests, each of which is answered unless one before it ends the connection; -1: nobody knows
	method  string   // of the requests, if that is another than was asked for
	deaf    bool     // the connection is closed without a look at the answers
}

// plain is a request as every client makes it.
func plain(method, path, body string) string {
	if body == "" && (method == "GET" || method == "DELETE") {
		return fmt.Sprintf("%s %s HTTP/1.1\r\nHost: localhost\r\n\r\n", method, path)
	}
	return fmt.Sprintf("%s %s HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s", method, path, len(body), body)
}

// chunked is the same in chunks.
func (m *maker) chunked(method, path, body string) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s %s HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n", method, path)
	for len(body) > 0 {
		n := min(1+m.IntN(1<<m.IntN(12)), len(body))
		fmt.Fprintf(&b, "%x%s\r\n%s\r\n", n, pick(m, "", "", ";x=y"), body[:n])
		body = body[n:]
	}
	b.WriteString("0\r\n" + pick(m, "", "", "Trailer: x\r\n") + "\r\n")
	return b.String()
}

// odd makes one request, or several, as HTTP that is slow, wrong, cut off or too large.
func (m *maker) odd(method, path, body string) wire {
	text := plain(method, path, body)
	head, _, _ := strings.Cut(text, "\r\n\r\n")
	switch m.IntN(16) {
	case 0:
		return wire{pieces: []string{m.chunked(method, path, body)}, answers: 1}
	case 1:
		n := 2 + m.IntN(19)
		return wire{pieces: []string{strings.Repeat(text, n)}, answers: n}
	case 2: // slow
		var pieces []string
		for len(text) > 0 {
			n := min(1+m.IntN(len(text)), len(text))
			pieces = append(pieces, text[:n])
			text = text[n:]
		}
		return wire{pieces: pieces, answers: 1}
	case 3:
		return wire{pieces: []string{text[:m.IntN(len(text))]}, answers: -1, deaf: true}
	case 4:
		return wire{pieces: []string{text}, answers: 1, deaf: true}
	case 5:
		return wire{pieces: []string{strings.Repeat(text, 50)}, answers: 50, deaf: true}
	case 6: // one header that is large
		return wire{pieces: []string{head + "\r\nX: " + strings.Repeat("x", m.IntN(40000)) + "\r\n\r\n" + body}, answers: 1}
	case 7: // many headers
		return wire{pieces: []string{head + "\r\n" + strings.Repeat("A: b\r\n", m.IntN(6000)) + "\r\n" + body}, answers: 1}
	case 8: // a length that is not the body's: less makes the rest a request of its own
		return wire{pieces: []string{fmt.Sprintf("%s %s HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s", method, path, m.IntN(2*len(body)+2), body)}, answers: -1, deaf: true}
	case 9:
		return wire{pieces: []string{fmt.Sprintf("%s %s HTTP/1.1\r\nHost: x\r\nContent-Length: %s\r\n\r\n%s", method, path, pick(m, "-1", "9999999999999999999999", "0x10", "1,2", "51201", ""), body)},
			answers: 1}
	case 10:
		return wire{pieces: []string{fmt.Sprintf("%s %s HTTP/%s\r\nHost: x\r\n\r\n", method, path, pick(m, "1.0", "1.2", "2.0", "0.9", "9", "x.y", "11.1"))}, answers: 1}
	case 11:
		return wire{pieces: []string{fmt.Sprintf("%s %s HTTP/1.1\r\n%s\r\n\r\n", method, path, pick(m, "", "Host: a\r\nHost: b", "Host: \x01", "Host : x", "Host: x\r\nTransfer-Encoding: gzip",
			"Host: x\r\nTransfer-Encoding: chunked\r\nContent-Length: 5", "Host: x\r\nExpect: what", "Host: x\r\n folded", "Host: x\r\nUpgrade: h2c\r\nConnection: Upgrade"))}, answers: -1}
	case 12:
		method = pick(m, "GET", "HEAD", "POST", "OPTIONS", "CONNECT", "TRACE", "PATCH", "DELETE", "get", "X", "🙂")
		return wire{pieces: []string{plain(method, path, body)}, answers: -1, method: method}
	case 13:
		return wire{pieces: []string{plain(method, pick(m, path+"?x=y", path+"/", "/"+path, path+"/../vm", path+"#x", "*", "http://x"+path, path+"%00", path+"%zz", strings.Repeat("/x", m.IntN(4000)), strings.ToUpper(path)), body)}, answers: 1}
	case 14:
		return wire{pieces: []string{m.damage(text)}, answers: -1, deaf: true}
	}
	return wire{pieces: []string{head + "\r\nExpect: 100-continue\r\n\r\n", body}, answers: -1}
}
