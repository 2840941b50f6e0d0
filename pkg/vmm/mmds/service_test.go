package mmds

import (
	"fmt"
	"strings"
	"testing"
	"time"
)

// ask sends a request with \n for line ends, and gives the answer's status, its headers and its body.
func ask(t *testing.T, s *Service, request string) (status, headers, body string, closes bool) {
	t.Helper()
	text := []byte(strings.ReplaceAll(request, "\n", "\r\n"))
	if n := s.Request(text); n != len(text) {
		t.Fatalf("%q: %d bytes", request, n)
	}
	a := s.Respond(text)
	head, ok := strings.CutSuffix(string(a.Head), "\r\n\r\n")
	line, headers, _ := strings.Cut(head, "\r\n")
	version, status, _ := strings.Cut(line, " ")
	if !ok || !strings.HasPrefix(version, "HTTP/1.") || !strings.Contains(headers+"\r\n", fmt.Sprintf("Content-Length: %d\r\n", len(a.Body))) {
		t.Fatalf("%q: %q", request, a.Head)
	}
	if a.Close != strings.Contains(headers, "Connection: close") || a.Close == strings.Contains(headers, "Connection: keep-alive") {
		t.Errorf("%q: closes %v, and says %q", request, a.Close, headers)
	}
	return status, headers, a.Body, a.Close
}

func newService(t testing.TB, v2 bool) *Service {
	s := &Service{Store: NewStore(DefaultLimit), Tokens: NewAuthority("vm-1"), V2: v2}
	if err := s.Store.Put([]byte(sample)); err != nil {
		t.Fatal(err)
	}
	return s
}

