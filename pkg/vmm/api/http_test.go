package api

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"
)

// What the server makes of HTTP that no well-behaved client sends. Refusals that net/http itself makes have the API's form, too.
func TestOddHTTP(t *testing.T) {
	const host = "Host: localhost\r\n"
	body := `{"mem_size_mib": 256}`
	chunked := fmt.Sprintf("%x\r\n%s\r\n0\r\n\r\n", len(body), body)
	tests := []struct {
		name, request string
		status        int
		message       string
	}{
		{"plain", "GET / HTTP/1.1\r\n" + host + "\r\n", 200, ""},
		{"HTTP/1.0", "GET / HTTP/1.0\r\n\r\n", 200, ""},
		{"absolute address", "GET http://localhost/version HTTP/1.1\r\n" + host + "\r\n", 200, ""},
		{"no type of content", "PATCH /machine-config HTTP/1.1\r\n" + host + fmt.Sprintf("Content-Length: %d\r\n\r\n%s", len(body), body), 204, ""},
		{"other type of content", "PATCH /machine-config HTTP/1.1\r\n" + host + fmt.Sprintf("Content-Type: text/plain\r\nContent-Length: %d\r\n\r\n%s", len(body), body), 204, ""},
		{"chunked", "PATCH /machine-config HTTP/1.1\r\n" + host + "Transfer-Encoding: chunked\r\n\r\n" + chunked, 204, ""},
		{"empty body, chunked", "PATCH /machine-config HTTP/1.1\r\n" + host + "Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400, "Empty PATCH request."},
		{"delete without a length", "DELETE /drives/a HTTP/1.1\r\n" + host + "\r\n", 400, "drive_id is"},
		{"head", "HEAD / HTTP/1.1\r\n" + host + "\r\n", 400, ""},

		{"no host", "GET / HTTP/1.1\r\n\r\n", 400, "missing required Host header"},
		{"no HTTP", "hello\r\n\r\n", 400, "400 Bad Request"},
		{"HTTP/2", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400, ""},
		{"HTTP/3", "GET / HTTP/3.0\r\n" + host + "\r\n", 400, "unsupported protocol version"},
		{"unknown encoding", "PUT /entropy HTTP/1.1\r\n" + host + "Transfer-Encoding: gzip\r\n\r\n", 400, "nsupported transfer encoding"},
		{"unknown expectation", "PUT /entropy HTTP/1.1\r\n" + host + "Expect: the-spanish-inquisition\r\nContent-Length: 2\r\n\r\n{}", 400, "Expectation Failed"},
		{"two lengths", "PUT /entropy HTTP/1.1\r\n" + host + "Content-Length: 2\r\nContent-Length: 3\r\n\r\n{}", 400, ""},
		{"negative length", "PUT /entropy HTTP/1.1\r\n" + host + "Content-Length: -1\r\n\r\n", 400, ""},
		{"large header", "GET / HTTP/1.1\r\n" + host + "X: " + strings.Repeat("x", 32<<10) + "\r\n\r\n", 400, "431"},
		{"large address", "GET /" + strings.Repeat("x", 32<<10) + " HTTP/1.1\r\n" + host + "\r\n", 400, "431"},
		{"many headers", "GET / HTTP/1.1\r\n" + host + strings.Repeat("X: y\r\n", 8<<10) + "\r\n", 400, "431"},
		{"large body", "PUT /entropy HTTP/1.1\r\n" + host + "Content-Length: 51201\r\n\r\n", 413, "51200"},
		{"large chunked body", "PUT /entropy HTTP/1.1\r\n" + host + "Transfer-Encoding: chunked\r\n\r\nc801\r\n" + strings.Repeat(" ", 51201), 413, "51200"},
		{"largest body", "PUT /entropy HTTP/1.1\r\n" + host + "Content-Length: 51200\r\n\r\n{}" + strings.Repeat(" ", 51198), 204, ""},
		{"bad chunk", "PUT /entropy HTTP/1.1\r\n" + host + "Transfer-Encoding: chunked\r\n\r\nzz\r\n", 400, "did not arrive"},
		{"escaped slash", "PUT /drives%2fa HTTP/1.1\r\n" + host + "Content-Length: 2\r\n\r\n{}", 400, ""},
	}
	b := newBench(t)
	path := b.serve(t)
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c := dial(t, path)
			go io.WriteString(c, tt.request)
			method, _, _ := strings.Cut(tt.request, " ")
			resp, err := http.ReadResponse(bufio.NewReader(c), &http.Request{Method: method})
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()
			answer, err := io.ReadAll(resp.Body)
			if err != nil || resp.StatusCode != tt.status {
				t.Fatalf("%d %s, %v; want %d", resp.StatusCode, answer, err, tt.status)
			}
			if tt.status >= 400 && method != "HEAD" {
				if msg := faultOf(t, string(answer)); !strings.Contains(msg, tt.message) || resp.Header.Get("Content-Type") != "application/json" {
					t.Errorf("%q, want %q; %v", msg, tt.message, resp.Header)
				}
			}
		})
	}
}

