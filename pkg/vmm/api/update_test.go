package api

import (
	"context"
	"encoding/json"
	"errors"
	"reflect"
	"strings"
	"testing"

	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/config"
)

// TestUpdates sends PATCH for what a machine has, before its start, while it runs, and when it refuses.
func TestUpdates(t *testing.T) {
	const bucket = `{"size": 10, "refill_time": 100}`
	tests := []struct {
		path, body string
		fault      string // after the start; "" for success
		early      string // before the start, where it is not beforeStart
		parts      string // what GET /vm/config has afterwards
	}{
		{"/drives/a", `{"drive_id": "a"}`, "", "", ""},
		{"/drives/a", `{"drive_id": "a", "path_on_host": "$D/data"}`, "", "", `"path_on_host":"$D/data"`},
		{"/drives/a", `{"drive_id": "a", "path_on_host": null, "rate_limiter": null}`, "", "", ""},
		{"/drives/a", `{"drive_id": "a", "rate_limiter": {}}`, "", "", `"ops":{"size":1,"refill_time":1}`},
		{"/drives/a", `{"drive_id": "a", "rate_limiter": {"bandwidth": ` + bucket + `}}`, "", "",
			`"rate_limiter":{"bandwidth":{"size":10,"refill_time":100},"ops":{"size":1,"refill_time":1}}`},
		{"/drives/a", `{"drive_id": "a", "path_on_host": "$D/data", "rate_limiter": {"ops": {"size": 0, "one_time_burst": 3, "refill_time": 0}}}`, "", "",
			`"ops":{"size":0,"one_time_burst":3,"refill_time":0}`},
		{"/drives/a", `{"drive_id": "b"}`, "does not match", "does not match", ""},
		{"/drives/", `{"drive_id": "a"}`, "The ID cannot be empty.", "empty", ""},
		{"/drives/a", `{}`, "missing field `drive_id`", "drive_id", ""},
		{"/drives/a", `{"drive_id": 1}`, "drive_id is 1: want a string", "drive_id", ""},
		{"/drives/a", `{"drive_id": "a", "path_on_host": true}`, "path_on_host is true: want a string", "path_on_host", ""},
		{"/drives/a", `{"drive_id": "a", "is_read_only": true}`, "unknown field `is_read_only`, expected one of", "is_read_only", ""},
		{"/drives/a", `{"drive_id": "a", "rate_limiter": {"ops": {"size": 1}}}`, "missing field `rate_limiter/ops/refill_time`", "refill_time", ""},
		{"/drives/a", `{"drive_id": "a", "rate_limiter": {"ops": {"size": 1, "refill_time": 10000000000000}}}`, "drives/a/rate_limiter/ops/refill_time is 10000000000000", "refill_time", ""},
		{"/drives/a", `{"drive_id": "a", "path_on_host": "/nope"}`, `drives/a/path_on_host is "/nope": want a readable and writable file or block device (no such file`, "", ""},
		{"/drives/a", `{"drive_id": "a", "path_on_host": "/dev/null"}`, "drives/a/path_on_host", "", ""},
		{"/drives/a", `{"drive_id": "a", "path_on_host": "a\u0000b"}`, "drives/a/path_on_host", "path_on_host", ""},
		{"/drives/a", `{"drive_id": "a", "path_on_host": ""}`, `drives/a/path_on_host is "": want the path of a file or block device, or null`, `path_on_host is ""`, ""},
		{"/drives/none", `{"drive_id": "none"}`, `drive_id is "none": want the id of a drive of this microVM`, "", ""},
		{"/drives/a", ``, "Empty PATCH request.", "Empty", ""},

		{"/network-interfaces/eth0", `{"iface_id": "eth0"}`, "", "", ""},
		{"/network-interfaces/eth0", `{"iface_id": "eth0", "rx_rate_limiter": {"ops": ` + bucket + `}}`, "", "", `"rx_rate_limiter":{"ops":{"size":10,"refill_time":100}}`},
		{"/network-interfaces/eth0", `{"iface_id": "eth0", "tx_rate_limiter": {"bandwidth": ` + bucket + `, "ops": ` + bucket + `}, "rx_rate_limiter": null}`, "", "",
			`"tx_rate_limiter":{"bandwidth":{"size":10,"refill_time":100},"ops":{"size":10,"refill_time":100}}`},
		{"/network-interfaces/eth0", `{"iface_id": "eth0", "mtu": 1400}`, "unknown field `mtu`", "mtu", ""},
		{"/network-interfaces/eth0", `{"iface_id": "eth0", "host_dev_name": "tap1"}`, "unknown field `host_dev_name`", "host_dev_name", ""},
		{"/network-interfaces/eth0", `{"iface_id": "eth1"}`, "does not match", "does not match", ""},
		{"/network-interfaces/", `{"iface_id": "eth0"}`, "empty", "empty", ""},
		{"/network-interfaces/eth0", `{"rx_rate_limiter": null}`, "missing field `iface_id`", "iface_id", ""},
		{"/network-interfaces/eth0", `{"iface_id": "eth0", "rx_rate_limiter": {"ops": 7}}`, "rx_rate_limiter/ops: invalid type: want an object", "rx_rate_limiter", ""},
		{"/network-interfaces/eth0", `{"iface_id": "eth0", "rx_rate_limiter": {"ops": {"size": 1, "refill_time": 10000000000000}}}`, "network-interfaces/eth0/rx_rate_limiter/ops/refill_time is", "refill_time", ""},
		{"/network-interfaces/eth0", `{"iface_id": "eth0", "tx_rate_limiter": {"ops": {"size": 1, "refill_time": 10000000000000}}}`, "network-interfaces/eth0/tx_rate_limiter/ops/refill_time is", "refill_time", ""},
		{"/network-interfaces/eth9", `{"iface_id": "eth9"}`, `iface_id is "eth9": want the id of a network interface of this microVM`, "", ""},
	}
	for _, tt := range tests {
		t.Run(tt.path+" "+tt.body, func(t *testing.T) {
			b := newBench(t)
			b.must(t, "PUT", "/drives/a", `{"drive_id": "a", "path_on_host": "$D/disk", "is_root_device": false, "rate_limiter": {"ops": {"size": 1, "refill_time": 1}}}`)
			b.must(t, "PUT", "/network-interfaces/eth0", `{"iface_id": "eth0", "host_dev_name": "tap0"}`)
			refused := func(when, want string) {
				t.Helper()
				before := b.must(t, "GET", "/vm/config", "")
				status, answer := b.do("PATCH", tt.path, tt.body)
				if msg := faultOf(t, answer); status != 400 || !strings.Contains(msg, want) {
					t.Errorf("%s: %d %s, want 400 with %q", when, status, msg, want)
				}
				if after := b.must(t, "GET", "/vm/config", ""); after != before {
					t.Errorf("%s: a refused request changed %s to %s", when, before, after)
				}
			}
			if tt.early == "" {
				tt.early = beforeStart
			}
			refused("before the start", tt.early)
			b.start(t)
			if tt.fault != "" {
				if refused("after the start", tt.fault); len(b.machine.drives)+len(b.machine.interfaces) > 0 {
					t.Error("the machine was asked all the same")
				}
				return
			}
			b.machine.err = errFake
			refused("by the machine", errFake.Error())
			b.machine.err = nil
			if status, answer := b.do("PATCH", tt.path, tt.body); status != 204 || answer != "" {
				t.Fatalf("%d %s", status, answer)
			}
			if got, want := b.must(t, "GET", "/vm/config", ""), strings.ReplaceAll(tt.parts, "$D", b.dir); !strings.Contains(got, want) {
				t.Errorf("configuration %s, want %s in it", got, want)
			}
			if len(b.machine.drives)+len(b.machine.interfaces) != 2 {
				t.Errorf("the machine was asked for %+v, %+v", b.machine.drives, b.machine.interfaces)
			}
		})
	}
}

