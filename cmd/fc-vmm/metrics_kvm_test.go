package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/config"
	"github.com/fcshim/containerd-shim-fc-v2/pkg/vmm/vmmtest"
)

// sum adds up a counter over lines.
func sum(lines []map[string]map[string]any, group, name string) (n float64) {
	for _, l := range lines {
		v, _ := l[group][name].(float64)
		n += v
	}
	return n
}

// However the guest ends, the lines of metrics add up to what it did: one at the start, one at the end. The file names all of it.
func TestGuestMetrics(t *testing.T) {
	vmmtest.NeedKVM(t)
	for _, tt := range ends {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			file, path := filepath.Join(dir, "vm.json"), filepath.Join(dir, "metrics")
			text := fmt.Sprintf(`{"boot-source": {"kernel_image_path": %q}, "machine-config": {"vcpu_count": 2, "mem_size_mib": 64},
				"metrics": {"metrics_path": %q, "emit_id": true}, "logger": {"log_path": %q, "level": "Info"},
				"serial": {"serial_out_path": %q, "rate_limiter": {"size": 3, "one_time_burst": 1, "refill_time": 1000000000}}}`,
				kernel(t, "hello", append(tt.code, spin...)...), path, filepath.Join(dir, "log"), filepath.Join(dir, "console"))
			if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
			ws, out := start(t, nil, "--no-api", "--config-file", file).end(t)
			if !ws.Exited() || ws.ExitStatus() != tt.status {
				t.Errorf("ended with %v, want status %d:\n%s", ws, tt.status, out)
			}
			lines := metricLines(t, path)
			if len(lines) < 2 { // one more for each minute
				t.Errorf("%d lines, want 2", len(lines))
			}
			resets, exits, failures := 0.0, 6.0, 0.0
			switch tt.name {
			case "reboot":
				resets = 1
			case "triple fault":
				exits, failures = 5, 1
			}
			for _, want := range []struct {
				group, name string
				n           float64
			}{
				{"uart", "write_count", 4}, {"uart", "rate_limiter_dropped_bytes", 1}, {"i8042", "reset_count", resets},
				{"vcpu", "exit_io_out", exits}, {"vcpu", "exit_io_in", 0}, {"vcpu", "failures", failures},
			} {
				if n := sum(lines, want.group, want.name); n != want.n {
					t.Errorf("%s.%s is %v, want %v", want.group, want.name, n, want.n)
				}
			}
			lastWords, err := os.ReadFile(filepath.Join(dir, "log"))
			if err != nil || !strings.Contains(string(lastWords), "[anonymous-instance:main] machine has ended ") {
				t.Errorf("log %q, %v", lastWords, err)
			}
			if text, err := os.ReadFile(filepath.Join(dir, "console")); err != nil || string(text) != "hell" {
				t.Errorf("console %q, %v: want what the limit lets through", text, err)
			}
		})
	}
}

// A guest that runs: metrics on request, none of the log's or the metrics' settings may change any more, and a line at SIGTERM, also into a pipe
// that nobody reads until then.
func TestMetricsWhileRunning(t *testing.T) {
	vmmtest.NeedKVM(t)
	for _, pipe := range []bool{false, true} {
		t.Run(fmt.Sprintf("pipe=%v", pipe), func(t *testing.T) {
			dir := t.TempDir()
			sock, path := filepath.Join(dir, "fc.sock"), filepath.Join(dir, "metrics")
			if pipe {
				if err := unix.Mkfifo(path, 0o600); err != nil {
					t.Fatal(err)
				}
			}
			logPath := filepath.Join(dir, "log")
			p := start(t, nil, "--api-sock", sock, "--log-path", logPath)
			c := answers(t, sock)
			ctx := context.Background()
			if status := request(t, sock, "PUT", "/metrics", `{"metrics_path": "`+path+`"}`); status != 204 {
				t.Fatalf("PUT /metrics: %d", status)
			}
			if err := c.PutBootSource(ctx, config.BootSource{KernelImagePath: kernel(t, "", spin...)}); err != nil {
				t.Fatal(err)
			}
			if err := c.Start(ctx); err != nil {
				t.Fatal(err)
			}
			if err := c.Pause(ctx); err != nil {
				t.Fatal(err)
			}
			for path, body := range map[string]string{"/metrics": `{"metrics_path": "x"}`, "/logger": `{}`, "/serial": `{}`} {
				if status := request(t, sock, "PUT", path, body); status != 400 {
					t.Errorf("PUT %s after the start: %d", path, status)
				}
			}
			if status := request(t, sock, "PUT", "/actions", `{"action_type": "FlushMetrics"}`); status != 204 {
				t.Errorf("FlushMetrics: %d", status)
			}
			var r *os.File
			if pipe {
				var err error
				if r, err = os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0); err != nil {
					t.Fatal(err)
				}
				defer r.Close()
			}
			p.Process.Signal(syscall.SIGTERM)
			if ws, out := p.end(t); !ws.Exited() || ws.ExitStatus() != 0 {
				t.Fatalf("ended with %v:\n%s", ws, out)
			}
			if pipe {
				buf := make([]byte, 256<<10)
				n, err := r.Read(buf)
				if err != nil {
					t.Fatal(err)
				}
				path = filepath.Join(dir, "copy")
				if err := os.WriteFile(path, buf[:n], 0o600); err != nil {
					t.Fatal(err)
				}
			}
			if words, err := os.ReadFile(logPath); err != nil || !strings.Contains(string(words), "[anonymous-instance:main] machine has ended ") {
				t.Errorf("log %q, %v: the machine's lines are not the API's", words, err)
			}
			lines := metricLines(t, path)
			if len(lines) < 3 { // one more for each minute
				t.Fatalf("%d lines, want 3: start, request, end", len(lines))
			}
			last := lines[len(lines)-1]
			if us, _ := last["latencies_us"]["vmm_pause_vm"].(float64); us < 1 {
				t.Errorf("latencies: %v", last["latencies_us"])
			}
			if n := sum(lines, "put_api_requests", "actions_count"); n != 2 {
				t.Errorf("%v actions, want 2", n)
			}
			if n := sum(lines, "put_api_requests", "logger_fails"); n != 1 {
				t.Errorf("%v failures to configure the log, want 1", n)
			}
		})
	}
}
