package mmds

import (
	"bytes"
	"fmt"
	"strconv"
	"strings"
	"unicode/utf8"
)

// request is what matters of an HTTP request (RFC 9112). Its strings are copies.
type request struct {
	method string
	path   string // "" if the target has none
	// http11 is false for HTTP/1.0.
	http11 bool
	// keepAlive says that the client may send another request.
	keepAlive bool
	json      bool // what it would rather have than plain text

	token    string
	hasToken bool
	// ttl is the value of a header of that name, ttlName.
	ttl, ttlName string
	// forwarded is the name of a proxy's header.
	forwarded string
}

// headEnd is how many bytes the first request in b has, up to the empty line, or 0 if that has not come yet.
func headEnd(b []byte) int {
	for from := 0; ; {
		i := bytes.IndexByte(b[from:], '\n')
		if i < 0 {
			return 0
		}
		from += i + 1
		switch rest := b[from:]; {
		case bytes.HasPrefix(rest, []byte("\n")):
			return from + 1
		case bytes.HasPrefix(rest, []byte("\r\n")):
			return from + 2
		}
	}
}

// badRequest is an answer to what is no request that this server knows.
type badRequest struct {
	status int
	text   string
}

func invalid(text string) *badRequest { return &badRequest{400, text} }

// parseRequest reads the head of a request. A body is refused, so that nothing of one is taken for a request.
func parseRequest(head []byte) (r request, bad *badRequest) {
	if !utf8.Valid(head) {
		return r, invalid("Invalid request.")
	}
	line, rest, _ := strings.Cut(string(head), "\n")
	if bad := r.parseLine(strings.TrimSuffix(line, "\r")); bad != nil {
		return r, bad
	}
	for line := range strings.SplitSeq(rest, "\n") {
		if line = strings.TrimSuffix(line, "\r"); line == "" {
			break
		}
		name, value, ok := strings.Cut(line, ":")
		if !ok {
			return r, invalid("Invalid header. Reason: Header is incorrectly formatted. Key: " + name)
		}
		if bad := r.parseHeader(strings.TrimSpace(name), strings.TrimSpace(value)); bad != nil {
			return r, bad
		}
	}
	return r, nil
}

func (r *request) parseLine(line string) *badRequest {
	method, rest, _ := strings.Cut(line, " ")
	target, version, ok := strings.Cut(rest, " ")
	if !ok {
		return invalid("Invalid request.")
	}
	switch method {
	case "GET", "PUT", "PATCH":
	default:
		return &badRequest{501, "Unsupported HTTP method."}
	}
	if target == "" {
		return invalid("Empty URI not allowed.")
	}
	switch version {
	case "HTTP/1.1":
		r.http11, r.keepAlive = true, true
	case "HTTP/1.0":
	default:
		return &badRequest{501, "Unsupported HTTP version."}
	}
	if host, ok := strings.CutPrefix(target, "http://"); ok {
		if i := strings.IndexByte(host, '/'); i >= 0 {
			target = host[i:]
		}
	}
	r.method = method
	if strings.HasPrefix(target, "/") {
		r.path = target
	}
	return nil
}

// parseHeader takes what matters; of two headers of a kind, the last one.
func (r *request) parseHeader(name, value string) *badRequest {
	switch strings.ToLower(name) {
	case "accept":
		switch value {
		case "application/json":
			r.json = true
		case "text/plain":
			r.json = false
		}
	case "connection":
		switch strings.ToLower(value) {
		case "close":
			r.keepAlive = false
		case "keep-alive":
			r.keepAlive = true
		}
	case "content-length":
		n, err := strconv.ParseUint(value, 10, 32)
		if err != nil {
			return badValue(name, value)
		}
		if n > 0 {
			return invalid("Invalid request.")
		}
	case "transfer-encoding":
		if value != "identity" {
			return invalid("Invalid request.")
		}
	case "x-metadata-token", "x-aws-ec2-metadata-token":
		r.token, r.hasToken = value, true
	case "x-metadata-token-ttl-seconds", "x-aws-ec2-metadata-token-ttl-seconds":
		r.ttl, r.ttlName = value, name
	case "x-forwarded-for":
		r.forwarded = name
	}
	return nil
}

func badValue(name, value string) *badRequest {
	return invalid(fmt.Sprintf("Invalid header. Reason: Invalid value. Key:%s; Value:%s", name, value))
}
