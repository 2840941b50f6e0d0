package api

import (
	"context"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"
)

// FuzzAPI sends two requests and a question to a server whose machine may have been started: every answer is 200, 204,
// 400 or 413 and in time, a refusal has its message, and what was recorded is valid.
func FuzzAPI(f *testing.F) {
	for _, s := range []struct{ method, path, body string }{
		{"GET", "/", ""},
		{"GET", "/vm/config", ""},
		{"PUT", "/machine-config", `{"vcpu_count": 2, "mem_size_mib": 256, "cpu_template": null}`},
		{"PATCH", "/machine-config", `{"mem_size_mib": 1e3}`},
		{"PUT", "/cpu-config", `{"kvm_capabilities": ["!56"], "cpuid_modifiers": [{"leaf": "0x7", "subleaf": "0", "flags": 1, "modifiers": [{"register": "ebx", "bitmap": "0b1x_0"}]}]}`},
		{"PUT", "/cpu-config", `{"msr_modifiers": [{"addr": "0b1", "bitmap": "0b1x"}, {"addr": "0xffffffff", "bitmap": ""}]}`},
		{"PUT", "/boot-source", `{"kernel_image_path": "/proc/self/exe", "boot_args": "quiet\u0000"}`},
		{"PUT", "/drives/a", `{"drive_id": "a", "path_on_host": "/proc/self/exe", "is_root_device": true, "is_read_only": true}`},
		{"PATCH", "/drives/a", `{"drive_id": "a", "path_on_host": "/x"}`},
		{"PATCH", "/drives/a", `{"drive_id": "a", "rate_limiter": {"ops": {"size": 18446744073709551615, "one_time_burst": null, "refill_time": 9223372036855}}}`},
		{"PATCH", "/network-interfaces/eth0", `{"iface_id": "eth0", "rx_rate_limiter": {"bandwidth": null}, "tx_rate_limiter": {"ops": [{}]}}`},
		{"PUT", "/filesystems/s", `{"fs_id": "s", "tag": "\ud800", "path_on_host": "/"}`},
		{"PUT", "/network-interfaces/eth0", `{"iface_id": "eth0", "host_dev_name": "tap0", "guest_mac": "02:00:00:00:00:0g", "mtu": 68}`},
		{"PUT", "/vsock", `{"guest_cid": 4294967295, "uds_path": "v.sock"}`},
		{"PUT", "/entropy", `{"rate_limiter": {}}`},
		{"PUT", "/serial", `{"serial_out_path": "", "max_bytes": 9223372036854775808}`},
		{"PUT", "/serial", `{"rate_limiter": {"size": 18446744073709551615, "one_time_burst": null, "refill_time": 9223372036855}}`},
		{"PUT", "/logger", `{"log_path": "x", "level": "ERROR", "show_level": null, "show_log_origin": true, "module": "\u0000"}`},
		{"PUT", "/metrics", `{"metrics_path": "x", "emit_id": true, "properties": {"\ud800": "", "a": "b"}}`},
		{"PUT", "/mmds", `{"a": {"b": [1e999, "\u2028<"]}}`},
		{"PATCH", "/mmds", `{"a": null}`},
		{"GET", "/mmds", ""},
		{"PUT", "/mmds/config", `{"network_interfaces": ["eth0", null], "version": "V2", "ipv4_address": "169.254.169.254", "imds_compat": true}`},
		{"PUT", "/balloon", `{"amount_mib": 4294967296, "deflate_on_oom": true, "stats_polling_interval_s": 65536}`},
		{"PATCH", "/balloon", `{"amount_mib": -1}`},
		{"PATCH", "/balloon/hinting/start", `{"acknowledge_on_stop": null}`},
		{"GET", "/balloon/statistics", ""},
		{"PUT", "/actions", `{"action_type": "InstanceStart"}`},
		{"PUT", "/actions", `{"action_type": "SendCtrlAltDel"}`},
		{"PATCH", "/vm", `{"state": "Paused"}`},
		{"PUT", "//drives/%2e%2e/x", strings.Repeat("[", 20000)},
		{"PUT", "/serial", `{"a":1,"a":{"b":[]}}`},
		{"PUT", "/entropy", "\ufeff{}"},
	} {
		f.Add(false, s.method, s.path, []byte(s.body))
		f.Add(true, s.method, s.path, []byte(s.body))
	}
	dir := f.TempDir()
	fillFolder(f, dir)
	f.Fuzz(func(t *testing.T, started bool, method, path string, body []byte) {
		b := newBenchIn(dir)
		if started {
			b.must(t, "PUT", "/drives/a", `{"drive_id": "a", "path_on_host": "$D/disk", "is_root_device": false}`)
			b.must(t, "PUT", "/network-interfaces/eth0", `{"iface_id": "eth0", "host_dev_name": "tap0"}`)
			b.must(t, "PUT", "/mmds/config", `{"network_interfaces": ["eth0"]}`)
			b.start(t)
		}
		for range 2 {
			r := &http.Request{Method: method, URL: &url.URL{Path: path}, RequestURI: path, Body: http.NoBody, ContentLength: int64(len(body))}
			if len(body) > 0 {
				r.Body = httptest.NewRequest("PUT", "/", strings.NewReader(string(body))).Body
			}
			w := httptest.NewRecorder()
			began := time.Now()
			b.ServeHTTP(w, r.WithContext(context.Background()))
			if d := time.Since(began); d > 5*time.Second {
				t.Fatalf("%s %q took %v", method, path, d)
			}
			switch w.Code {
			case 200, 204:
			case 400, 413:
				if msg := faultOf(t, w.Body.String()); len(msg) > 2048 {
					t.Errorf("a message of %d bytes", len(msg))
				}
			default:
				t.Fatalf("%s %q: status %d", method, path, w.Code)
			}
		}
		vm, _ := b.control.snapshot()
		if err := vm.ValidateParts(); err != nil {
			t.Errorf("recorded what is not valid: %v", err)
		}
		if answer := b.must(t, "GET", "/vm/config", ""); !json.Valid([]byte(answer)) {
			t.Errorf("GET /vm/config gave %q", answer)
		}
	})
}

// FuzzConfigFile: a document is taken whole or refused whole, with its place.
func FuzzConfigFile(f *testing.F) {
	f.Add([]byte(`{"boot-source": {"kernel_image_path": "/proc/self/exe"}, "drives": [{"drive_id": "a", "path_on_host": "/proc/self/exe", "is_root_device": true, "is_read_only": true}]}`))
	f.Add([]byte(`{"cpu-config": {"kvm_capabilities": ["!1"], "cpuid_modifiers": [{"leaf": "0x7", "subleaf": "0", "flags": 1, "modifiers": [{"register": "eax", "bitmap": "0b1x"}]}]}}`))
	f.Add([]byte(`{"boot-source": null, "balloon": {}, "drives": null, "vsock": [], "serial": {}}`))
	f.Add([]byte(`[`))
	f.Fuzz(func(t *testing.T, text []byte) {
		s := NewServer(Options{})
		before, _ := json.Marshal(s.control.vm)
		err := s.Configure(context.Background(), text)
		after, _ := json.Marshal(s.control.vm)
		if err != nil && string(after) != string(before) {
			t.Errorf("refused (%v), but recorded %s", err, after)
		}
		if err == nil {
			if err := s.control.vm.Validate(); err != nil {
				t.Errorf("recorded what is not valid: %v", err)
			}
		}
	})
}
