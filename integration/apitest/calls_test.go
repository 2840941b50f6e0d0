package apitest

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/api/openapitest"
	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/vmmtest"
)

// Firecracker's sentences.
const (
	afterStart  = "400 The requested operation is not supported after starting the microVM."
	beforeStart = "400 The requested operation is not supported before starting the microVM."
	noRoute     = "400 Invalid request method and/or path"
	notYet      = "400 not supported yet"
	// The guest of these tests has no drivers.
	noDriver       = "400 Device is inactive"
	statisticsStay = "400 Cannot enable/disable the statistics after boot."
)

// call sends one request over a connection of its own, and gives the status and the body, or the fault message.
func (v *vmm) call(t *testing.T, method, path, body string) string {
	t.Helper()
	c, err := net.Dial("unix", v.sock)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(bound))
	io.WriteString(c, plain(method, path, strings.ReplaceAll(body, "$D", v.dir)))
	resp, err := http.ReadResponse(bufio.NewReader(c), &http.Request{Method: method})
	if err != nil {
		t.Fatalf("%s %s %s: %v", method, path, body, err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	var fault struct {
		Message string `json:"fault_message"`
	}
	if json.Unmarshal(text, &fault) == nil && fault.Message != "" {
		text = []byte(fault.Message)
	}
	return strings.TrimSpace(fmt.Sprint(resp.StatusCode, " ", string(text)))
}

// machine is an fc-vmm with one part of each kind, called a, that has a guest if it is started.
func machine(t *testing.T, started bool) *vmm {
	t.Helper()
	vmmtest.NeedKVM(t)
	dir, err := os.MkdirTemp("", "api") // short: a socket's path must fit
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	files(t, dir, "", "")
	v := startVMM(t, binary(t), dir)
	for _, r := range []struct{ path, body string }{
		{"/boot-source", `{"kernel_image_path": "$D/idle"}`},
		{"/drives/a", `{"drive_id": "a", "path_on_host": "$D/disk", "is_root_device": false}`},
		{"/network-interfaces/a", `{"iface_id": "a", "host_dev_name": "fcapi0"}`},
		{"/filesystems/a", `{"fs_id": "a", "tag": "other", "path_on_host": "$D/folder"}`},
		{"/balloon", `{"amount_mib": 0, "deflate_on_oom": true, "stats_polling_interval_s": 1, "free_page_hinting": true}`},
		{"/network-interfaces/m", fmt.Sprintf(`{"iface_id": "m", "host_dev_name": "fcm%v"}`, started)},
		{"/mmds/config", `{"network_interfaces": ["m"]}`},
		{"/mmds", `{}`},
	} {
		if got := v.call(t, "PUT", r.path, r.body); got != "204" {
			t.Fatalf("PUT %s: %s", r.path, got)
		}
	}
	if started {
		if got := v.call(t, "PUT", "/actions", `{"action_type": "InstanceStart"}`); got != "204" {
			t.Fatal(got)
		}
	}
	return v
}

// TestCalls has good and bad calls of each endpoint, before and after the start.
func TestCalls(t *testing.T) {
	const (
		drive = `{"drive_id": "a", "path_on_host": "$D/disk", "is_root_device": false}`
		nic   = `{"iface_id": "a", "host_dev_name": "fcapi0"}`
		limit = `{"bandwidth": {"size": 1000, "one_time_burst": 1, "refill_time": 100}, "ops": {"size": 10, "refill_time": 100}}`
	)
	calls := []struct{ method, path, body, before, after string }{
		{"GET", "/", "", `200 {"id":"anonymous-instance","state":"Not started"`, `200 {"id":"anonymous-instance","state":"Running"`},
		{"GET", "/", "{}", "400 GET request cannot have a body.", "400 GET request cannot have a body."},
		{"PUT", "/", "{}", noRoute, noRoute},
		{"GET", "/version", "", `200 {"firecracker_version":`, `200 {"firecracker_version":`},
		{"GET", "/openapi.json", "", "200 {\n \"openapi\": \"3.0.3\"", "200 {\n \"openapi\": \"3.0.3\""},
		{"GET", "/vm/config", "", `200 {"machine-config":{`, `200 {"machine-config":{`},
		{"PUT", "/vm/config", "{}", noRoute, noRoute},
		{"GET", "/nope", "", noRoute, noRoute},

		{"GET", "/machine-config", "", `200 {"vcpu_count":1,"mem_size_mib":128`, `200 {"vcpu_count":1,"mem_size_mib":128`},
		{"PUT", "/machine-config", `{"vcpu_count": 1, "mem_size_mib": 128}`, "204", afterStart},
		{"PUT", "/machine-config", `{"vcpu_count": 0, "mem_size_mib": 128}`, "400 vcpu_count is 0", "400 vcpu_count is 0"},
		{"PUT", "/machine-config", `{"vcpu_count": 1}`, "400 An error occurred when deserializing the json body of a request: missing field `mem_size_mib`", "400 An error occurred"},
		{"PATCH", "/machine-config", `{"mem_size_mib": 128}`, "204", afterStart},
		{"PATCH", "/machine-config", `{"mem_size_mib": 1}`, "400 mem_size_mib is 1", "400 mem_size_mib is 1"},
		{"DELETE", "/machine-config", "", noRoute, noRoute},

		{"PUT", "/boot-source", `{"kernel_image_path": "$D/idle", "boot_args": "quiet"}`, "204", afterStart},
		{"PUT", "/boot-source", `{"kernel_image_path": "$D/nope"}`, "400 kernel_image_path is", afterStart},
		{"PUT", "/boot-source", `{"kernel_image_path": "$D/fifo"}`, "400 kernel_image_path is", afterStart},
		{"PUT", "/boot-source", `{}`, "400 An error occurred", "400 An error occurred"},
		{"GET", "/boot-source", "", noRoute, noRoute},

		{"PUT", "/drives/a", drive, "204", afterStart},
		{"PUT", "/drives/b", drive, "400 The id from the path [b] does not match", "400 The id from the path [b] does not match"},
		{"PUT", "/drives/a", `{"drive_id": "a", "path_on_host": "$D/nope", "is_root_device": false}`, "400 drives/a/path_on_host is", afterStart},
		{"PUT", "/drives/a", `{"drive_id": "a", "path_on_host": "$D/disk", "is_root_device": false, "io_engine": "x"}`, "400 drives/a/io_engine is", "400 drives/a/io_engine is"},
		{"PATCH", "/drives/a", `{"drive_id": "a", "path_on_host": "$D/disk2", "rate_limiter": ` + limit + `}`, beforeStart, "204"},
		{"PATCH", "/drives/a", `{"drive_id": "a", "path_on_host": "$D/folder"}`, beforeStart, "400 drives/a/path_on_host is"},
		{"PATCH", "/drives/a", `{"drive_id": "a", "is_read_only": true}`, "400 An error occurred", "400 An error occurred"},
		{"PATCH", "/drives/b", `{"drive_id": "b"}`, beforeStart, `400 drive_id is "b": want the id of a drive`},
		{"DELETE", "/drives/b", "", `400 drive_id is "b": want the id of a drive`, afterStart},
		{"DELETE", "/drives/a", "{}", "400 DELETE request cannot have a body.", "400 DELETE request cannot have a body."},
		{"DELETE", "/drives/a", "", "204", afterStart},

		{"PUT", "/network-interfaces/a", nic, "204", afterStart},
		{"PUT", "/network-interfaces/a", `{"iface_id": "a", "host_dev_name": "fcapi0", "mtu": 1}`, "400 network-interfaces/a/mtu is 1", "400 network-interfaces/a/mtu is 1"},
		{"PATCH", "/network-interfaces/a", `{"iface_id": "a", "rx_rate_limiter": ` + limit + `}`, beforeStart, "204"},
		{"PATCH", "/network-interfaces/a", `{"iface_id": "a", "mtu": 1500}`, "400 An error occurred", "400 An error occurred"},
		{"PATCH", "/network-interfaces/b", `{"iface_id": "b"}`, beforeStart, `400 iface_id is "b"`},
		{"DELETE", "/network-interfaces/b", "", `400 iface_id is "b"`, afterStart},
		{"DELETE", "/network-interfaces/a", "", "204", afterStart},

		{"PUT", "/filesystems/a", `{"fs_id": "a", "tag": "t", "path_on_host": "$D/folder"}`, "204", afterStart},
		{"PUT", "/filesystems/a", `{"fs_id": "a", "tag": "t", "path_on_host": "$D/disk"}`, "400 filesystems/a/path_on_host is", afterStart},
		{"PUT", "/filesystems/a", `{"fs_id": "a", "tag": "t", "socket": "$D/nope"}`, `400 filesystems/a/socket is`, afterStart},
		{"PUT", "/filesystems/a", `{"fs_id": "a", "tag": "t", "socket": "$D/disk"}`, `400 filesystems/a/socket is`, afterStart},
		{"PUT", "/filesystems/a", `{"fs_id": "a", "tag": "t", "socket": "$D/nope", "path_on_host": "$D/folder"}`, `400 filesystems/a/path_on_host is`, `400 filesystems/a/path_on_host is`},
		{"PUT", "/filesystems/a", `{"fs_id": "a", "tag": "t", "socket": "$D/nope", "is_read_only": true}`, `400 filesystems/a/is_read_only is true`, `400 filesystems/a/is_read_only is true`},
		{"PUT", "/filesystems/a", `{"fs_id": "a", "tag": "t"}`, `400 filesystems/a/path_on_host is missing`, `400 filesystems/a/path_on_host is missing`},
		{"DELETE", "/filesystems/b", "", `400 fs_id is "b"`, afterStart},
		{"DELETE", "/filesystems/a", "", "204", afterStart},

		{"PUT", "/vsock", `{"guest_cid": 3, "uds_path": "$D/v.sock"}`, "204", afterStart},
		{"PUT", "/vsock", `{"guest_cid": 2, "uds_path": "$D/v.sock"}`, "400 guest_cid is 2", "400 guest_cid is 2"},
		{"PUT", "/vsock", `{"guest_cid": 3, "uds_path": "$D/disk"}`, "400 uds_path is", afterStart},
		{"PUT", "/entropy", `{"rate_limiter": ` + limit + `}`, "204", afterStart},
		{"PUT", "/entropy", `[]`, "400 An error occurred", "400 An error occurred"},
		{"PUT", "/serial", `{"serial_out_path": "$D/console"}`, "204", afterStart},
		{"PUT", "/serial", `{"serial_out_path": "$D/folder"}`, "400 serial_out_path is", afterStart},

		{"PUT", "/actions", `{"action_type": "FlushMetrics"}`, beforeStart, "204"},
		{"PUT", "/actions", `{"action_type": "SendCtrlAltDel"}`, beforeStart, "204"},
		{"PUT", "/actions", `{"action_type": "Halt"}`, "400 An error occurred", "400 An error occurred"},
		{"PATCH", "/vm", `{"state": "Running"}`, "400 An error occurred", "400 An error occurred"},
		{"PATCH", "/vm", `{"state": "Paused"}`, beforeStart, "204"},
		{"PATCH", "/vm", `{"state": "Paused"}`, beforeStart, "204"},
		{"GET", "/", "", `200 {"id":"anonymous-instance","state":"Not started"`, `200 {"id":"anonymous-instance","state":"Paused"`},
		{"PATCH", "/drives/a", `{"drive_id": "a", "path_on_host": "$D/disk"}`, beforeStart, "204"},
		{"PUT", "/actions", `{"action_type": "SendCtrlAltDel"}`, beforeStart, "204"},
		{"PATCH", "/vm", `{"state": "Resumed"}`, beforeStart, "204"},
		{"PATCH", "/vm", `{"state": "Resumed"}`, beforeStart, "204"},

		{"PUT", "/logger", `{"log_path": "$D/log", "level": "Warn", "show_level": true}`, "204", afterStart},
		{"PUT", "/logger", `{"level": "loud"}`, `400 level is "loud"`, `400 level is "loud"`},
		{"PUT", "/metrics", `{"metrics_path": "$D/none/metrics"}`, "400 metrics_path is", afterStart},
		{"PUT", "/metrics", `{"metrics_path": "$D/metrics"}`, "204", afterStart},
		{"PUT", "/metrics", `{"metrics_path": "$D/metrics2"}`, "400 ", afterStart}, // only once

		{"PUT", "/mmds", `{"a": {"b": 1}}`, "204", "204"},
		{"PUT", "/mmds", `{"a": `, "400 An error occurred", "400 An error occurred"},
		{"PATCH", "/mmds", `{"a": {"b": null}}`, "204", "204"},
		{"GET", "/mmds", "", `200 {"a":{}}`, `200 {"a":{}}`},
		{"PUT", "/mmds/config", `{"network_interfaces": ["m"], "version": "V2"}`, "204", afterStart},
		{"PUT", "/mmds/config", `{"network_interfaces": []}`, "400 mmds-config/network_interfaces is", "400 mmds-config/network_interfaces is"},

		{"PUT", "/cpu-config", `{"cpuid_modifiers": [], "msr_modifiers": []}`, "204", afterStart},
		{"PUT", "/cpu-config", `{"cpuid_modifiers": [{"leaf": "x", "subleaf": "0", "flags": 0, "modifiers": []}]}`, "400 ", "400 "},

		{"GET", "/balloon", "", `200 {"amount_mib":0`, `200 {"amount_mib":0`},
		{"PUT", "/balloon", `{"amount_mib": 0, "deflate_on_oom": true, "stats_polling_interval_s": 1, "free_page_hinting": true}`, "204", afterStart},
		{"PUT", "/balloon", `{"amount_mib": 129, "deflate_on_oom": true}`, "400 balloon/amount_mib is 129", afterStart},
		{"PATCH", "/balloon", `{"amount_mib": 1}`, beforeStart, noDriver},
		{"PATCH", "/balloon", `{"amount_mib": 129}`, beforeStart, "400 balloon/amount_mib is 129"},
		{"GET", "/balloon/statistics", "", beforeStart, `200 {"target_pages":`},
		{"PATCH", "/balloon/statistics", `{"stats_polling_interval_s": 2}`, beforeStart, "204"},
		{"PATCH", "/balloon/hinting/start", `{}`, beforeStart, noDriver},
		{"GET", "/balloon/hinting/status", "", beforeStart, `200 {"host_cmd":`},
		{"PATCH", "/balloon/hinting/stop", `{}`, beforeStart, noDriver},

		{"PUT", "/snapshot/create", `{"snapshot_path": "s", "mem_file_path": "m"}`, notYet, notYet},
		{"PUT", "/snapshot/load", `{"snapshot_path": "s"}`, notYet, notYet},
		{"PUT", "/pmem/a", `{"id": "a", "path_on_host": "$D/disk"}`, notYet, notYet},
		{"PUT", "/hotplug/memory", `{"total_size_mib": 1024}`, notYet, notYet},

		{"PUT", "/actions", `{"action_type": "InstanceStart"}`, "204", afterStart}, // the last, as the first machine has not been started yet
		{"GET", "/", "", `200 {"id":"anonymous-instance","state":"Running"`, `200 {"id":"anonymous-instance","state":"Running"`},
	}
	before, after := machine(t, false), machine(t, true)
	asked := map[string]bool{}
	for i, c := range calls {
		for when, v := range map[string]*vmm{"before": before, "after": after} {
			want := c.before
			if when == "after" {
				want = c.after
			}
			if got := v.call(t, c.method, c.path, c.body); !strings.HasPrefix(got, want) || want == "204" && got != want {
				t.Errorf("%d, %s the start: %s %s %s: %s, want %s", i, when, c.method, c.path, c.body, got, want)
			}
		}
		asked[c.method+" "+c.path] = true
	}
	for _, o := range document(t) {
		if !asked[o.Method+" "+o.URL("a")] && o.When != "never" {
			t.Errorf("%s %s is in the document, and not among the calls", o.Method, o.Path)
		}
	}
	before.end(t)
	after.end(t)
}

// TestDocument sends each body of the document, with each field at the ends of its range and beyond, to a machine that has been started.
// What must be right before the start is called wrong after it, too, before the time is.
func TestDocument(t *testing.T) {
	v := machine(t, true)
	n := 0
	for _, o := range document(t) {
		if o.Body == nil {
			continue
		}
		for _, c := range o.Body.Cases("", func(name string) string {
			switch {
			case name == o.Param():
				return `"a"`
			case name == "path_on_host" && strings.HasPrefix(o.Path, "/filesystems"):
				return `"$D/folder"`
			case strings.HasSuffix(name, "path_on_host"), strings.HasSuffix(name, "kernel_image_path"):
				return `"$D/disk"`
			case strings.HasSuffix(name, "_path"):
				return `"$D/new"`
			}
			return ""
		}) {
			n++
			got := v.call(t, o.Method, o.URL("a"), c.Text)
			switch {
			case c.Bad && strings.HasPrefix(got, "400 ") && strings.Contains(got, c.Field):
			case !c.Bad && o.When == "before" && got == afterStart, !c.Bad && o.When != "before" && got == "204":
			case !c.Bad && strings.Contains(c.Text, "InstanceStart") && got == afterStart:
			case !c.Bad && strings.HasPrefix(o.Path, "/balloon") && (strings.HasPrefix(got, noDriver) || got == statisticsStay):
			case strings.HasPrefix(got, "400 balloon/amount_mib is") && strings.HasSuffix(got, "no more than the microVM's memory"):
			case o.Path == "/mmds/config" && got == afterStart: // which interfaces there are is looked at later
			case !c.Bad && strings.HasPrefix(got, "400 The id from the path"): // the longest id
			default:
				t.Errorf("%s %s %s: %s", o.Method, o.Path, c.Text, got)
			}
		}
	}
	if n < 200 {
		t.Errorf("only %d bodies tried", n)
	}
	v.end(t)
}

// document is the API's.
func document(t *testing.T) []*openapitest.Operation {
	t.Helper()
	text, err := os.ReadFile("../../pkg/vmm/api/openapi.json")
	if err != nil {
		t.Fatal(err)
	}
	ops, err := openapitest.Parse(text)
	if err != nil {
		t.Fatal(err)
	}
	return ops
}
