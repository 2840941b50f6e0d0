package api

import (
	"encoding/json"
	"fmt"
	"reflect"
	"strings"
	"testing"

	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/config"
)

// requestTest is a request to a fresh server, and to one whose machine has been started.
type requestTest struct {
	method, path, body string
	fault              string // part of the message; "" for success before the start
	after              string // the same after the start
}

func TestRequests(t *testing.T) {
	const (
		kernel = `{"kernel_image_path": "$D/vmlinux"}`
		drive  = `{"drive_id": "a", "path_on_host": "$D/disk", "is_root_device": false}`
		fs     = `{"fs_id": "s", "tag": "shared", "path_on_host": "$D/shared"}`
		nic    = `{"iface_id": "eth0", "host_dev_name": "tap0"}`
		long   = `"0123456789012345678901234567890123456"`
	)
	tests := []requestTest{
		{"PUT", "/machine-config", `{"vcpu_count": 2, "mem_size_mib": 256}`, "", afterStart},
		{"PUT", "/machine-config", `{"vcpu_count": 32, "mem_size_mib": 64, "smt": false, "cpu_template": "None", "track_dirty_pages": false, "huge_pages": "None"}`, "", afterStart},
		{"PUT", "/machine-config", `{"vcpu_count": 2, "mem_size_mib": 256, "cpu_template": null, "smt": null}`, "", afterStart},
		{"PUT", "/machine-config", `{"vcpu_count": 0, "mem_size_mib": 256}`, "vcpu_count is 0: want 1 to 32", "vcpu_count"},
		{"PUT", "/machine-config", `{"vcpu_count": 33, "mem_size_mib": 256}`, "vcpu_count is 33", "vcpu_count"},
		{"PUT", "/machine-config", `{"vcpu_count": 1, "mem_size_mib": 63}`, "mem_size_mib is 63: want 64", "mem_size_mib"},
		{"PUT", "/machine-config", `{"vcpu_count": 1}`, "missing field `mem_size_mib` at line 1 column 18", "mem_size_mib"},
		{"PUT", "/machine-config", `{"vcpu_count": 1, "mem_size_mib": null}`, "missing field `mem_size_mib`", "mem_size_mib"},
		{"PUT", "/machine-config", `{"vcpu_count": "1", "mem_size_mib": 64}`, `vcpu_count is "1": want an integer at line 1 column 16`, "vcpu_count"},
		{"PUT", "/machine-config", `{"vcpu_count": 1.5, "mem_size_mib": 64}`, "vcpu_count is 1.5: want an integer", "vcpu_count"},
		{"PUT", "/machine-config", `{"vcpu_count": 1e999, "mem_size_mib": 64}`, "vcpu_count is 1e999", "vcpu_count"},
		{"PUT", "/machine-config", `{"vcpu_count": 1, "vcpu_count": 2, "mem_size_mib": 64}`, "duplicate field `vcpu_count`", "duplicate"},
		{"PUT", "/machine-config", `{"VCPU_count": 1, "mem_size_mib": 64}`, "unknown field `VCPU_count`, expected one of", "VCPU_count"},
		{"PUT", "/machine-config", `{"vcpu_count": 1, "mem_size_mib": 64, "smt": true}`, "", afterStart},
		{"PUT", "/machine-config", `{"vcpu_count": 3, "mem_size_mib": 64, "smt": true}`, "vcpu_count is 3: want 1 or an even number, as smt is true", "vcpu_count"},
		{"PUT", "/machine-config", `{"vcpu_count": 1, "mem_size_mib": 64, "smt": 1}`, "smt is 1: want true or false", "smt"},
		{"PUT", "/machine-config", `{"vcpu_count": 1, "mem_size_mib": 64, "cpu_template": "T2"}`, "", afterStart},
		{"PUT", "/machine-config", `{"vcpu_count": 1, "mem_size_mib": 64, "cpu_template": "t2"}`, `cpu_template is "t2": want None, C3, T2, T2A, T2CL, T2S`, "cpu_template"},
		{"PUT", "/machine-config", `{"vcpu_count": 1, "mem_size_mib": 64, "cpu_template": 2}`, `cpu_template is 2: want a string`, "cpu_template"},
		{"PUT", "/machine-config", `{"vcpu_count": 1, "mem_size_mib": 64, "huge_pages": "1G"}`, `huge_pages is "1G"`, "huge_pages"},
		{"PUT", "/machine-config", `{"vcpu_count": 1, "mem_size_mib": 64, "track_dirty_pages": true}`, "track_dirty_pages is true", "track_dirty_pages"},
		{"PUT", "/machine-config", "", "Empty PUT request.", "Empty PUT"},
		{"PUT", "/machine-config", "{", "line 1 column 2", "unexpected end"},
		{"PUT", "/machine-config", "{\n  \"vcpu_count\": x}", "invalid character 'x' looking for beginning of value at line 2 column 17", "column 17"},
		{"PUT", "/machine-config", "[]", "want an object", "object"},
		{"PUT", "/machine-config", "null", "want an object", "object"},
		{"PUT", "/machine-config", "{} {}", "invalid character '{' after top-level value at line 1 column 4", "top-level"},
		{"PUT", "/machine-config", "{\"a\xff\": 1}", "invalid UTF-8 at line 1 column 4", "UTF-8"},
		{"PATCH", "/machine-config", `{"mem_size_mib": 512}`, "", afterStart},
		{"PATCH", "/machine-config", `{"mem_size_mib": 1}`, "mem_size_mib is 1", "mem_size_mib"},
		{"PATCH", "/machine-config", `{"nope": 1}`, "unknown field `nope`", "nope"},
		{"PATCH", "/machine-config", `{"smt": true, "vcpu_count": 2}`, "", afterStart},
		{"PATCH", "/machine-config", `{"cpu_template": "C3"}`, "", afterStart},
		{"PATCH", "/machine-config", `{"cpu_template": "None"}`, "", afterStart},
		{"PATCH", "/machine-config", `{"cpu_template": "V1N1"}`, `cpu_template is "V1N1"`, "cpu_template"},
		{"PATCH", "/machine-config", `{}`, "Empty PATCH request.", "Empty PATCH"},
		{"PATCH", "/machine-config", `{"mem_size_mib": null}`, "Empty PATCH request.", "Empty PATCH"},
		{"PATCH", "/machine-config", `{"nope": null}`, "unknown field `nope`", "nope"},
		{"PATCH", "/machine-config", ``, "Empty PATCH request.", "Empty PATCH"},

		{"PUT", "/boot-source", kernel, "", afterStart},
		{"PUT", "/boot-source", `{"kernel_image_path": "$D/vmlinux", "initrd_path": "$D/initrd", "boot_args": "quiet"}`, "", afterStart},
		{"PUT", "/boot-source", `{"kernel_image_path": "$D/vmlinux", "initrd_path": null, "boot_args": null}`, "", afterStart},
		{"PUT", "/boot-source", `{}`, "missing field `kernel_image_path`", "kernel_image_path"},
		{"PUT", "/boot-source", `{"kernel_image_path": ""}`, "kernel_image_path is missing", "kernel_image_path"},
		{"PUT", "/boot-source", `{"kernel_image_path": "/nope"}`, `kernel_image_path is "/nope": want a readable file (no such file or directory)`, afterStart},
		{"PUT", "/boot-source", `{"kernel_image_path": "/"}`, "kernel_image_path", afterStart},
		{"PUT", "/boot-source", `{"kernel_image_path": "$D/vmlinux", "initrd_path": "/nope"}`, "initrd_path", afterStart},
		{"PUT", "/boot-source", `{"kernel_image_path": "$D/vmlinux", "boot_args": "a\nb"}`, "boot_args", "boot_args"},

		{"PUT", "/drives/a", drive, "", afterStart},
		{"PUT", "/drives/a", `{"drive_id": "a", "path_on_host": "$D/disk", "is_root_device": true, "is_read_only": true, "partuuid": null,
			"cache_type": "Writeback", "io_engine": "Sync", "rate_limiter": null, "socket": null}`, "", afterStart},
		{"PUT", "/drives/b", drive, "The id from the path [b] does not match the id from the body [a]!", "does not match"},
		{"PUT", "/drives/", drive, "The ID cannot be empty.", "empty"},
		{"PUT", "/drives/a-b", `{"drive_id": "a-b", "path_on_host": "$D/disk", "is_root_device": false}`, `drive_id is "a-b"`, "drive_id"},
		{"PUT", "/drives/a", `{"drive_id": "a", "path_on_host": "/nope", "is_root_device": false}`, `drives/a/path_on_host is "/nope"`, afterStart},
		{"PUT", "/drives/a", `{"drive_id": "a", "path_on_host": "/dev/null", "is_root_device": false}`, "drives/a/path_on_host", afterStart},
		{"PUT", "/drives/a", `{"drive_id": "a", "is_root_device": false}`, "drives/a/path_on_host is missing", "path_on_host"},
		{"PUT", "/drives/a", `{"drive_id": "a", "path_on_host": "$D/disk"}`, "missing field `is_root_device`", "is_root_device"},
		{"PUT", "/drives/a", `{"drive_id": "a", "path_on_host": "$D/disk", "is_root_device": false, "cache_type": "x"}`, "drives/a/cache_type", "cache_type"},
		{"PUT", "/drives/a", `{"drive_id": "a", "path_on_host": "$D/disk", "is_root_device": false, "io_engine": "async"}`, "drives/a/io_engine", "io_engine"},
		{"PUT", "/drives/a", `{"drive_id": "a", "path_on_host": "$D/disk", "is_root_device": false, "rate_limiter": {"ops": {"size": 1, "refill_time": 1}}}`, "", afterStart},
		{"PUT", "/drives/a", `{"drive_id": "a", "path_on_host": "$D/disk", "is_root_device": false, "rate_limiter": {"bandwidth": {"size": 0, "one_time_burst": 0, "refill_time": 0}, "ops": null}}`, "", afterStart},
		{"PUT", "/drives/a", `{"drive_id": "a", "path_on_host": "$D/disk", "is_root_device": false, "rate_limiter": {}}`, "", afterStart},
		{"PUT", "/drives/a", `{"drive_id": "a", "path_on_host": "$D/disk", "is_root_device": false, "rate_limiter": {"bandwidth": {"size": 18446744073709551615, "one_time_burst": null, "refill_time": 9223372036854}}}`, "", afterStart},
		{"PUT", "/drives/a", `{"drive_id": "a", "path_on_host": "$D/disk", "is_root_device": false, "rate_limiter": {"bandwidth": {"size": 1, "refill_time": 9223372036855}}}`, "drives/a/rate_limiter/bandwidth/refill_time is 9223372036855: want 0 to 9223372036854 ms", "refill_time"},
		{"PUT", "/drives/a", `{"drive_id": "a", "path_on_host": "$D/disk", "is_root_device": false, "rate_limiter": {"ops": {"size": 1}}}`, "missing field `rate_limiter/ops/refill_time` at line 1 column", "refill_time"},
		{"PUT", "/drives/a", `{"drive_id": "a", "path_on_host": "$D/disk", "is_root_device": false, "rate_limiter": {"ops": {"refill_time": 1}}}`, "missing field `rate_limiter/ops/size`", "size"},
		{"PUT", "/drives/a", `{"drive_id": "a", "path_on_host": "$D/disk", "is_root_device": false, "rate_limiter": {"ops": {"size": -1, "refill_time": 1}}}`, "rate_limiter/ops/size is -1: want an integer from 0 to 18446744073709551615", "size"},
		{"PUT", "/drives/a", `{"drive_id": "a", "path_on_host": "$D/disk", "is_root_device": false, "rate_limiter": {"ops": {"size": 1, "refill_time": 1, "burst": 1}}}`, "unknown field `rate_limiter/ops/burst`, expected one of `one_time_burst`, `refill_time`, `size`", "burst"},
		{"PUT", "/drives/a", `{"drive_id": "a", "path_on_host": "$D/disk", "is_root_device": false, "rate_limiter": {"iops": {}}}`, "unknown field `rate_limiter/iops`", "iops"},
		{"PUT", "/drives/a", `{"drive_id": "a", "path_on_host": "$D/disk", "is_root_device": false, "rate_limiter": {"ops": null, "ops": null}}`, "duplicate field `rate_limiter/ops`", "duplicate"},
		{"PUT", "/drives/a", `{"drive_id": "a", "path_on_host": "$D/disk", "is_root_device": false, "rate_limiter": []}`, "rate_limiter: invalid type: want an object", "rate_limiter"},

		{"PUT", "/filesystems/s", fs, "", afterStart},
		{"PUT", "/filesystems/t", fs, "does not match", "does not match"},
		{"PUT", "/filesystems/s", `{"fs_id": "s", "tag": "", "path_on_host": "$D/shared"}`, "filesystems/s/tag is missing", "tag"},
		{"PUT", "/filesystems/s", `{"fs_id": "s", "tag": ` + long + `, "path_on_host": "$D/shared"}`, "1 to 36 bytes", "tag"},
		{"PUT", "/filesystems/s", `{"fs_id": "s", "tag": "t", "path_on_host": "$D/disk"}`, "want a folder", afterStart},
		{"PUT", "/filesystems/s", `{"fs_id": "s", "tag": "t", "path_on_host": "/nope"}`, "want a folder (no such file", afterStart},

		{"PUT", "/network-interfaces/eth0", nic, "", afterStart},
		{"PUT", "/network-interfaces/eth0", `{"iface_id": "eth0", "host_dev_name": "tap0", "guest_mac": "AA:FC:00:00:00:01", "mtu": 1400,
			"rx_rate_limiter": null, "tx_rate_limiter": {}}`, "", afterStart},
		{"PUT", "/network-interfaces/eth1", nic, "The id from the path [eth1] does not match the id from the body [eth0]!", "does not match"},
		{"PUT", "/network-interfaces/", nic, "The ID cannot be empty.", "empty"},
		{"PUT", "/network-interfaces/eth0", `{"iface_id": "eth0"}`, "missing field `host_dev_name`", "host_dev_name"},
		{"PUT", "/network-interfaces/eth0", `{"host_dev_name": "tap0"}`, "missing field `iface_id`", "iface_id"},
		{"PUT", "/network-interfaces/eth0", `{"iface_id": "eth0", "host_dev_name": "a/b"}`, `network-interfaces/eth0/host_dev_name is "a/b": want the name of a TAP`, "host_dev_name"},
		{"PUT", "/network-interfaces/eth0", `{"iface_id": "eth0", "host_dev_name": "tap0", "guest_mac": "ff:ff:ff:ff:ff:ff"}`, "network-interfaces/eth0/guest_mac is", "guest_mac"},
		{"PUT", "/network-interfaces/eth0", `{"iface_id": "eth0", "host_dev_name": "tap0", "mtu": 67}`, "network-interfaces/eth0/mtu is 67: want 68 to 65535", "mtu"},
		{"PUT", "/network-interfaces/eth0", `{"iface_id": "eth0", "host_dev_name": "tap0", "mtu": "1500"}`, `mtu is "1500": want an integer`, "mtu"},
		{"PUT", "/network-interfaces/eth0", `{"iface_id": "eth0", "host_dev_name": "tap0", "rx_rate_limiter": {"ops": {"size": 1, "refill_time": 1}}}`, "", afterStart},
		{"PUT", "/network-interfaces/eth0", `{"iface_id": "eth0", "host_dev_name": "tap0", "tx_rate_limiter": {"bandwidth": {"size": 1, "refill_time": 1}}}`, "", afterStart},
		{"PUT", "/network-interfaces/eth0", `{"iface_id": "eth0", "host_dev_name": "tap0", "rx_rate_limiter": {"ops": {"size": 1, "refill_time": "1"}}}`, `rx_rate_limiter/ops/refill_time is "1": want an integer`, "rx_rate_limiter"},
		{"PUT", "/network-interfaces/eth0", `{"iface_id": "eth0", "host_dev_name": "tap0", "tx_rate_limiter": {"ops": {"size": 1, "refill_time": 9223372036855}}}`, "network-interfaces/eth0/tx_rate_limiter/ops/refill_time is", "tx_rate_limiter"},

		{"PUT", "/vsock", `{"guest_cid": 3, "uds_path": "$D/v.sock"}`, "", afterStart},
		{"PUT", "/vsock", `{"vsock_id": "x", "guest_cid": 4294967294, "uds_path": "$D/v.sock"}`, "", afterStart},
		{"PUT", "/vsock", `{"guest_cid": 2, "uds_path": "$D/v.sock"}`, "guest_cid is 2: want 3 to 4294967294", "guest_cid"},
		{"PUT", "/vsock", `{"guest_cid": -1, "uds_path": "$D/v.sock"}`, "guest_cid is -1: want an integer from 0 to 4294967295", "guest_cid"},
		{"PUT", "/vsock", `{"guest_cid": 3}`, "missing field `uds_path`", "uds_path"},
		{"PUT", "/vsock", `{"guest_cid": 3, "uds_path": "/nope/v"}`, "uds_path", afterStart},
		{"PUT", "/vsock", `{"guest_cid": 3, "uds_path": "$D/disk"}`, "uds_path", afterStart},

		{"PUT", "/entropy", `{}`, "", afterStart},
		{"PUT", "/entropy", `{"rate_limiter": null}`, "", afterStart},
		{"PUT", "/entropy", `{"x": 1}`, "unknown field `x`, expected one of `rate_limiter`", "unknown"},
		{"PUT", "/entropy", `{"rate_limiter": {"bandwidth": {"size": 1000, "one_time_burst": 5, "refill_time": 100}}}`, "", afterStart},
		{"PUT", "/entropy", `{"rate_limiter": {"bandwidth": {"size": 1000, "refill_time": 9223372036855}}}`, "entropy/rate_limiter/bandwidth/refill_time is", "refill_time"},
		{"PUT", "/serial", `{"serial_out_path": "$D/console", "max_bytes": 4096}`, "", afterStart},
		{"PUT", "/serial", `{"serial_out_path": "$D"}`, "serial_out_path", afterStart},
		{"PUT", "/serial", `{"serial_out_path": "/nope/console"}`, "serial_out_path", afterStart},
		{"PUT", "/serial", `{"max_bytes": -1}`, "max_bytes", "max_bytes"},
		{"PUT", "/serial", `{"rate_limiter": {"size": 100, "one_time_burst": 10, "refill_time": 1000}}`, "", afterStart},
		{"PUT", "/serial", `{"rate_limiter": null}`, "", afterStart},
		{"PUT", "/serial", `{"rate_limiter": {"size": 100}}`, "missing field `rate_limiter/refill_time`", "refill_time"},
		{"PUT", "/serial", `{"rate_limiter": {"bandwidth": {"size": 1, "refill_time": 1}}}`, "unknown field `rate_limiter/bandwidth`", "bandwidth"},
		{"PUT", "/serial", `{"rate_limiter": {"size": 1, "refill_time": 9223372036855}}`, "serial/rate_limiter/refill_time is 9223372036855", "refill_time"},

		{"PUT", "/logger", `{}`, "", afterStart},
		{"PUT", "/logger", `{"log_path": "$D/log", "level": "Warning", "show_level": true, "show_log_origin": false, "module": "vmm"}`, "", afterStart},
		{"PUT", "/logger", `{"level": "DEBUG", "module": null}`, "", afterStart},
		{"PUT", "/logger", `{"level": "Loud"}`, `level is "Loud": want Off, Error, Warn, Info, Debug or Trace`, "level"},
		{"PUT", "/logger", `{"show_level": "yes"}`, `show_level is "yes": want true or false`, "show_level"},
		{"PUT", "/logger", `{"log_path": "a\u0000b"}`, "log_path", "log_path"},
		{"PUT", "/logger", `{"path": "x"}`, "unknown field `path`, expected one of `level`, `log_path`, `module`, `show_level`, `show_log_origin`", "unknown"},
		{"PUT", "/metrics", `{"metrics_path": "$D/metrics", "emit_id": true, "properties": {"a": "b"}}`, "", afterStart},
		{"PUT", "/metrics", `{"metrics_path": "$D/metrics", "emit_id": false, "properties": null}`, "", afterStart},
		{"PUT", "/metrics", `{}`, "missing field `metrics_path`", "metrics_path"},
		{"PUT", "/metrics", `{"metrics_path": "/nope/metrics"}`, `metrics_path is "/nope/metrics": want a file or named pipe to write to (no such file or directory)`, afterStart},
		{"PUT", "/metrics", `{"metrics_path": "$D/metrics", "properties": {"a": 1}}`, `properties is {"a":1}: want an object of strings`, "properties"},
		{"GET", "/metrics", "", "Invalid request", "Invalid request"},
		{"PATCH", "/logger", `{}`, "Invalid request", "Invalid request"},

		{"PUT", "/actions", `{"action_type": "InstanceStart"}`, noKernel, afterStart},
		{"PUT", "/actions", `{"action_type": "FlushMetrics"}`, beforeStart, ""},
		{"PUT", "/actions", `{"action_type": "SendCtrlAltDel"}`, beforeStart, ""},
		{"PUT", "/actions", `{"action_type": "Halt"}`, `action_type is "Halt": want InstanceStart or`, "action_type"},
		{"PUT", "/actions", `{}`, "missing field `action_type`", "action_type"},
		{"PATCH", "/vm", `{"state": "Paused"}`, beforeStart, ""},
		{"PATCH", "/vm", `{"state": "Resumed"}`, beforeStart, ""},
		{"PATCH", "/vm", `{"state": "paused"}`, `state is "paused": want Paused or Resumed`, "state"},

		{"GET", "/", "", "", ""},
		{"GET", "/version", "", "", ""},
		{"GET", "/machine-config", "", "", ""},
		{"GET", "/vm/config", "", "", ""},
		{"GET", "/", "{}", "GET request cannot have a body.", "GET request"},

		{"GET", "/boot-source", "", "Invalid request method and/or path: GET /boot-source.", "Invalid request"},
		{"PUT", "/", "{}", "Invalid request", "Invalid request"},
		{"GET", "/vm", "", "Invalid request", "Invalid request"},
		{"GET", "/vm/", "", "Invalid request", "Invalid request"},
		{"GET", "/version/", "", "Invalid request", "Invalid request"},
		{"GET", "//version", "", "Invalid request", "Invalid request"},
		{"GET", "/version?x=1", "", "Invalid request", "Invalid request"},
		{"PUT", "/drives", drive, "Invalid request", "Invalid request"},
		{"PATCH", "/drives", `{"drive_id": "a"}`, "Invalid request", "Invalid request"},
		{"DELETE", "/drives/a", "", `drive_id is "a": want the id of a drive of this microVM`, afterStart},
		{"DELETE", "/drives/", "", "The ID cannot be empty.", "empty"},
		{"DELETE", "/drives/a", "{}", "DELETE request cannot have a body.", "DELETE request"},
		{"DELETE", "/drives", "", "Invalid request", "Invalid request"},
		{"DELETE", "/filesystems/s", "", `fs_id is "s"`, afterStart},
		{"DELETE", "/vsock", "", "Invalid request method and/or path: DELETE /vsock.", "Invalid request"},
		{"PUT", "/snapshot/create", `{"snapshot_path": "s", "mem_file_path": "m"}`, "not supported yet: snapshots", "not supported yet: snapshots"},
		{"PUT", "/snapshot/load", `{}`, "not supported yet: snapshots", "not supported yet"},
		{"PUT", "/snapshot/delete", `{}`, "Invalid request", "Invalid request"},
		{"PUT", "/pmem/p", `{"id": "p", "path_on_host": "p"}`, "not supported yet: pmem devices", "not supported yet"},
		{"GET", "/hotplug/memory", "", "not supported yet: memory hot-plug", "not supported yet"},
		{"HEAD", "/", "", "Invalid request method and/or path: HEAD /.", "Invalid request"},
		{"POST", "/actions", `{"action_type": "InstanceStart"}`, "Invalid request", "Invalid request"},
		{"OPTIONS", "*", "", "Invalid request", "Invalid request"},
		{"GET", "/network-interfaces/eth0", "", "Invalid request", "Invalid request"},
		{"DELETE", "/network-interfaces/eth0", "", `iface_id is "eth0"`, afterStart},
	}
	testRequests(t, tests)
}

