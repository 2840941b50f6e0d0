package api

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"reflect"
	"strings"
	"testing"

	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/config"
	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/mmds"
)

// TestMetadata sends requests about data that are {"a":{"b":"<1>"}}, before the start and after it.
func TestMetadata(t *testing.T) {
	tests := []struct {
		method, body string
		status       int
		want         string // the data afterwards, or a part of the message
	}{
		{"GET", "", 200, `{"a":{"b":"<1>"}}`},
		{"GET", "{}", 400, "GET request cannot have a body."},
		{"PUT", `{"x": [1.0, null]}`, 204, `{"x":[1.0,null]}`},
		{"PUT", `"text"`, 204, `"text"`},
		{"PUT", `null`, 204, `{}`},
		{"PUT", ``, 400, "Empty PUT request."},
		{"PUT", `{"x": }`, 400, "deserializing the json body of a request: invalid character '}' looking for beginning of value at line 1 column 7"},
		{"PUT", "{\"x\": \"\xff\"}", 400, "invalid UTF-8 at line 1 column 8"},
		{"PUT", strings.Repeat("[", 200) + strings.Repeat("]", 200), 400, "nested more than 127 deep"},
		{"PUT", `{"x": "` + strings.Repeat("y", testMetadata-8) + `"}`, 204, `{"x":"` + strings.Repeat("y", testMetadata-8) + `"}`},
		{"PUT", `{"x": "` + strings.Repeat("y", testMetadata-7) + `"}`, 413, "MMDS limit exceeded error: The MMDS patch request doesn't fit."},
		{"PATCH", `{"a": {"b": null, "c": 2}, "d": {}}`, 204, `{"a":{"c":2},"d":{}}`},
		{"PATCH", `{"a": null}`, 204, `{}`},
		{"PATCH", `[]`, 204, `[]`},
		{"PATCH", ``, 400, "Empty PATCH request."},
		{"PATCH", `{`, 400, "unexpected end of JSON input"},
		{"PATCH", `{"x": "` + strings.Repeat("y", testMetadata) + `"}`, 413, "doesn't fit"},
		{"DELETE", "", 400, "Invalid request method and/or path: DELETE /mmds."},
	}
	for _, tt := range tests {
		for _, started := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s %.40s %v", tt.method, tt.body, started), func(t *testing.T) {
				b := newBench(t)
				b.must(t, "PUT", "/network-interfaces/eth0", `{"iface_id": "eth0", "host_dev_name": "tap0"}`)
				b.must(t, "PUT", "/mmds/config", `{"network_interfaces": ["eth0"]}`)
				b.must(t, "PUT", "/mmds", `{"a": {"b": "<1>"}}`)
				if started {
					b.start(t)
				}
				status, answer := b.do(tt.method, "/mmds", tt.body)
				if status != tt.status {
					t.Fatalf("%d %s, want %d", status, answer, tt.status)
				}
				data := b.must(t, "GET", "/mmds", "")
				if status < 300 {
					if data != tt.want {
						t.Errorf("the data are %s, want %s", data, tt.want)
					}
					return
				}
				if msg := faultOf(t, answer); !strings.Contains(msg, tt.want) {
					t.Errorf("%s, want %s", msg, tt.want)
				}
				if data != `{"a":{"b":"<1>"}}` {
					t.Errorf("a refused request made the data %s", data)
				}
			})
		}
	}
}

// Before there are data they cannot be patched, and after the start of a microVM without the service there never are any.
func TestNoMetadata(t *testing.T) {
	b := newBench(t)
	if got := b.must(t, "GET", "/mmds", ""); got != "{}" {
		t.Errorf("%s before the first data", got)
	}
	if status, answer := b.do("PATCH", "/mmds", `{"a": 1}`); status != 400 || faultOf(t, answer) != noMetadata {
		t.Errorf("%d %s", status, answer)
	}
	b.must(t, "PUT", "/mmds", `{"a": 1}`) // no interface needed, yet
	b.start(t)
	for _, method := range []string{"GET", "PUT", "PATCH"} {
		body := `{"a": 2}`
		if method == "GET" {
			body = ""
		}
		if status, answer := b.do(method, "/mmds", body); status != 400 || faultOf(t, answer) != noMetadata {
			t.Errorf("%s: %d %s", method, status, answer)
		}
	}
}