func TestAnswers(t *testing.T) {
	const (
		plain  = "Content-Type: text/plain"
		json   = "Content-Type: application/json"
		noTTL  = "Token time to live value not found. Use `X-metadata-token-ttl-seconds` or `X-aws-ec2-metadata-token-ttl-seconds` header to specify the token's lifetime."
		badTTL = "Invalid time to live value provided for token: %s. Please provide a value between 1 and 21600."
	)
	tests := []struct {
		request string
		status  string
		header  string
		body    string
	}{
		{"GET / HTTP/1.1\n\n", "200 OK", plain, "latest/\nz"},
		{"GET /latest/meta-data/ami-id HTTP/1.1\nHost: 169.254.169.254\nUser-Agent: curl/8\nAccept: */*\n\n", "200 OK", plain, "ami-1"},
		{"GET /latest/meta-data/ami-id HTTP/1.1\nACCEPT:application/json\n\n", "200 OK", json, `"ami-1"`},
		{"GET /latest/meta-data/ami-id HTTP/1.1\nAccept: application/json\nAccept: text/plain\n\n", "200 OK", plain, "ami-1"},
		{"GET http://169.254.169.254:80/latest/list/1/ HTTP/1.1\nAccept: application/json\n\n", "200 OK", json, `{"one":1}`},
		{"GET //latest///list/1// HTTP/1.1\n\n", "200 OK", plain, "one"},
		{"GET /latest/n HTTP/1.1\nAccept: application/json\n\n", "200 OK", json, "512"},
		{"GET /latest/n HTTP/1.1\n\n", "501 Not Implemented", plain, "Cannot retrieve value. The value has an unsupported type."},
		{"GET /latest/nope HTTP/1.1\nAccept: application/json\n\n", "404 Not Found", plain, "Resource not found: /latest/nope."},
		{"GET /latest?x HTTP/1.1\n\n", "404 Not Found", plain, "Resource not found: /latest?x."},
		{"GET /z HTTP/1.0\n\n", "200 OK", "Connection: close", ""},
		{"GET /z HTTP/1.0\nConnection: Keep-Alive\n\n", "200 OK", "Connection: keep-alive", ""},
		{"GET /z HTTP/1.1\nConnection: close\n\n", "200 OK", "Connection: close", ""},
		{"GET /z HTTP/1.1\nContent-Length: 0\nTransfer-Encoding: identity\n\n", "200 OK", plain, ""},
		{"GET /z HTTP/1.1\nX-Forwarded-For: 1.2.3.4\n\n", "200 OK", plain, ""},

		{"GET z HTTP/1.1\n\n", "400 Bad Request", plain, "Invalid URI."},
		{"GET http:// HTTP/1.1\n\n", "400 Bad Request", plain, "Invalid URI."},
		{"GET http://host HTTP/1.1\n\n", "400 Bad Request", plain, "Invalid URI."},
		{"GET  HTTP/1.1\n\n", "400 Bad Request", plain, "Empty URI not allowed."},
		{"GET / HTTP/2.0\n\n", "501 Not Implemented", plain, "Unsupported HTTP version."},
		{"GET / HTTP/1.1 \n\n", "501 Not Implemented", plain, "Unsupported HTTP version."},
		{"get / HTTP/1.1\n\n", "501 Not Implemented", plain, "Unsupported HTTP method."},
		{"POST / HTTP/1.1\nContent-Length: 5\n\n", "501 Not Implemented", plain, "Unsupported HTTP method."},
		{"PATCH / HTTP/1.1\n\n", "405 Method Not Allowed", "Allow: GET, PUT", "Not allowed HTTP method."},
		{"GET\n\n", "400 Bad Request", plain, "Invalid request."},
		{"GET /\n\n", "400 Bad Request", plain, "Invalid request."},
		{"\n\n", "400 Bad Request", plain, "Invalid request."},
		{"GET /\xff HTTP/1.1\n\n", "400 Bad Request", plain, "Invalid request."},
		{"GET / HTTP/1.1\nContent-Length: 100\n\n", "400 Bad Request", "Connection: close", "Invalid request."},
		{"GET / HTTP/1.1\nTransfer-Encoding: chunked\n\n", "400 Bad Request", "Connection: close", "Invalid request."},
		{"GET / HTTP/1.1\nContent-Length: -1\n\n", "400 Bad Request", plain, "Invalid header. Reason: Invalid value. Key:Content-Length; Value:-1"},
		{"GET / HTTP/1.1\nHost\n\n", "400 Bad Request", plain, "Invalid header. Reason: Header is incorrectly formatted. Key: Host"},

		{"PUT /latest/api/token HTTP/1.1\nX-metadata-token-ttl-seconds: 60\n\n", "200 OK", "X-metadata-token-ttl-seconds: 60", "*"},
		{"PUT //latest/api/token HTTP/1.1\nx-aws-ec2-metadata-token-TTL-seconds: 21600\n\n", "200 OK", "x-aws-ec2-metadata-token-TTL-seconds: 21600", "*"},
		{"PUT /latest/api/token HTTP/1.1\n\n", "400 Bad Request", plain, noTTL},
		{"PUT /latest/api/token HTTP/1.1\nX-metadata-token-ttl-seconds: 0\n\n", "400 Bad Request", plain, fmt.Sprintf(badTTL, "0")},
		{"PUT /latest/api/token HTTP/1.1\nX-metadata-token-ttl-seconds: 21601\n\n", "400 Bad Request", plain, fmt.Sprintf(badTTL, "21601")},
		{"PUT /latest/api/token HTTP/1.1\nX-metadata-token-ttl-seconds: 1s\n\n", "400 Bad Request", plain, "Invalid header. Reason: Invalid value. Key:X-metadata-token-ttl-seconds; Value:1s"},
		{"PUT /latest/api/token HTTP/1.1\nX-metadata-token-ttl-seconds: 4294967297\n\n", "400 Bad Request", plain, "Invalid header. Reason: Invalid value. Key:X-metadata-token-ttl-seconds; Value:4294967297"},
		{"PUT /latest/api/toke HTTP/1.1\nX-metadata-token-ttl-seconds: 60\n\n", "404 Not Found", plain, "Resource not found: /latest/api/toke."},
		{"PUT /latest/api/token HTTP/1.1\nx-forwarded-FOR: 1.2.3.4\nX-metadata-token-ttl-seconds: 60\n\n", "400 Bad Request", plain, "Invalid header. Reason: Unsupported header name. Key: x-forwarded-FOR"},
	}
	for _, v2 := range []bool{false, true} {
		s := newService(t, v2)
		token, err := s.Tokens.token(60)
		if err != nil {
			t.Fatal(err)
		}
		for _, tt := range tests {
			request := tt.request
			if v2 && strings.HasPrefix(request, "GET ") {
				request = strings.Replace(request, "\n", "\nX-metadata-token: "+token+"\n", 1)
			}
			status, headers, body, _ := ask(t, s, request)
			if status != tt.status || body != tt.body && tt.body != "*" || !strings.Contains(headers, tt.header) {
				t.Errorf("%q: %s, %q, %q; want %s, %q, %q", request, status, headers, body, tt.status, tt.header, tt.body)
			}
			if tt.body == "*" && !s.Tokens.valid(body) {
				t.Errorf("%q: %q is no token", request, body)
			}
		}
		s.IMDSCompat = true
		if _, headers, body, _ := ask(t, s, "GET /latest/list/1 HTTP/1.1\nAccept: application/json\nX-aws-ec2-metadata-token: "+token+"\n\n"); body != "one" || !strings.Contains(headers, plain) {
			t.Errorf("compatible with IMDS: %q, %q", headers, body)
		}
		empty := &Service{Store: NewStore(10), Tokens: s.Tokens, V2: v2}
		if status, _, _, _ := ask(t, empty, "GET / HTTP/1.1\nX-metadata-token: "+token+"\n\n"); status != "404 Not Found" {
			t.Errorf("without data: %s", status)
		}
	}
}

