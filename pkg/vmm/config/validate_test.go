package config

import (
	"errors"
	"reflect"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
)

func ptr[T any](v T) *T { return &v }

func limiter() *RateLimiter {
	return &RateLimiter{Bandwidth: &TokenBucket{Size: 1 << 20, OneTimeBurst: 1 << 30, RefillTime: 100}, Ops: &TokenBucket{Size: 100, RefillTime: 1000}}
}

func valid() VM {
	return VM{
		Machine: Machine{VCPUCount: 2, MemSizeMiB: 256},
		CPUConfig: &CPUConfig{KVMCapabilities: []KVMCapability{{Number: 56, Remove: true}},
			CPUIDModifiers: []CPUIDModifier{{Leaf: 7, Flags: 1, Modifiers: []RegisterModifier{{Register: "ebx", Bitmap: Bitmap[uint32]{Mask: 6, Value: 2}}}}},
			MSRModifiers:   []MSRModifier{{Addr: 0x10a, Bitmap: Bitmap[uint64]{Mask: 1 << 40}}}},
		BootSource:  &BootSource{KernelImagePath: "vmlinux", InitrdPath: "initrd", BootArgs: ptr("console=ttyS0")},
		Drives:      []Drive{{DriveID: "rootfs", PathOnHost: "root.img", IsRootDevice: true, PartUUID: "0eaa91a0-01", RateLimiter: limiter()}, {DriveID: "b", PathOnHost: "b", RateLimiter: limiter()}},
		Filesystems: []Filesystem{{FSID: "shared", Tag: "shared", PathOnHost: "shared"}},
		NetworkInterfaces: []NetworkInterface{{IfaceID: "eth0", HostDevName: "tap0", GuestMAC: "02:00:00:00:00:01", MTU: 1400, RxRateLimiter: limiter(), TxRateLimiter: limiter()},
			{IfaceID: "b", HostDevName: "tap1", RxRateLimiter: limiter(), TxRateLimiter: limiter()}},
		Vsock:   &Vsock{GuestCID: 3, UDSPath: "vsock.sock"},
		Entropy: &Entropy{RateLimiter: limiter()},
		Serial:  &Serial{SerialOutPath: "console.log", RateLimiter: &TokenBucket{Size: 1000, RefillTime: 100}},
		MMDS:    &MMDS{Version: MMDSV2, NetworkInterfaces: []string{"eth0", "b"}, IPv4Address: "169.254.1.0"},
		Balloon: &Balloon{AmountMiB: 64, StatsPollingIntervalS: 1},
	}
}

