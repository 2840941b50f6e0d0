package vmm

import (
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"

	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/config"
	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/metrics"
	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/vmmtest"
)

// A guest does so much with each device, by its own count; the metrics say the same.
func TestKernelMetrics(t *testing.T) {
	vmmtest.NeedKVM(t)
	dir := t.TempDir()
	disk, shared, path := filepath.Join(dir, "disk"), filepath.Join(dir, "shared"), filepath.Join(dir, "metrics")
	if err := os.WriteFile(disk, make([]byte, 16<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(shared, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(shared, "file"), make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	const script = `exec >/dev/console
dd if=/dev/vda of=/dev/null iflag=direct bs=64k count=100 2>/dev/null
dd if=/dev/zero of=/dev/vda oflag=direct bs=32k count=50 2>/dev/null
sync /dev/vda
dd if=/dev/hwrng of=/dev/null bs=64 count=100 2>/dev/null
mount -t virtiofs shared /mnt; cat /mnt/file >/dev/null; umount /mnt
ip addr add 198.51.100.2/30 dev eth0; ip link set eth0 up
echo "want network"
i=0; while [ $i -lt 50 ]; do ping -c 1 -W 1 198.51.100.1 >/dev/null && break; i=$((i + 1)); done
ping -c 5 -s 1000 198.51.100.1 | grep received`
	cfg := config.VM{
		Machine:           config.Machine{VCPUCount: 2, MemSizeMiB: 128},
		BootSource:        bootSource(vmmtest.Kernel(t), vmmtest.Busybox(t, script)),
		Drives:            []config.Drive{{DriveID: "data", PathOnHost: disk, CacheType: config.CacheWriteback}},
		Filesystems:       []config.Filesystem{{FSID: "shared", Tag: "shared", PathOnHost: shared}},
		NetworkInterfaces: []config.NetworkInterface{{IfaceID: "eth0", HostDevName: "fcmetrics0"}},
		Vsock:             &config.Vsock{GuestCID: 3, UDSPath: filepath.Join(dir, "vsock")},
		Entropy:           &config.Entropy{},
	}
	r := metrics.NewRecorder("vm")
	if err := r.Configure(config.Metrics{MetricsPath: path}); err != nil {
		t.Fatal(err)
	}
	var out vmmtest.Console
	m, err := New(context.Background(), cfg, Options{Console: &out, Latencies: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		m.Close()
		if t.Failed() {
			t.Logf("console:\n%s", out.String())
		}
	})
	link, err := netlink.LinkByName("fcmetrics0")
	if err != nil {
		t.Fatal(err)
	}
	addr, err := netlink.ParseAddr("198.51.100.1/30")
	if err != nil {
		t.Fatal(err)
	}
	if err := netlink.AddrAdd(link, addr); err != nil {
		t.Fatal(err)
	}
	if err := netlink.LinkSetUp(link); err != nil {
		t.Fatal(err)
	}
	if err := m.Start(context.Background()); err != nil {
		t.Fatal(err)
	}
	r.Started(m.Metrics())
	awaitText(t, m, &out, "want network")
	if err := r.Flush(); err != nil {
		t.Error(err)
	}
	if e := waitKernel(t, m); e.Reason != PoweredOff {
		t.Errorf("ended with %v, %v", e.Reason, e.Err)
	}
	if err := r.Close(); err != nil {
		t.Error(err)
	}
	if !strings.Contains(out.String(), "5 packets received") {
		t.Error("the guest could not reach the host")
	}
	values := totals(t, path, 3)
	for _, want := range []struct {
		name        string
		least, most float64
	}{
		{"block_data.read_bytes", 100 * 64 << 10, 100*64<<10 + 4<<20}, // a kernel looks for partitions, too
		{"block_data.read_count", 100, 1000},
		{"block_data.write_bytes", 50 * 32 << 10, 50 * 32 << 10},
		{"block_data.write_count", 50, 50},
		{"block_data.flush_count", 1, 10},
		{"block_data.queue_event_count", 100, 2000},
		{"block_data.execute_fails", 0, 0},
		{"block_data.read_agg.sum_us", 100, 1e9},
		{"block_data.read_agg.min_us", 1, 1e9},
		{"block.write_count", 50, 50},
		{"entropy.entropy_bytes", 6400, 1 << 20}, // Linux asks for some itself
		{"entropy.entropy_event_count", 1, 1000},
		{"fs_shared.rx_bytes_count", 1 << 20, 3 << 20},
		{"fs_shared.request_count", 5, 1000},
		{"net_eth0.tx_bytes_count", 5 * 1042, 1 << 20},
		{"net_eth0.rx_bytes_count", 5 * 1042, 1 << 20},
		{"net_eth0.tx_packets_count", 6, 1000},
		{"net_eth0.rx_packets_count", 6, 1000},
		{"net.tx_malformed_frames", 0, 0},
		{"net_eth0.tap_write_agg.sum_us", 1, 1e9},
		{"vsock.activate_fails", 0, 0},
		{"interrupts.triggers", 150, 1e6},
		{"vcpu.exit_mmio_write", 10, 1e6},
		{"vcpu.exit_mmio_read", 10, 1e6},
		{"vcpu.exit_io_out", 50, 1e7},
		{"vcpu.exit_io_in", 10, 1e7},
		{"vcpu.exit_io_out_agg.sum_us", 1, 1e10},
		{"vcpu.failures", 0, 0},
		{"uart.write_count", float64(len(out.String())), float64(len(out.String()))},
	} {
		if v, ok := values[want.name]; !ok || v < want.least || v > want.most {
			t.Errorf("%s is %v (%v), want %v to %v", want.name, v, ok, want.least, want.most)
		}
	}
}

// totals adds up a file's lines, of which there are so many and one for each minute, by the values' names; gauges are those of the last line.
func totals(t *testing.T, path string, lines int) map[string]float64 {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	all := strings.Split(strings.TrimSuffix(string(text), "\n"), "\n")
	if len(all) < lines {
		t.Errorf("%d lines, want at least %d", len(all), lines)
	}
	kinds, values := metrics.Kinds(), map[string]float64{}
	var add func(name, kind string, v any)
	add = func(name, kind string, v any) {
		switch v := v.(type) {
		case float64:
			if kinds[kind] == metrics.Level {
				values[name] = v
			} else {
				values[name] += v
			}
		case map[string]any:
			for k, v := range v {
				add(name+"."+k, kind+"."+k, v)
			}
		}
	}
	for _, l := range all {
		var groups map[string]any
		if err := json.Unmarshal([]byte(l), &groups); err != nil {
			t.Fatal(err)
		}
		for name, g := range groups {
			kind, _, ok := metrics.Device(name)
			if !ok {
				kind = name
			}
			add(name, kind, g)
		}
	}
	return values
}

// Nothing is timed that nobody asked for, and an exit is counted as what it was.
func TestCountExit(t *testing.T) {
	for _, timed := range []bool{false, true} {
		v := &vcpu{timed: timed}
		c := &v.counts
		v.countExit(&c.ExitIOIn, &c.ExitIOInAgg, &c.ExitIOOut, &c.ExitIOOutAgg, true).Stop()
		v.countExit(&c.ExitIOIn, &c.ExitIOInAgg, &c.ExitIOOut, &c.ExitIOOutAgg, true).Stop()
		runs := v.countExit(&c.ExitIOIn, &c.ExitIOInAgg, &c.ExitIOOut, &c.ExitIOOutAgg, false)
		if c.ExitIOOut.Count() != 2 || c.ExitIOIn.Count() != 1 || runs != (metrics.Timer{}) != timed {
			t.Errorf("timed %v: %d out, %d in", timed, c.ExitIOOut.Count(), c.ExitIOIn.Count())
		}
	}
}