func testRequests(t *testing.T, tests []requestTest) {
	for _, started := range []bool{false, true} {
		for i, tt := range tests {
			t.Run(fmt.Sprintf("%d %s %s started=%v", i, tt.method, tt.path, started), func(t *testing.T) {
				b := newBench(t)
				want := tt.fault
				if started {
					b.start(t)
					want = tt.after
				}
				before := b.must(t, "GET", "/vm/config", "")
				status, answer := b.do(tt.method, tt.path, tt.body)
				if want == "" {
					wantStatus := 204
					if tt.method == "GET" {
						wantStatus = 200
					}
					if status != wantStatus || (status == 204) != (answer == "") {
						t.Fatalf("got %d %s, want %d", status, answer, wantStatus)
					}
					return
				}
				if msg := faultOf(t, answer); status != 400 || !strings.Contains(msg, want) {
					t.Errorf("got %d %s, want 400 with %q", status, msg, want)
				}
				if after := b.must(t, "GET", "/vm/config", ""); after != before {
					t.Errorf("a refused request changed %s to %s", before, after)
				}
			})
		}
	}
}

func TestConfigurationIsWhatBoots(t *testing.T) {
	b := newBench(t)
	b.must(t, "PUT", "/machine-config", `{"vcpu_count": 2, "mem_size_mib": 256}`)
	b.must(t, "PATCH", "/machine-config", `{"mem_size_mib": 512}`)
	b.must(t, "PUT", "/boot-source", `{"kernel_image_path": "$D/vmlinux", "boot_args": ""}`)
	b.must(t, "PUT", "/drives/data", `{"drive_id": "data", "path_on_host": "$D/data", "is_root_device": false}`)
	b.must(t, "PUT", "/drives/root", `{"drive_id": "root", "path_on_host": "$D/data", "is_root_device": true, "is_read_only": true}`)
	b.must(t, "PUT", "/drives/root", `{"drive_id": "root", "path_on_host": "$D/disk", "is_root_device": true, "is_read_only": true}`)
	b.must(t, "PUT", "/filesystems/s", `{"fs_id": "s", "tag": "shared", "path_on_host": "$D/shared"}`)
	b.must(t, "PUT", "/network-interfaces/eth0", `{"iface_id": "eth0", "host_dev_name": "tap9"}`)
	b.must(t, "PUT", "/network-interfaces/eth0", `{"iface_id": "eth0", "host_dev_name": "tap0", "guest_mac": "02:00:00:00:00:01", "mtu": 1400}`)
	b.must(t, "PUT", "/vsock", `{"guest_cid": 3, "uds_path": "$D/v.sock"}`)
	b.must(t, "PUT", "/entropy", `{}`)
	b.must(t, "PUT", "/serial", `{"serial_out_path": "$D/console"}`)
	for path, body := range map[string]string{
		"/drives/root2":            `{"drive_id": "root2", "path_on_host": "$D/disk", "is_root_device": true}`,
		"/filesystems/t":           `{"fs_id": "t", "tag": "shared", "path_on_host": "$D/shared"}`,
		"/network-interfaces/eth1": `{"iface_id": "eth1", "host_dev_name": "tap0"}`,
		"/network-interfaces/eth2": `{"iface_id": "eth2", "host_dev_name": "tap2", "guest_mac": "02:00:00:00:00:01"}`,
	} {
		if status, answer := b.do("PUT", path, body); status != 400 {
			t.Errorf("PUT %s beside its like: %d %s", path, status, answer)
		}
	}

	args := ""
	want := config.VM{
		Machine:    config.Machine{VCPUCount: 2, MemSizeMiB: 512, HugePages: "None"},
		BootSource: &config.BootSource{KernelImagePath: b.dir + "/vmlinux", BootArgs: &args},
		Drives: []config.Drive{
			{DriveID: "data", PathOnHost: b.dir + "/data", CacheType: "Unsafe", IOEngine: "Sync"},
			{DriveID: "root", PathOnHost: b.dir + "/disk", IsRootDevice: true, IsReadOnly: true, CacheType: "Unsafe", IOEngine: "Sync"},
		},
		Filesystems:       []config.Filesystem{{FSID: "s", Tag: "shared", PathOnHost: b.dir + "/shared"}},
		NetworkInterfaces: []config.NetworkInterface{{IfaceID: "eth0", HostDevName: "tap0", GuestMAC: "02:00:00:00:00:01", MTU: 1400}},
		Vsock:             &config.Vsock{GuestCID: 3, UDSPath: b.dir + "/v.sock"},
		Entropy:           &config.Entropy{},
		Serial:            &config.Serial{SerialOutPath: b.dir + "/console", MaxBytes: config.DefaultSerialBytes},
	}
	var shown config.VM
	if err := json.Unmarshal([]byte(b.must(t, "GET", "/vm/config", "")), &shown); err != nil || !reflect.DeepEqual(shown, want) {
		t.Errorf("GET /vm/config gave %+v (%v), want %+v", shown, err, want)
	}
	b.must(t, "PUT", "/actions", `{"action_type": "InstanceStart"}`)
	if len(b.booted) != 1 || !reflect.DeepEqual(b.booted[0], want) {
		t.Errorf("booted %+v, want %+v", b.booted, want)
	}
}