func TestTokens(t *testing.T) {
	s := newService(t, true)
	clock := time.Hour
	s.Tokens.since = func() time.Duration { return clock }
	get := func(header string) (string, string) {
		t.Helper()
		status, _, body, _ := ask(t, s, "GET /latest/meta-data/ami-id HTTP/1.1\n"+header+"\n")
		return status, body
	}
	if status, body := get(""); status != "401 Unauthorized" || !strings.HasPrefix(body, "No MMDS token provided. Use `X-metadata-token`") {
		t.Errorf("%s, %s", status, body)
	}
	if status, body := get("X-metadata-token: foo\n"); status != "401 Unauthorized" || body != "MMDS token not valid." {
		t.Errorf("%s, %s", status, body)
	}
	_, _, token, _ := ask(t, s, "PUT /latest/api/token HTTP/1.1\nX-metadata-token-ttl-seconds: 2\n\n")
	for _, name := range []string{"X-metadata-token", "x-AWS-ec2-metadata-token"} {
		if status, body := get(name + ": " + token + "\n"); status != "200 OK" || body != "ami-1" {
			t.Errorf("%s: %s, %s", name, status, body)
		}
	}
	for i := range len(token) {
		if s.Tokens.valid(token[:i] + string(token[i]^1) + token[i+1:]) {
			t.Errorf("good with byte %d changed", i)
		}
	}
	other := NewAuthority("vm-2")
	foreign, _ := other.token(60)
	for name, bad := range map[string]string{
		"another microVM's": foreign, "empty": "", "cut": token[1:], "longer": token + "A", "spaces": strings.Repeat(" ", tokenLen), "line ends": token[:tokenLen-1] + "\n",
	} {
		if s.Tokens.valid(bad) {
			t.Errorf("%s is good", name)
		}
	}
	// The id is authenticated too.
	s.Tokens.id = []byte("microvmid=vm-3")
	if s.Tokens.valid(token) {
		t.Error("good for another microVM")
	}
	s.Tokens.id = []byte("microvmid=vm-1")
	if clock += 2*time.Second - 1; !s.Tokens.valid(token) {
		t.Error("over too early")
	}
	if clock++; s.Tokens.valid(token) {
		t.Error("good for ever")
	}
	// Before nonces could repeat there is a new key.
	clock = time.Hour
	s.Tokens.tokens = maxTokens
	if again, err := s.Tokens.token(2); err != nil || s.Tokens.valid(token) || !s.Tokens.valid(again) {
		t.Error("the old key is still in use")
	}
}