// Requests that follow each other without a wait are answered in their order, on one connection.
func TestPipelined(t *testing.T) {
	c := dial(t, newBench(t).serve(t))
	var requests strings.Builder
	const n = 200
	for i := range n {
		body := fmt.Sprintf(`{"mem_size_mib": %d}`, 64+i)
		fmt.Fprintf(&requests, "PATCH /machine-config HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%sGET /machine-config HTTP/1.1\r\nHost: x\r\n\r\n", len(body), body)
	}
	go io.WriteString(c, requests.String())
	r := bufio.NewReader(c)
	for i := range n {
		resp, err := http.ReadResponse(r, &http.Request{Method: "PATCH"})
		if err != nil || resp.StatusCode != 204 {
			t.Fatalf("request %d: %v, %v", i, resp, err)
		}
		if resp, err = http.ReadResponse(r, nil); err != nil {
			t.Fatal(err)
		}
		var m map[string]any
		if err := json.NewDecoder(resp.Body).Decode(&m); err != nil || m["mem_size_mib"] != float64(64+i) {
			t.Fatalf("answer %d: %v, %v", i, m, err)
		}
		resp.Body.Close()
	}
}

// Whoever sends slowly, or does not read what is answered, keeps nobody else waiting, and is given up in the end.
func TestSlowClients(t *testing.T) {
	b := newBench(t)
	path := b.serve(t)
	slow := map[string]net.Conn{"header": dial(t, path), "body": dial(t, path), "chunks": dial(t, path), "deaf": dial(t, path)}
	for _, c := range slow {
		c.SetDeadline(time.Now().Add(60 * time.Second))
	}
	send := func(name, text string) { io.WriteString(slow[name], text) }
	send("header", "PUT /entropy HTTP/1.1\r\nHost: ")
	send("body", "PUT /entropy HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{")
	send("chunks", "PUT /entropy HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n1\r\n{\r\n")
	stop := make(chan struct{})
	defer close(stop)
	for name, piece := range map[string]string{"header": "x", "chunks": "1\r\n \r\n"} { // never silent for long
		go func() {
			for {
				select {
				case <-stop:
					return
				case <-time.After(100 * time.Millisecond):
					send(name, piece)
				}
			}
		}()
	}
	go io.Copy(struct{ io.Writer }{slow["deaf"]}, strings.NewReader(strings.Repeat("GET /openapi.json HTTP/1.1\r\nHost: x\r\n\r\n", 10000)))

	c := NewClient(path)
	defer c.Close()
	for i := range 50 {
		if _, err := c.State(t.Context()); err != nil {
			t.Fatalf("question %d beside slow clients: %v", i, err)
		}
	}
	for _, name := range []string{"header", "body", "chunks"} {
		text, err := io.ReadAll(slow[name])
		if ne, ok := err.(net.Error); ok && ne.Timeout() {
			t.Errorf("%s: not given up", name)
		}
		if len(text) > 0 && !strings.Contains(string(text), " 400 ") {
			t.Errorf("%s: %q", name, text)
		}
	}
}