// What has been taken away again is not there at the start, and its id is free.
func TestDelete(t *testing.T) {
	b := newBench(t)
	parts := []struct{ path, body string }{
		{"/drives/a", `{"drive_id": "a", "path_on_host": "$D/disk", "is_root_device": true}`},
		{"/drives/b", `{"drive_id": "b", "path_on_host": "$D/data", "is_root_device": false}`},
		{"/filesystems/a", `{"fs_id": "a", "tag": "t", "path_on_host": "$D/shared"}`},
		{"/network-interfaces/a", `{"iface_id": "a", "host_dev_name": "tap0"}`},
	}
	for _, p := range parts {
		b.must(t, "PUT", p.path, p.body)
	}
	for _, p := range parts {
		if p.path == "/drives/b" {
			continue
		}
		b.must(t, "DELETE", p.path, "")
		if status, answer := b.do("DELETE", p.path, ""); status != 400 {
			t.Errorf("DELETE %s twice: %d %s", p.path, status, answer)
		}
	}
	b.must(t, "PUT", "/drives/c", `{"drive_id": "c", "path_on_host": "$D/disk", "is_root_device": true}`)
	b.start(t)
	vm := b.booted[0]
	if len(vm.Drives) != 2 || vm.Drives[0].DriveID != "b" || vm.Drives[1].DriveID != "c" || len(vm.Filesystems)+len(vm.NetworkInterfaces) > 0 {
		t.Errorf("booted %+v", vm)
	}
}