func TestMMDSConfig(t *testing.T) {
	tests := []struct{ body, fault, want string }{
		{`{"network_interfaces": ["eth0"]}`, "", `"mmds-config":{"version":"V1","network_interfaces":["eth0"],"ipv4_address":"169.254.169.254","imds_compat":false}`},
		{`{"network_interfaces": ["eth0", "eth1"], "version": "V2", "ipv4_address": "169.254.170.2", "imds_compat": true}`, "",
			`"mmds-config":{"version":"V2","network_interfaces":["eth0","eth1"],"ipv4_address":"169.254.170.2","imds_compat":true}`},
		{`{"network_interfaces": ["eth0"], "version": null, "ipv4_address": null, "imds_compat": null}`, "", `"version":"V1"`},
		{`{}`, "missing field `network_interfaces`", ""},
		{`{"network_interfaces": null}`, "missing field `network_interfaces`", ""},
		{`{"network_interfaces": []}`, "mmds-config/network_interfaces is []: want the id of one", ""},
		{`{"network_interfaces": "eth0"}`, `network_interfaces is "eth0": want an array of strings`, ""},
		{`{"network_interfaces": [0]}`, `network_interfaces is [0]: want an array of strings`, ""},
		{`{"network_interfaces": ["eth0", "eth2"]}`, `network_interfaces is "eth2": want the id of a network interface`, ""},
		{`{"network_interfaces": ["eth0"], "version": "V3"}`, `version is "V3": want "V1" or "V2"`, ""},
		{`{"network_interfaces": ["eth0"], "ipv4_address": "1.2.3.4"}`, `ipv4_address is "1.2.3.4": want a link-local`, ""},
		{`{"network_interfaces": ["eth0"], "ipv4_address": 1}`, `ipv4_address is 1: want a string`, ""},
		{`{"network_interfaces": ["eth0"], "imds_compat": "yes"}`, `imds_compat is "yes": want true or false`, ""},
		{`{"network_interfaces": ["eth0"], "ipv6_address": ""}`, "unknown field `ipv6_address`", ""},
		{`[]`, "want an object", ""},
		{``, "Empty PUT request.", ""},
	}
	for _, tt := range tests {
		t.Run(tt.body, func(t *testing.T) {
			b := newBench(t)
			b.must(t, "PUT", "/network-interfaces/eth0", `{"iface_id": "eth0", "host_dev_name": "tap0"}`)
			b.must(t, "PUT", "/network-interfaces/eth1", `{"iface_id": "eth1", "host_dev_name": "tap1"}`)
			status, answer := b.do("PUT", "/mmds/config", tt.body)
			if got := b.must(t, "GET", "/vm/config", ""); tt.fault != "" && strings.Contains(got, "mmds") || !strings.Contains(got, tt.want) {
				t.Errorf("configuration %s, want %s in it", got, tt.want)
			}
			if tt.fault != "" {
				if msg := faultOf(t, answer); status != 400 || !strings.Contains(msg, tt.fault) {
					t.Errorf("%d %s, want 400 with %q", status, msg, tt.fault)
				}
				return
			}
			if status != 204 {
				t.Fatalf("%d %s", status, answer)
			}
			b.start(t)
			if status, answer := b.do("PUT", "/mmds/config", tt.body); status != 400 || faultOf(t, answer) != afterStart {
				t.Errorf("after the start: %d %s", status, answer)
			}
			if len(b.booted) != 1 || b.booted[0].MMDS == nil {
				t.Errorf("booted %+v", b.booted)
			}
		})
	}
	b := newBench(t)
	for path, want := range map[string]string{"/mmds/": "method and/or path", "/mmds/nope": "method and/or path", "/mmds/config/x": "method and/or path"} {
		if status, answer := b.do("PUT", path, `{}`); status != 400 || !strings.Contains(faultOf(t, answer), want) {
			t.Errorf("%s: %d %s", path, status, answer)
		}
	}
}

// The bound on bodies can be another one, and then larger data fit.
func TestMetadataMaxBody(t *testing.T) {
	s := NewServer(Options{Metadata: mmds.NewStore(1 << 20), MaxBody: 200000})
	put := func(n int) int {
		w := httptest.NewRecorder()
		s.ServeHTTP(w, httptest.NewRequest("PUT", "/mmds", strings.NewReader(`"`+strings.Repeat("x", n-2)+`"`)))
		return w.Code
	}
	if got := put(200000); got != http.StatusNoContent {
		t.Errorf("%d", got)
	}
	if got := put(200001); got != http.StatusRequestEntityTooLarge {
		t.Errorf("%d", got)
	}
}

// The client's bodies are what the server takes.
func TestClientMetadata(t *testing.T) {
	b := newBench(t)
	c := NewClient(b.serve(t))
	defer c.Close()
	ctx := context.Background()
	if err := c.PutNetworkInterface(ctx, config.NetworkInterface{IfaceID: "eth0", HostDevName: "tap0"}); err != nil {
		t.Fatal(err)
	}
	if err := c.PutMMDSConfig(ctx, config.MMDS{NetworkInterfaces: []string{"eth0"}}); err != nil {
		t.Fatal(err)
	}
	if err := c.PutMetadata(ctx, map[string]any{"a": "b"}); err != nil {
		t.Fatal(err)
	}
	b.start(t)
	if err := c.PatchMetadata(ctx, json.RawMessage(`{"c": "d"}`)); err != nil {
		t.Fatal(err)
	}
	var got map[string]string
	if err := c.GetMetadata(ctx, &got); err != nil || !reflect.DeepEqual(got, map[string]string{"a": "b", "c": "d"}) {
		t.Errorf("%v, %v", got, err)
	}
}
