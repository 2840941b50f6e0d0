package main

import (
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"testing"
)

// What whoever started fc-vmm says of the start's time is in the log, counted as Firecracker counts it.
func TestStartupTimes(t *testing.T) {
	const far = "18446744073709551615"
	tests := []struct {
		name             string
		args             []string
		wallMin, wallMax int // of process_startup_time_us; -1: not there
		cpuMin, cpuMax   int
	}{
		{"nothing", nil, -1, -1, -1, -1},
		{"wall", []string{"--start-time-us", "1"}, 1, 1 << 60, -1, -1},
		{"all", []string{"--start-time-us=1", "--start-time-cpu-us=0", "--parent-cpu-time-us=5000000"}, 1, 1 << 60, 5000000, 1 << 60},
		{"in the future", []string{"--start-time-us", far, "--start-time-cpu-us", far}, 0, 0, 0, 0},
		{"parent only", []string{"--parent-cpu-time-us=5"}, -1, -1, -1, -1},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			// It ends for want of a kernel, after its start.
			path := filepath.Join(t.TempDir(), "vm.json")
			if err := os.WriteFile(path, []byte("{}"), 0o600); err != nil {
				t.Fatal(err)
			}
			_, out := start(t, nil, append(tt.args, "--no-api", "--config-file", path)...).end(t)
			for _, f := range []struct {
				name     string
				min, max int
			}{{"process_startup_time_us", tt.wallMin, tt.wallMax}, {"process_startup_time_cpu_us", tt.cpuMin, tt.cpuMax}} {
				found := regexp.MustCompile(f.name + `=(\d+)`).FindStringSubmatch(out)
				if (found != nil) != (f.min >= 0) {
					t.Errorf("%s is there: %v, want %v:\n%s", f.name, found != nil, f.min >= 0, out)
				} else if found != nil {
					if n, err := strconv.Atoi(found[1]); err != nil || n < f.min || n > f.max {
						t.Errorf("%s is %s, want %d to %d", f.name, found[1], f.min, f.max)
					}
				}
			}
		})
	}
}
