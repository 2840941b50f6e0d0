package main

import (
	"context"
	"encoding/json"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// request sends a request as any client does, and gives the status.
func request(t *testing.T, sock, method, path, body string) int {
	t.Helper()
	client := http.Client{
		Timeout: 10 * time.Second,
		Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(context.Context, string, string) (net.Conn, error) {
			return net.Dial("unix", sock)
		}},
	}
	r, err := http.NewRequest(method, "http://localhost"+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	answer, err := client.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	answer.Body.Close()
	return answer.StatusCode
}

// metricLines gives a file's lines, each by group and name; the values of groups within groups are left out.
func metricLines(t *testing.T, path string) (lines []map[string]map[string]any) {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range strings.Split(strings.TrimSuffix(string(text), "\n"), "\n") {
		var all map[string]any
		if err := json.Unmarshal([]byte(l), &all); err != nil {
			t.Fatalf("%v in %q", err, l)
		}
		groups := map[string]map[string]any{}
		for k, v := range all {
			if g, ok := v.(map[string]any); ok {
				groups[k] = g
			}
		}
		lines = append(lines, groups)
	}
	return lines
}

func endInOrder(t *testing.T, p *process) {
	t.Helper()
	p.Process.Signal(syscall.SIGTERM)
	if ws, out := p.end(t); !ws.Exited() || ws.ExitStatus() != 0 || out != "" {
		t.Errorf("ended with %v:\n%s", ws, out)
	}
}

const stamp = `(?m)^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9} `

// A log that has been configured, by the command line or over the API, is in Firecracker's form.
func TestLogForm(t *testing.T) {
	tests := []struct {
		name string
		args []string
		body string // of PUT /logger
		want []string
		not  string
	}{
		{"command line", []string{"--log-path", "$LOG"}, "", []string{stamp + `\[vm-7:main\] Running fc-vmm `, stamp + `\[vm-7:fc_api\] API: request received method=GET path=/\n`, stamp + `\[vm-7:fc_api\] API: request refused error="`}, "INFO"},
		{"level and origin", []string{"--log-path=$LOG", "--show-level", "--show-log-origin"}, "",
			[]string{stamp + `\[vm-7:main:INFO:cmd/fc-vmm/observe\.go:\d+\] Running`, stamp + `\[vm-7:fc_api:INFO:pkg/vmm/api/server\.go:\d+\] API: request refused`}, "level="},
		{"module", []string{"--log-path=$LOG", "--module", "vmm/api"}, "", []string{stamp + `\[vm-7:fc_api\] API: request refused`}, "Running"},
		{"too low", []string{"--log-path=$LOG", "--level", "WARNING"}, "", nil, "request"},
		{"API", []string{"--level", "Off"}, `{"log_path": "$LOG", "show_level": true}`,
			[]string{stamp + `\[vm-7:fc_api:INFO\] API: request received method=PUT path=/nothing\n`, stamp + `\[vm-7:fc_api:INFO\] API: request refused`}, "Running"},
		{"API after the command line", []string{"--log-path", "/dev/null", "--show-log-origin"}, `{"log_path": "$LOG"}`,
			[]string{stamp + `\[vm-7:fc_api:pkg/vmm/api/server\.go:\d+\] API: request refused`}, "Running"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			sock, path := filepath.Join(dir, "fc.sock"), filepath.Join(dir, "log")
			args := []string{"--api-sock", sock, "--id", "vm-7"}
			for _, a := range tt.args {
				args = append(args, strings.ReplaceAll(a, "$LOG", path))
			}
			p := start(t, nil, args...)
			answers(t, sock)
			if tt.body != "" {
				if status := request(t, sock, "PUT", "/logger", strings.ReplaceAll(tt.body, "$LOG", path)); status != 204 {
					t.Fatalf("PUT /logger: %d", status)
				}
			}
			if status := request(t, sock, "PUT", "/nothing", "{}"); status != 400 {
				t.Errorf("PUT /nothing: %d", status)
			}
			endInOrder(t, p)
			text, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			for _, want := range tt.want {
				if !regexp.MustCompile(want).Match(text) {
					t.Errorf("no line like %q:\n%s", want, text)
				}
			}
			if tt.not != "" && strings.Contains(string(text), tt.not) {
				t.Errorf("%q is there:\n%s", tt.not, text)
			}
		})
	}
}