func TestRequestEnds(t *testing.T) {
	for text, want := range map[string]int{
		"": 0, "GET / HTTP/1.1\r\n": 0, "GET / HTTP/1.1\r\n\r": 0, "GET / HTTP/1.1\r\n\r\n": 18, "GET / HTTP/1.1\r\n\r\nGET": 18,
		"a\n\nb": 3, "a\n\r\nb": 4, "\n\n": 2, "\r\n\r\n": 4, "a\nb\nc\n": 0,
	} {
		if got := headEnd([]byte(text)); got != want {
			t.Errorf("%q: %d, want %d", text, got, want)
		}
	}
}

// GETs without a token and with a bad one are counted by both versions, whatever the answer.
func TestTokensAreCounted(t *testing.T) {
	for _, v2 := range []bool{false, true} {
		s := newService(t, v2)
		token, err := s.Tokens.token(60)
		if err != nil {
			t.Fatal(err)
		}
		want := [2]uint64{}
		for _, tt := range []struct {
			request     string
			none, wrong uint64
		}{
			{"GET / HTTP/1.1\n\n", 1, 0},
			{"GET /nope HTTP/1.1\n\n", 1, 0},
			{"GET / HTTP/1.1\nX-metadata-token: foo\n\n", 0, 1},
			{"GET / HTTP/1.1\nX-aws-ec2-metadata-token:\n\n", 0, 1},
			{"GET / HTTP/1.1\nX-metadata-token: " + token + "\n\n", 0, 0},
			{"PUT /latest/api/token HTTP/1.1\nX-metadata-token-ttl-seconds: 60\n\n", 0, 0},
			{"PATCH / HTTP/1.1\n\n", 0, 0},
			{"GET\n\n", 0, 0},
		} {
			ask(t, s, tt.request)
			want[0] += tt.none
			want[1] += tt.wrong
			if got := [2]uint64{s.Counts.RxNoToken.Count(), s.Counts.RxInvalidToken.Count()}; got != want {
				t.Fatalf("v2=%v: %q: without and with bad tokens %d, want %d", v2, tt.request, got, want)
			}
		}
	}
}

// FuzzHTTP: every request has one answer, and V2 gives nothing of the data to who has no token.
func FuzzHTTP(f *testing.F) {
	for _, s := range []string{
		"GET /latest/meta-data/ami-id HTTP/1.1\r\nAccept: application/json\r\n\r\n",
		"PUT /latest/api/token HTTP/1.1\r\nX-metadata-token-ttl-seconds: 60\r\n\r\n",
		"GET http://h/~0~1/%00 HTTP/1.0\nX-metadata-token: AAAA\n\n",
		"PATCH / HTTP/1.1\r\nContent-Length: 1\r\nTransfer-Encoding:\r\nX-Forwarded-For:\r\n\r\n",
	} {
		f.Add([]byte(s))
	}
	v1, v2 := newService(f, false), newService(f, true)
	f.Fuzz(func(t *testing.T, b []byte) {
		n := headEnd(b)
		if n < 0 || n > len(b) {
			t.Fatalf("%d of %d bytes", n, len(b))
		}
		if n == 0 {
			return
		}
		for _, s := range []*Service{v1, v2} {
			a := s.Respond(b[:n])
			if strings.Count(string(a.Head), "\r\n\r\n") != 1 || !strings.HasSuffix(string(a.Head), fmt.Sprintf("Content-Length: %d\r\n\r\n", len(a.Body))) {
				t.Fatalf("%q", a.Head)
			}
			if s.V2 && strings.HasPrefix(string(a.Head), "HTTP/1.1 200") && !s.Tokens.valid(a.Body) {
				t.Fatalf("%q without a token", a.Body)
			}
		}
	})
}