// A look at a file system that does not answer ends with the request, and says what it was for.
func TestWithin(t *testing.T) {
	ctx, cancel := context.WithCancelCause(context.Background())
	if err := within(ctx, "f", "/p", func() error { return errFake }); err != errFake {
		t.Error(err)
	}
	release := make(chan struct{})
	defer close(release)
	err := within(ctx, "drives/a/path_on_host", "/hung", func() error {
		cancel(errFake)
		<-release
		return nil
	})
	if !errors.Is(err, errFake) || !strings.Contains(err.Error(), `drives/a/path_on_host "/hung"`) {
		t.Error(err)
	}
}

// A required part may be an object.
func TestRequiredObject(t *testing.T) {
	for text, want := range map[string]string{
		`{"rate_limiter": {}}`:   "",
		`{"rate_limiter": null}`: "missing field `rate_limiter`",
		`{"drive_id": "a"}`:      "missing field `rate_limiter`",
	} {
		var d config.Drive
		err := document{[]byte(text)}.fill([]byte(text), 0, &d, schema{required: []string{"rate_limiter"}})
		if want == "" && (err != nil || d.RateLimiter == nil) || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("%s: %v, want %q", text, err, want)
		}
	}
}

// The client's bodies are what the server takes, and leave out what does not change.
func TestClientUpdates(t *testing.T) {
	b := newBench(t)
	b.must(t, "PUT", "/drives/a", `{"drive_id": "a", "path_on_host": "$D/disk", "is_root_device": false}`)
	b.must(t, "PUT", "/network-interfaces/eth0", `{"iface_id": "eth0", "host_dev_name": "tap0"}`)
	b.start(t)
	c := NewClient(b.serve(t))
	defer c.Close()
	ctx := context.Background()
	limit := &config.RateLimiter{Bandwidth: &config.TokenBucket{Size: 1 << 63, RefillTime: 1}}
	drive := config.DriveUpdate{DriveID: "a", PathOnHost: b.dir + "/data", RateLimiter: limit}
	iface := config.NetworkInterfaceUpdate{IfaceID: "eth0", TxRateLimiter: limit}
	if err := c.PatchDrive(ctx, drive); err != nil {
		t.Fatal(err)
	}
	if err := c.PatchNetworkInterface(ctx, iface); err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(b.machine.drives, []config.DriveUpdate{drive}) || !reflect.DeepEqual(b.machine.interfaces, []config.NetworkInterfaceUpdate{iface}) {
		t.Errorf("the machine was asked for %+v, %+v", b.machine.drives, b.machine.interfaces)
	}
	vm, err := c.VMConfig(ctx)
	if err != nil || !reflect.DeepEqual(vm.Drives[0].RateLimiter, limit) || !reflect.DeepEqual(vm.NetworkInterfaces[0].TxRateLimiter, limit) {
		t.Errorf("%+v, %v", vm, err)
	}
	for _, u := range []any{config.DriveUpdate{DriveID: "a"}, config.NetworkInterfaceUpdate{IfaceID: "a"}} {
		if p, err := json.Marshal(u); err != nil || strings.Contains(string(p), ",") {
			t.Errorf("%s, %v", p, err)
		}
	}
}