// Log and metrics may be named pipes that nobody reads: the API answers, and the process ends.
func TestPipesWithoutReaders(t *testing.T) {
	dir := t.TempDir()
	sock, logPipe, metricsPipe := filepath.Join(dir, "fc.sock"), filepath.Join(dir, "log"), filepath.Join(dir, "metrics")
	for _, p := range []string{logPipe, metricsPipe} {
		if err := unix.Mkfifo(p, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	p := start(t, nil, "--api-sock", sock, "--log-path", logPipe, "--metrics-path", metricsPipe)
	answers(t, sock)
	for range 600 { // 130 bytes of log each: more than the pipe takes
		if status := request(t, sock, "PUT", "/nothing/"+strings.Repeat("x", 64), "{}"); status != 400 {
			t.Fatalf("PUT /nothing: %d", status)
		}
	}
	p.Process.Signal(syscall.SIGTERM)
	if ws, out := p.end(t); !ws.Exited() || ws.ExitStatus() != 0 {
		t.Errorf("ended with %v:\n%s", ws, out)
	}
}

// The last line of metrics is written at the end, also where no guest ran; a reader of a pipe gets it.
func TestMetricsAtTheEnd(t *testing.T) {
	dir := t.TempDir()
	sock, pipe, file := filepath.Join(dir, "fc.sock"), filepath.Join(dir, "pipe"), filepath.Join(dir, "file")
	if err := unix.Mkfifo(pipe, 0o600); err != nil {
		t.Fatal(err)
	}
	r, err := os.OpenFile(pipe, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	got := make(chan []byte, 1)
	p := start(t, nil, "--api-sock", sock, "--metrics-path", pipe, "--start-time-us", "1", "--start-time-cpu-us=0", "--parent-cpu-time-us=5000000", "--log-path", "/dev/full")
	answers(t, sock)
	go func() {
		buf := make([]byte, 64<<10)
		n, _ := r.Read(buf)
		got <- buf[:n]
	}()
	if status := request(t, sock, "PUT", "/metrics", `{"metrics_path": "`+file+`"}`); status != 400 {
		t.Errorf("a second file: %d", status)
	}
	endInOrder(t, p)
	select {
	case line := <-got:
		if err := os.WriteFile(file, line, 0o600); err != nil {
			t.Fatal(err)
		}
	case <-time.After(10 * time.Second):
		t.Fatal("nothing was written")
	}
	lines := metricLines(t, file)
	last := lines[len(lines)-1]
	if us := last["api_server"]["process_startup_time_us"].(float64); us < 1 {
		t.Errorf("process_startup_time_us is %v", us)
	}
	if us := last["api_server"]["process_startup_time_cpu_us"].(float64); us < 5e6 {
		t.Errorf("process_startup_time_cpu_us is %v", us)
	}
	if last["put_api_requests"]["metrics_count"] != 1.0 || last["put_api_requests"]["metrics_fails"] != 1.0 {
		t.Errorf("%v", last["put_api_requests"])
	}
	if n := last["logger"]["missed_log_count"].(float64); n < 2 {
		t.Errorf("%v lines of log were missed, want at least two: the disk is full", n)
	}
}

func TestMaxPayloadSize(t *testing.T) {
	sock := filepath.Join(t.TempDir(), "fc.sock")
	p := start(t, nil, "--api-sock", sock, "--http-api-max-payload-size", "100", "--no-seccomp", "--level", "off")
	answers(t, sock)
	for size, want := range map[int]int{100: 204, 101: 413} {
		if status := request(t, sock, "PUT", "/entropy", "{"+strings.Repeat(" ", size-2)+"}"); status != want {
			t.Errorf("%d bytes: status %d, want %d", size, status, want)
		}
	}
	endInOrder(t, p)
}