func TestLife(t *testing.T) {
	b := newBench(t)
	m := b.machine
	state := func() config.State {
		var i Info
		if err := json.Unmarshal([]byte(b.must(t, "GET", "/", "")), &i); err != nil || i.ID != "vm-1" || i.VMMVersion != "1.2.3" || i.AppName != AppName {
			t.Fatalf("GET / gave %+v, %v", i, err)
		}
		return i.State
	}
	want := func(s config.State) {
		t.Helper()
		if got := state(); got != s {
			t.Fatalf("state is %q, want %q", got, s)
		}
	}
	if v := b.must(t, "GET", "/version", ""); v != `{"firecracker_version":"1.2.3"}` {
		t.Errorf("version: %s", v)
	}
	want(config.NotStarted)
	b.must(t, "PUT", "/boot-source", `{"kernel_image_path": "$D/vmlinux"}`)
	b.bootErr = errFake
	if status, answer := b.do("PUT", "/actions", `{"action_type": "InstanceStart"}`); status != 400 || faultOf(t, answer) != errFake.Error() {
		t.Fatalf("a start that fails gave %d %s", status, answer)
	}
	want(config.NotStarted)
	b.bootErr = nil
	b.must(t, "PUT", "/actions", `{"action_type": "InstanceStart"}`)
	want(config.Running)

	b.must(t, "PATCH", "/vm", `{"state": "Paused"}`)
	want(config.Paused)
	m.err = errFake
	if status, answer := b.do("PATCH", "/vm", `{"state": "Resumed"}`); status != 400 || faultOf(t, answer) != errFake.Error() {
		t.Fatalf("a resume that fails gave %d %s", status, answer)
	}
	want(config.Paused)
	m.err = nil
	b.must(t, "PATCH", "/vm", `{"state": "Resumed"}`)
	want(config.Running)
	if m.pauses != 1 || m.resumes != 2 {
		t.Errorf("%d pauses, %d resumes", m.pauses, m.resumes)
	}

	b.must(t, "PUT", "/actions", `{"action_type": "SendCtrlAltDel"}`)
	if m.keys != 1 {
		t.Errorf("the machine saw %d keys", m.keys)
	}

	// Nobody tells the server that the guest has ended.
	m.mu.Lock()
	m.state = config.Ended
	m.mu.Unlock()
	want(config.Ended)
	if status, answer := b.do("PUT", "/actions", `{"action_type": "InstanceStart"}`); status != 400 || faultOf(t, answer) != afterStart {
		t.Errorf("a second start gave %d %s", status, answer)
	}
	if len(b.booted) != 1 {
		t.Errorf("booted %d times", len(b.booted))
	}
}

func TestBodyTooLarge(t *testing.T) {
	b := newBench(t)
	body := func(n int) string { return `{"boot_args": "` + strings.Repeat("x", n-17) + `"}` }
	if status, answer := b.do("PUT", "/boot-source", body(MaxBody)); status != 400 {
		t.Errorf("%d bytes: %d %s", MaxBody, status, answer)
	}
	if status, answer := b.do("PUT", "/boot-source", body(MaxBody+1)); status != 413 || !strings.Contains(faultOf(t, answer), "51200") {
		t.Errorf("%d bytes: %d %s", MaxBody+1, status, answer)
	}
}