func TestValidate(t *testing.T) {
	long := strings.Repeat("x", 5000)
	tests := []struct {
		name   string
		change func(*VM)
		field  string // of the error; "" if the machine is good
		value  string // part of the error's value
	}{
		{"good", func(*VM) {}, "", ""},
		{"smt", func(vm *VM) { vm.Machine.SMT = true }, "", ""},
		{"smt and one vCPU", func(vm *VM) { vm.Machine.SMT, vm.Machine.VCPUCount = true, 1 }, "", ""},
		{"a named CPU template", func(vm *VM) { vm.Machine.CPUTemplate, vm.CPUConfig = "T2CL", nil }, "", ""},
		{"no CPU template by name", func(vm *VM) { vm.Machine.CPUTemplate = "None" }, "", ""},
		{"32 vCPUs", func(vm *VM) { vm.Machine.VCPUCount = 32 }, "", ""},
		{"64 MiB", func(vm *VM) { vm.Machine.MemSizeMiB = 64 }, "", ""},
		{"largest RAM", func(vm *VM) { vm.Machine.MemSizeMiB = MaxMemMiB }, "", ""},
		{"kernel only", func(vm *VM) { *vm = VM{Machine: vm.Machine, BootSource: &BootSource{KernelImagePath: "k"}} }, "", ""},
		{"empty command line", func(vm *VM) { vm.BootSource.BootArgs = ptr("") }, "", ""},
		{"longest command line", func(vm *VM) { vm.BootSource.BootArgs = ptr(long[:MaxBootArgs]) }, "", ""},
		{"longest ids", func(vm *VM) { vm.Drives[0].DriveID = long[:64]; vm.Filesystems[0].Tag = long[:36] }, "", ""},
		{"highest cid", func(vm *VM) { vm.Vsock.GuestCID = MaxGuestCID }, "", ""},
		{"longest uds", func(vm *VM) { vm.Vsock.UDSPath = long[:96] }, "", ""},
		{"writeback", func(vm *VM) { vm.Drives[0].CacheType = "Writeback"; vm.Drives[0].IOEngine = "Sync" }, "", ""},

		{"async", func(vm *VM) { vm.Drives[0].IOEngine = "Async" }, "", ""},
		{"longest name of a TAP", func(vm *VM) { vm.NetworkInterfaces[0].HostDevName = long[:15] }, "", ""},
		{"least MTU", func(vm *VM) { vm.NetworkInterfaces[0].MTU = 68 }, "", ""},
		{"largest MTU", func(vm *VM) { vm.NetworkInterfaces[0].MTU = 65535 }, "", ""},
		{"MAC in capitals", func(vm *VM) { vm.NetworkInterfaces[0].GuestMAC = "AA:BB:CC:DD:EE:0F" }, "", ""},

		{"no vCPU", func(vm *VM) { vm.Machine.VCPUCount = 0 }, "vcpu_count", "0"},
		{"negative vCPUs", func(vm *VM) { vm.Machine.VCPUCount = -1 }, "vcpu_count", "-1"},
		{"33 vCPUs", func(vm *VM) { vm.Machine.VCPUCount = 33 }, "vcpu_count", "33"},
		{"63 MiB", func(vm *VM) { vm.Machine.MemSizeMiB = 63 }, "mem_size_mib", "63"},
		{"too much RAM", func(vm *VM) { vm.Machine.MemSizeMiB = MaxMemMiB + 1 }, "mem_size_mib", "261121"},
		{"smt and an odd number", func(vm *VM) { vm.Machine.SMT, vm.Machine.VCPUCount = true, 3 }, "vcpu_count", "3"},
		{"CPU template", func(vm *VM) { vm.Machine.CPUTemplate = "t2" }, "cpu_template", `"t2"`},
		{"two CPU templates", func(vm *VM) { vm.Machine.CPUTemplate = "T2" }, "cpu_template", `"T2"`},
		{"flags of a leaf", func(vm *VM) { vm.CPUConfig.CPUIDModifiers[0].Flags = 8 }, "cpu-config/cpuid_modifiers[0]/flags", "8"},
		{"register", func(vm *VM) { vm.CPUConfig.CPUIDModifiers[0].Modifiers[0].Register = "EAX" }, "cpu-config/cpuid_modifiers[0]/modifiers[0]/register", `"EAX"`},
		{"dirty pages", func(vm *VM) { vm.Machine.TrackDirtyPages = true }, "track_dirty_pages", "true"},
		{"huge pages", func(vm *VM) { vm.Machine.HugePages = "1G" }, "huge_pages", `"1G"`},
		{"huge pages from the pool, and a balloon", func(vm *VM) { vm.Machine.HugePages, vm.Balloon = "2M", &Balloon{} }, "huge_pages", `"2M"`},
		{"half a huge page", func(vm *VM) { vm.Machine.HugePages, vm.Machine.MemSizeMiB = "2M", 129 }, "mem_size_mib", `129`},
		{"no boot source", func(vm *VM) { vm.BootSource = nil }, "boot-source", ""},
		{"no kernel", func(vm *VM) { vm.BootSource.KernelImagePath = "" }, "kernel_image_path", ""},
		{"kernel with NUL", func(vm *VM) { vm.BootSource.KernelImagePath = "a\x00b" }, "kernel_image_path", `"a\x00b"`},
		{"long initrd", func(vm *VM) { vm.BootSource.InitrdPath = long }, "initrd_path", "(5000 bytes)"},
		{"long command line", func(vm *VM) { vm.BootSource.BootArgs = ptr(long[:MaxBootArgs+1]) }, "boot_args", "(2048 bytes)"},
		{"line feed", func(vm *VM) { vm.BootSource.BootArgs = ptr("a\nb") }, "boot_args", "0x0a at offset 1"},
		{"NUL", func(vm *VM) { vm.BootSource.BootArgs = ptr("a\x00") }, "boot_args", "0x00"},
		{"not ASCII", func(vm *VM) { vm.BootSource.BootArgs = ptr("é") }, "boot_args", "0xc3"},
		{"no drive id", func(vm *VM) { vm.Drives[0].DriveID = "" }, "drive_id", ""},
		{"drive id with slash", func(vm *VM) { vm.Drives[0].DriveID = "a/b" }, "drive_id", "a/b"},
		{"long drive id", func(vm *VM) { vm.Drives[0].DriveID = long[:65] }, "drive_id", "(65 bytes)"},
		{"same drive id", func(vm *VM) { vm.Drives[1].DriveID = "rootfs" }, "drive_id", "rootfs"},
		{"two roots", func(vm *VM) { vm.Drives[1].IsRootDevice = true }, "drives/b/is_root_device", "true"},
		{"no drive path", func(vm *VM) { vm.Drives[1].PathOnHost = "" }, "drives/b/path_on_host", ""},
		{"cache type", func(vm *VM) { vm.Drives[1].CacheType = "unsafe" }, "drives/b/cache_type", "unsafe"},
		{"io engine", func(vm *VM) { vm.Drives[1].IOEngine = "async" }, "drives/b/io_engine", "async"},
		{"partuuid", func(vm *VM) { vm.Drives[0].PartUUID = "0 init=/evil" }, "drives/rootfs/partuuid", "evil"},
		{"fs id", func(vm *VM) { vm.Filesystems[0].FSID = "a-b" }, "fs_id", "a-b"},
		{"no tag", func(vm *VM) { vm.Filesystems[0].Tag = "" }, "filesystems/shared/tag", ""},
		{"long tag", func(vm *VM) { vm.Filesystems[0].Tag = long[:37] }, "filesystems/shared/tag", "x"},
		{"tag with NUL", func(vm *VM) { vm.Filesystems[0].Tag = "a\x00" }, "filesystems/shared/tag", "a"},
		{"same fs id", func(vm *VM) { vm.Filesystems = append(vm.Filesystems, vm.Filesystems[0]) }, "fs_id", "shared"},
		{"same tag", func(vm *VM) {
			vm.Filesystems = append(vm.Filesystems, Filesystem{FSID: "b", Tag: "shared", PathOnHost: "x"})
		}, "filesystems/b/tag", "shared"},
		{"highest MMDS address", func(vm *VM) { vm.MMDS.IPv4Address = "169.254.254.255" }, "", ""},
		{"MMDS by default", func(vm *VM) { vm.MMDS = &MMDS{NetworkInterfaces: []string{"b", "b"}} }, "", ""},
		{"MMDS version", func(vm *VM) { vm.MMDS.Version = "v1" }, "mmds-config/version", `"v1"`},
		{"MMDS without interfaces", func(vm *VM) { vm.MMDS.NetworkInterfaces = nil }, "mmds-config/network_interfaces", "[]"},
		{"MMDS on an unknown interface", func(vm *VM) { vm.MMDS.NetworkInterfaces[1] = "eth1" }, "mmds-config/network_interfaces", `"eth1"`},
		{"MMDS address not link-local", func(vm *VM) { vm.MMDS.IPv4Address = "10.0.0.1" }, "mmds-config/ipv4_address", "10.0.0.1"},
		{"MMDS address too low", func(vm *VM) { vm.MMDS.IPv4Address = "169.254.0.255" }, "mmds-config/ipv4_address", "169.254.0.255"},
		{"MMDS address too high", func(vm *VM) { vm.MMDS.IPv4Address = "169.254.255.0" }, "mmds-config/ipv4_address", "169.254.255.0"},
		{"MMDS address of IPv6", func(vm *VM) { vm.MMDS.IPv4Address = "fe80::1" }, "mmds-config/ipv4_address", "fe80::1"},
		{"no MMDS address", func(vm *VM) { vm.MMDS.IPv4Address = "169.254.1.01" }, "mmds-config/ipv4_address", "169.254.1.01"},
		{"iface id", func(vm *VM) { vm.NetworkInterfaces[0].IfaceID = "a-b" }, "iface_id", "a-b"},
		{"same iface id", func(vm *VM) { vm.NetworkInterfaces[1].IfaceID = "eth0" }, "iface_id", "eth0"},
		{"no TAP", func(vm *VM) { vm.NetworkInterfaces[1].HostDevName = "" }, "network-interfaces/b/host_dev_name", ""},
		{"long name of a TAP", func(vm *VM) { vm.NetworkInterfaces[1].HostDevName = long[:16] }, "network-interfaces/b/host_dev_name", "x"},
		{"TAP with slash", func(vm *VM) { vm.NetworkInterfaces[1].HostDevName = "a/b" }, "network-interfaces/b/host_dev_name", "a/b"},
		{"TAP with space", func(vm *VM) { vm.NetworkInterfaces[1].HostDevName = "a b" }, "network-interfaces/b/host_dev_name", "a b"},
		{"TAP with tab", func(vm *VM) { vm.NetworkInterfaces[1].HostDevName = "a\tb" }, "network-interfaces/b/host_dev_name", `"a\tb"`},
		{"TAP not in ASCII", func(vm *VM) { vm.NetworkInterfaces[1].HostDevName = "tép" }, "network-interfaces/b/host_dev_name", "tép"},
		{"TAP by pattern", func(vm *VM) { vm.NetworkInterfaces[1].HostDevName = "tap%d" }, "network-interfaces/b/host_dev_name", "tap%d"},
		{"same TAP", func(vm *VM) { vm.NetworkInterfaces[1].HostDevName = "tap0" }, "network-interfaces/b/host_dev_name", "tap0"},
		{"MAC without colons", func(vm *VM) { vm.NetworkInterfaces[1].GuestMAC = "020000000001" }, "network-interfaces/b/guest_mac", "020000000001"},
		{"short MAC", func(vm *VM) { vm.NetworkInterfaces[1].GuestMAC = "02:00:00:00:01" }, "network-interfaces/b/guest_mac", "02"},
		{"MAC of long numbers", func(vm *VM) { vm.NetworkInterfaces[1].GuestMAC = "02:00:00:00:00:001" }, "network-interfaces/b/guest_mac", "001"},
		{"multicast MAC", func(vm *VM) { vm.NetworkInterfaces[1].GuestMAC = "01:00:5e:00:00:01" }, "network-interfaces/b/guest_mac", "5e"},
		{"zero MAC", func(vm *VM) { vm.NetworkInterfaces[1].GuestMAC = "00:00:00:00:00:00" }, "network-interfaces/b/guest_mac", "00"},
		{"same MAC", func(vm *VM) {
			vm.NetworkInterfaces[0].GuestMAC, vm.NetworkInterfaces[1].GuestMAC = "0a:00:00:00:00:01", "0A:00:00:00:00:01"
		}, "network-interfaces/b/guest_mac", "0A"},
		{"small MTU", func(vm *VM) { vm.NetworkInterfaces[1].MTU = 67 }, "network-interfaces/b/mtu", "67"},
		{"large MTU", func(vm *VM) { vm.NetworkInterfaces[1].MTU = 65536 }, "network-interfaces/b/mtu", "65536"},
		{"limits of a limiter", func(vm *VM) {
			*vm.Drives[0].RateLimiter = RateLimiter{Bandwidth: &TokenBucket{Size: 1<<64 - 1, OneTimeBurst: 1<<64 - 1, RefillTime: MaxRefillTime}, Ops: &TokenBucket{}}
		}, "", ""},
		{"refill time of a drive", func(vm *VM) { vm.Drives[0].RateLimiter.Bandwidth.RefillTime = MaxRefillTime + 1 }, "drives/rootfs/rate_limiter/bandwidth/refill_time", "9223372036855"},
		{"refill time of an interface, rx", func(vm *VM) { vm.NetworkInterfaces[1].RxRateLimiter.Ops.RefillTime = 1 << 63 }, "network-interfaces/b/rx_rate_limiter/ops/refill_time", "9223372036854775808"},
		{"refill time of an interface, tx", func(vm *VM) { vm.NetworkInterfaces[1].TxRateLimiter.Ops.RefillTime = 1 << 63 }, "network-interfaces/b/tx_rate_limiter/ops/refill_time", "9223372036854775808"},
		{"refill time of the entropy device", func(vm *VM) { vm.Entropy.RateLimiter.Ops.RefillTime = 1 << 63 }, "entropy/rate_limiter/ops/refill_time", "9223372036854775808"},
		{"cid 2", func(vm *VM) { vm.Vsock.GuestCID = 2 }, "guest_cid", "2"},
		{"cid any", func(vm *VM) { vm.Vsock.GuestCID = 1<<32 - 1 }, "guest_cid", "4294967295"},
		{"no uds", func(vm *VM) { vm.Vsock.UDSPath = "" }, "uds_path", ""},
		{"long uds", func(vm *VM) { vm.Vsock.UDSPath = long[:97] }, "uds_path", "(97 bytes)"},
		{"abstract uds", func(vm *VM) { vm.Vsock.UDSPath = "@v" }, "uds_path", "@v"},
		{"negative bound", func(vm *VM) { vm.Serial.MaxBytes = -1 }, "max_bytes", "-1"},
		{"serial limit", func(vm *VM) { vm.Serial.RateLimiter.RefillTime = MaxRefillTime + 1 }, "serial/rate_limiter/refill_time", "9223372036855"},
		{"serial path", func(vm *VM) { vm.Serial.SerialOutPath = "\x00" }, "serial_out_path", `"\x00"`},
		{"largest balloon", func(vm *VM) { *vm.Balloon = Balloon{AmountMiB: 256, StatsPollingIntervalS: 65535} }, "", ""},
		{"balloon larger than memory", func(vm *VM) { vm.Balloon.AmountMiB = 257 }, "balloon/amount_mib", "257"},
		{"negative balloon", func(vm *VM) { vm.Balloon.AmountMiB = -1 }, "balloon/amount_mib", "-1"},
		{"balloon beyond any memory", func(vm *VM) { vm.Balloon.AmountMiB = MaxMemMiB + 1 }, "balloon/amount_mib", "261121"},
		{"negative interval", func(vm *VM) { vm.Balloon.StatsPollingIntervalS = -1 }, "balloon/stats_polling_interval_s", "-1"},
		{"long interval", func(vm *VM) { vm.Balloon.StatsPollingIntervalS = 65536 }, "balloon/stats_polling_interval_s", "65536"},
		{"too many devices", func(vm *VM) {
			for i := range MaxDevices {
				vm.Filesystems = append(vm.Filesystems, Filesystem{FSID: long[:i+1], Tag: long[:i+1], PathOnHost: "x"})
			}
		}, "number of devices (drives, filesystems, network interfaces, vsock, entropy, balloon)", "27"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			vm := valid()
			tt.change(&vm)
			err := vm.Validate()
			if tt.field == "" {
				if err != nil {
					t.Fatal(err)
				}
				return
			}
			var fe *FieldError
			if !errors.As(err, &fe) || fe.Field != tt.field || !strings.Contains(fe.Value, tt.value) || fe.Want == "" {
				t.Fatalf("got %v, want an error about %s with %q", err, tt.field, tt.value)
			}
			if !errdefs.IsInvalidArgument(err) {
				t.Errorf("%v is not of the class invalid argument", err)
			}
			if len(err.Error()) > 300 || strings.ContainsRune(err.Error(), '\n') {
				t.Errorf("not a short line: %q", err)
			}
		})
	}
}

func TestApplyDefaults(t *testing.T) {
	vm := VM{BootSource: &BootSource{KernelImagePath: "k"}, Drives: []Drive{{DriveID: "a", PathOnHost: "a"}}, Serial: &Serial{}}
	vm.ApplyDefaults()
	want := VM{
		Machine:    Machine{VCPUCount: 1, MemSizeMiB: 128, HugePages: "None"},
		BootSource: &BootSource{KernelImagePath: "k", BootArgs: ptr(DefaultBootArgs)},
		Drives:     []Drive{{DriveID: "a", PathOnHost: "a", CacheType: "Unsafe", IOEngine: "Sync"}},
		Serial:     &Serial{MaxBytes: DefaultSerialBytes},
	}
	if !reflect.DeepEqual(vm, want) {
		t.Fatalf("got %+v, want %+v", vm, want)
	}
	if err := vm.Validate(); err != nil {
		t.Error(err)
	}
	full := valid()
	full.ApplyDefaults()
	again := full
	again.ApplyDefaults()
	if !reflect.DeepEqual(full, again) || *full.BootSource.BootArgs != "console=ttyS0" {
		t.Errorf("defaults are not stable, or override: %+v", full)
	}
}
