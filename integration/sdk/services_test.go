package sdk

import (
	"bufio"
	"context"
	"encoding/json"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	firecracker "github.com/firecracker-microvm/firecracker-go-sdk"
)

// startOrSkip starts a machine, and skips the test as long as fc-vmm does not know an endpoint.
func (m *machine) startOrSkip(t *testing.T, endpoint string) {
	t.Helper()
	err := m.Start(context.Background())
	if err != nil && strings.Contains(err.Error(), "Invalid request method and/or path: PUT "+endpoint+".") {
		t.Skipf("fc-vmm does not have %s yet", endpoint)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// TestMMDS is the metadata service: the host's side by the SDK, the guest's from inside.
func TestMMDS(t *testing.T) {
	found := needMachine(t)
	socket := filepath.Join(t.TempDir(), "v.sock")
	m := newMachine(t, found.kernel, func(c *firecracker.Config) {
		c.InitrdPath = initrd(t)
		c.MmdsVersion = firecracker.MMDSv2
		c.VsockDevices = []firecracker.VsockDevice{{ID: "vsock0", Path: socket, CID: 3}}
		c.NetworkInterfaces = firecracker.NetworkInterfaces{{
			AllowMMDS: true,
			StaticConfiguration: &firecracker.StaticNetworkConfiguration{HostDevName: "fcsdk1", MacAddress: "06:00:ac:10:01:02",
				IPConfiguration: &firecracker.IPConfiguration{IPAddr: net.IPNet{IP: net.IPv4(172, 16, 1, 2), Mask: net.CIDRMask(24, 32)}, Gateway: net.IPv4(172, 16, 1, 1)}},
		}}
	})
	m.Handlers.FcInit = m.Handlers.FcInit.Append(firecracker.NewSetMetadataHandler(map[string]any{"a": map[string]any{"b": "first"}}))
	m.startOrSkip(t, "/mmds/config")
	ctx := context.Background()
	if got := ask(t, socket, "mmds /a/b"); got != "first <nil>" {
		t.Errorf("the guest got %q", got)
	}
	if err := m.UpdateMetadata(ctx, map[string]any{"a": map[string]any{"b": "second", "c": "d"}}); err != nil {
		t.Fatal(err)
	}
	var data map[string]map[string]string
	if err := m.GetMetadata(ctx, &data); err != nil || data["a"]["b"] != "second" || data["a"]["c"] != "d" {
		t.Errorf("the data are %v, %v", data, err)
	}
	if got := ask(t, socket, "mmds /a/b"); got != "second <nil>" {
		t.Errorf("the guest got %q", got)
	}
}

// TestFifos has log and metrics come through named pipes that the SDK makes, and of which it reads the log.
func TestFifos(t *testing.T) {
	found := needMachine(t)
	dir := t.TempDir()
	log := &output{}
	m := newMachine(t, found.kernel, func(c *firecracker.Config) {
		c.InitrdPath = initrd(t)
		c.LogFifo, c.LogLevel, c.FifoLogWriter = filepath.Join(dir, "log"), "Info", log
		c.MetricsFifo = filepath.Join(dir, "metrics")
	})
	m.startOrSkip(t, "/logger")
	f, err := os.OpenFile(m.Cfg.MetricsFifo, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	f.SetReadDeadline(time.Now().Add(bound))
	line, err := bufio.NewReader(f).ReadString('\n')
	var metrics map[string]any
	if err == nil {
		err = json.Unmarshal([]byte(line), &metrics)
	}
	if err != nil || metrics["utc_timestamp_ms"] == nil {
		t.Errorf("metrics: %q, %v", line, err)
	}
	m.console.await(t, "guest: up")
	if err := m.StopVMM(); err != nil {
		t.Fatal(err)
	}
	if err := m.end(t); err != nil {
		t.Errorf("ended with %v", err)
	}
	log.await(t, "told to stop")
}
