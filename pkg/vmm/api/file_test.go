package api

import (
	"context"
	"os"
	"reflect"
	"strings"
	"testing"

	"github.com/containerd/errdefs"

	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/config"
)

func TestConfigure(t *testing.T) {
	// In the form of the example that comes with Firecracker.
	const full = `{
  "boot-source": {"kernel_image_path": "$D/vmlinux", "boot_args": "console=ttyS0", "initrd_path": null},
  "cpu-config": null,
  "drives": [
    {"drive_id": "data", "partuuid": null, "is_root_device": false, "cache_type": "Unsafe", "is_read_only": false,
     "path_on_host": "$D/data", "io_engine": "Sync", "rate_limiter": {"bandwidth": {"size": 5, "one_time_burst": 6, "refill_time": 7}, "ops": null}, "socket": null},
    {"drive_id": "rootfs", "is_root_device": true, "is_read_only": true, "path_on_host": "$D/disk"}
  ],
  "machine-config": {"vcpu_count": 2, "mem_size_mib": 1024, "smt": false, "track_dirty_pages": false, "huge_pages": "None"},
  "balloon": {"amount_mib": 512, "deflate_on_oom": false, "stats_polling_interval_s": 5, "free_page_hinting": true, "free_page_reporting": true}, "network-interfaces": [{"iface_id": "eth0", "host_dev_name": "tap0", "guest_mac": "02:00:00:00:00:01", "mtu": 1400,
    "rx_rate_limiter": {"ops": {"size": 1, "refill_time": 2}}, "tx_rate_limiter": {"ops": {"size": 3, "refill_time": 4}}}], "vsock": {"guest_cid": 3, "uds_path": "$D/v.sock"}, "logger": {"log_path": "$D/log", "level": "Error", "show_level": true, "show_log_origin": null}, "metrics": {"metrics_path": "$D/metrics"},
  "mmds-config": {"version": "V2", "network_interfaces": ["eth0"], "ipv4_address": "169.254.170.2"}, "entropy": {"rate_limiter": {"ops": {"size": 8, "refill_time": 9}}}, "pmem": [], "memory-hotplug": null,
  "filesystems": [{"fs_id": "s", "tag": "shared", "path_on_host": "$D/shared"}], "serial": {"serial_out_path": "$D/console", "rate_limiter": {"size": 10, "refill_time": 20}}
}`
	const boot = `"boot-source": {"kernel_image_path": "$D/vmlinux"}`
	tests := []struct{ name, text, fault string }{
		{"full", full, ""},
		{"least", `{` + boot + `}`, ""},
		{"no boot source", `{"machine-config": {"vcpu_count": 1, "mem_size_mib": 64}}`, "boot-source is missing"},
		{"null boot source", `{"boot-source": null}`, "boot-source is missing"},
		{"empty", "", "unexpected end of JSON input at line 1 column 1"},
		{"array", "[]", "want an object"},
		{"unknown section", `{` + boot + `, "boot_source": {}}`, "boot_source: unknown section, expected one of balloon, boot-source,"},
		{"section twice", `{` + boot + `, ` + boot + `}`, "duplicate field `boot-source`"},
		{"unsupported section", "{" + boot + ",\n\"pmem\": [{\"id\": 1}]}", "pmem: not supported: want null at line 2 column 9"},
		{"balloon", `{` + boot + `, "balloon": {"amount_mib": 128, "deflate_on_oom": true}}`, ""},
		{"balloon too large", `{` + boot + `, "balloon": {"amount_mib": 129, "deflate_on_oom": true}}`, "balloon/amount_mib is 129: want 0 to 128 MiB"},
		{"half a balloon", `{` + boot + `, "balloon": {}}`, "balloon: missing field `amount_mib`"},
		{"network", `{` + boot + `, "network-interfaces": [{"iface_id": "eth0"}]}`, "network-interfaces: missing field `host_dev_name`"},
		{"network interface twice", `{` + boot + `, "network-interfaces": [{"iface_id": "a", "host_dev_name": "a"},
			{"iface_id": "a", "host_dev_name": "b"}]}`, `iface_id is "a"`},
		{"drives no array", `{` + boot + `, "drives": {}}`, "drives: drives: invalid type: want an array"},
		{"bad drive", `{` + boot + `, "drives": [{"drive_id": "a", "is_root_device": false, "path_on_host": "/nope"}]}`, "drives/a/path_on_host"},
		{"two roots", `{` + boot + `, "drives": [{"drive_id": "a", "is_root_device": true, "path_on_host": "$D/disk"},
			{"drive_id": "b", "is_root_device": true, "path_on_host": "$D/disk"}]}`, "drives/b/is_root_device"},
		{"drive twice", `{` + boot + `, "drives": [{"drive_id": "a", "is_root_device": false, "path_on_host": "$D/disk"},
			{"drive_id": "a", "is_root_device": false, "path_on_host": "$D/disk"}]}`, `drive_id is "a"`},
		{"filesystem twice", `{` + boot + `, "filesystems": [{"fs_id": "a", "tag": "a", "path_on_host": "$D"},
			{"fs_id": "a", "tag": "b", "path_on_host": "$D"}]}`, `fs_id is "a"`},
		{"field in line 3", "{" + boot + ",\n \"machine-config\":\n  {\"vcpu_count\": true, \"mem_size_mib\": 64}}", "vcpu_count is true: want an integer at line 3 column 18"},
		{"null logger and metrics", `{` + boot + `, "logger": null, "metrics": null}`, ""},
		{"bad level", `{` + boot + `, "logger": {"level": "high"}}`, `logger: level is "high"`},
		{"bad metrics", `{` + boot + `, "metrics": {"metrics_path": "/nope/m"}}`, `metrics: metrics_path is "/nope/m"`},
		{"metrics without a path", `{` + boot + `, "metrics": {"emit_id": true}}`, "metrics: missing field `metrics_path`"},
		{"mmds-config without its interface", `{` + boot + `, "mmds-config": {"network_interfaces": ["eth0"]}}`, `mmds-config/network_interfaces is "eth0": want the id of a network interface`},
		{"CPU template", `{` + boot + `, "cpu-config": {"msr_modifiers": [{"addr": "0x1", "bitmap": "0b1"}]}}`, ""},
		{"CPU template's field", `{` + boot + `, "cpu-config": {"msr_modifiers": [{"addr": "0x1"}]}}`, "cpu-config: missing field `msr_modifiers[0]/bitmap` at line 1"},
		{"CPU template in a file", `{` + boot + `, "cpu-config": "$D/template"}`, ""},
		{"both templates", `{"cpu-config": "$D/template", ` + boot + `, "machine-config": {"vcpu_count": 1, "mem_size_mib": 64, "cpu_template": "T2"}}`, ""},
		{"CPU template's file", `{` + boot + `, "cpu-config": "/nope"}`, `cpu-config is "/nope": want a readable file (no such file or directory)`},
		{"CPU template in a folder", `{` + boot + `, "cpu-config": "$D"}`, "want a readable file"},
		{"no CPU template in a file", `{` + boot + `, "cpu-config": "$D/disk"}`, "invalid character 'd' looking for beginning of value at line 1 column 1"},
		{"wrong CPU template in a file", `{` + boot + `, "cpu-config": "$D/wrong"}`, "unknown field `x`, expected one of `cpuid_modifiers`"},
		{"unknown field", `{` + boot + `, "vsock": {"guest_cid": 3, "uds_path": "v", "cid": 3}}`, "vsock: unknown field `cid`"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			b := newBench(t)
			for name, text := range map[string]string{"template": `{"msr_modifiers": [{"addr": "0x1", "bitmap": "0b1"}]}`, "wrong": `{"x": 1}`} {
				if err := os.WriteFile(b.dir+"/"+name, []byte(text), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			before := b.must(t, "GET", "/vm/config", "")
			err := b.Configure(context.Background(), []byte(strings.ReplaceAll(tt.text, "$D", b.dir)))
			if tt.fault == "" {
				if err != nil {
					t.Fatal(err)
				}
				if err := b.Start(context.Background()); err != nil || len(b.booted) != 1 {
					t.Fatalf("booted %v, %v", b.booted, err)
				}
				if c := b.booted[0].CPUConfig; (c != nil && len(c.MSRModifiers) == 1) != strings.Contains(tt.name, "template") {
					t.Errorf("booted with CPU template %+v", c)
				}
				return
			}
			if err == nil || !strings.Contains(err.Error(), tt.fault) || !errdefs.IsInvalidArgument(err) {
				t.Fatalf("got %v, want %q", err, tt.fault)
			}
			if after := b.must(t, "GET", "/vm/config", ""); after != before {
				t.Errorf("a refused document changed %s to %s", before, after)
			}
		})
	}
	t.Run("result", func(t *testing.T) {
		b := newBench(t)
		if err := b.Configure(context.Background(), []byte(strings.ReplaceAll(full, "$D", b.dir))); err != nil {
			t.Fatal(err)
		}
		vm, _ := b.control.snapshot()
		args := "console=ttyS0"
		want := config.VM{
			Machine:    config.Machine{VCPUCount: 2, MemSizeMiB: 1024, HugePages: "None"},
			BootSource: &config.BootSource{KernelImagePath: b.dir + "/vmlinux", BootArgs: &args},
			Drives: []config.Drive{
				{DriveID: "data", PathOnHost: b.dir + "/data", CacheType: "Unsafe", IOEngine: "Sync",
					RateLimiter: &config.RateLimiter{Bandwidth: &config.TokenBucket{Size: 5, OneTimeBurst: 6, RefillTime: 7}}},
				{DriveID: "rootfs", PathOnHost: b.dir + "/disk", IsRootDevice: true, IsReadOnly: true, CacheType: "Unsafe", IOEngine: "Sync"},
			},
			Filesystems: []config.Filesystem{{FSID: "s", Tag: "shared", PathOnHost: b.dir + "/shared"}},
			NetworkInterfaces: []config.NetworkInterface{{IfaceID: "eth0", HostDevName: "tap0", GuestMAC: "02:00:00:00:00:01", MTU: 1400,
				RxRateLimiter: &config.RateLimiter{Ops: &config.TokenBucket{Size: 1, RefillTime: 2}}, TxRateLimiter: &config.RateLimiter{Ops: &config.TokenBucket{Size: 3, RefillTime: 4}}}},
			Vsock:   &config.Vsock{GuestCID: 3, UDSPath: b.dir + "/v.sock"},
			Entropy: &config.Entropy{RateLimiter: &config.RateLimiter{Ops: &config.TokenBucket{Size: 8, RefillTime: 9}}},
			Balloon: &config.Balloon{AmountMiB: 512, StatsPollingIntervalS: 5, FreePageHinting: true, FreePageReporting: true},
			Serial: &config.Serial{SerialOutPath: b.dir + "/console", MaxBytes: config.DefaultSerialBytes,
				RateLimiter: &config.TokenBucket{Size: 10, RefillTime: 20}},
			MMDS: &config.MMDS{Version: "V2", NetworkInterfaces: []string{"eth0"}, IPv4Address: "169.254.170.2"},
		}
		if !reflect.DeepEqual(vm, want) {
			t.Errorf("got %+v, want %+v", vm, want)
		}
		if l := *b.loggers; len(l) != 1 || l[0].Level != "Error" || l[0].LogPath != b.dir+"/log" || !b.metrics.Wanted() {
			t.Errorf("log %+v, metrics %v", l, b.metrics.Wanted())
		}
	})
}
