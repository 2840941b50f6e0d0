package mmds

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/metrics"
	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/mmds/tcpip"
)

// Service answers the guest's requests. Its fields must not change once it is in use, nor must it be copied; it is safe for concurrent
// use.
type Service struct {
	Store  *Store
	Tokens *Authority
	// V2 asks for a token with each GET; without it tokens are given, and only counted.
	V2 bool
	// IMDSCompat gives plain text also to those who want JSON, as EC2's service does.
	IMDSCompat bool
	// Counts is what was asked without a token or with a bad one, and what its network interfaces' stacks add.
	Counts metrics.MMDS
}

// tokenPath is where tokens are.
const tokenPath = "/latest/api/token"

// Request is how many bytes of b the first request takes, or 0 if it is not whole yet: a tcpip.Server's.
func (*Service) Request(b []byte) int { return headEnd(b) }

// Respond answers a request: a tcpip.Server's.
func (s *Service) Respond(head []byte) tcpip.Answer {
	r, bad := parseRequest(head)
	if bad != nil {
		// Nobody knows where the next request begins.
		return answer{status: bad.status, body: bad.text, http11: true}.http()
	}
	a := s.answer(&r)
	a.http11, a.keepAlive = r.http11, r.keepAlive
	return a.http()
}

func (s *Service) answer(r *request) answer {
	if r.path == "" {
		return answer{status: 400, body: "Invalid URI."}
	}
	switch r.method {
	case "GET":
		return s.get(r)
	case "PUT":
		return s.put(r)
	}
	return answer{status: 405, body: "Not allowed HTTP method.", header: "Allow: GET, PUT\r\n"}
}

func (s *Service) get(r *request) answer {
	// Version 1 looks, too, for those who want to know whether they can do without it.
	switch {
	case !r.hasToken:
		s.Counts.RxNoToken.Inc()
		if s.V2 {
			return answer{status: 401, body: "No MMDS token provided. Use `X-metadata-token` or `X-aws-ec2-metadata-token` header to specify the session token."}
		}
	case !s.Tokens.valid(r.token):
		s.Counts.RxInvalidToken.Inc()
		if s.V2 {
			return answer{status: 401, body: "MMDS token not valid."}
		}
	}
	value, ok := find(s.Store.Text(), strings.TrimSuffix(clean(r.path), "/"))
	if !ok {
		return notFound(r)
	}
	if r.json && !s.IMDSCompat {
		return answer{status: 200, body: value, json: true}
	}
	if value, ok = imds(value); !ok {
		return answer{status: 501, body: "Cannot retrieve value. The value has an unsupported type."}
	}
	return answer{status: 200, body: value}
}

func (s *Service) put(r *request) answer {
	switch {
	case r.forwarded != "":
		return answer{status: 400, body: "Invalid header. Reason: Unsupported header name. Key: " + r.forwarded}
	case clean(r.path) != tokenPath:
		return notFound(r)
	case r.ttlName == "":
		return answer{status: 400, body: "Token time to live value not found. Use `X-metadata-token-ttl-seconds` or `X-aws-ec2-metadata-token-ttl-seconds` header to specify the token's lifetime."}
	}
	ttl, err := strconv.ParseUint(r.ttl, 10, 32)
	if err != nil {
		return answer{status: 400, body: badValue(r.ttlName, r.ttl).text}
	}
	token, err := s.Tokens.token(uint32(ttl))
	if err != nil {
		return answer{status: 400, body: err.Error()}
	}
	return answer{status: 200, body: token, header: r.ttlName + ": " + strconv.FormatUint(ttl, 10) + "\r\n"}
}

func notFound(r *request) answer {
	return answer{status: 404, body: "Resource not found: " + r.path + "."}
}

// clean makes one slash of several in a row.
func clean(path string) string {
	for strings.Contains(path, "//") {
		path = strings.ReplaceAll(path, "//", "/")
	}
	return path
}

// answer is an HTTP response.
type answer struct {
	status    int
	body      string
	json      bool   // the body, instead of plain text
	header    string // more lines
	http11    bool
	keepAlive bool
}

func (a answer) http() tcpip.Answer {
	version, connection, kind := "HTTP/1.0", "close", "text/plain"
	if a.http11 {
		version = "HTTP/1.1"
	}
	if a.keepAlive {
		connection = "keep-alive"
	}
	if a.json {
		kind = "application/json"
	}
	return tcpip.Answer{
		Head: fmt.Appendf(nil, "%s %d %s\r\nServer: Firecracker API\r\nConnection: %s\r\n%sContent-Type: %s\r\nContent-Length: %d\r\n\r\n",
			version, a.status, reason(a.status), connection, a.header, kind, len(a.body)),
		Body:  a.body,
		Close: !a.keepAlive,
	}
}

func reason(status int) string {
	switch status {
	case 200:
		return "OK"
	case 400:
		return "Bad Request"
	case 401:
		return "Unauthorized"
	case 404:
		return "Not Found"
	case 405:
		return "Method Not Allowed"
	}
	return "Not Implemented"
}
