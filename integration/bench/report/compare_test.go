package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestCompare(t *testing.T) {
	var out strings.Builder
	r := Result{Clock: counted, Figures: []Figure{
		{"Boot/fc", "ms", 104}, {"Net/round-trip/fc", "µs", 104}, {"Boot/qemu", "ms-boot", 106}, {"Block/read/fc", "MiB/s", 94},
		{"queue.PopPush/go", "ns/op", 96}, {"Pods/1/fc", "KiB-vmm", 200}, {"New/fc", "ms", 1}, {"Nothing/fc", "ms", 0},
	}}
	other := Result{Clock: counted, Figures: []Figure{
		{"Boot/fc", "ms", 100}, {"Net/round-trip/fc", "µs", 100}, {"Boot/qemu", "ms-boot", 100}, {"Block/read/fc", "MiB/s", 100},
		{"queue.PopPush/go", "ns/op", 100}, {"Pods/1/fc", "KiB-vmm", 100}, {"Old/fc", "ms", 1}, {"Nothing/fc", "ms", 0},
	}}
	const want = `  +6.0 %  Boot/qemu ms-boot: 106, 100 in the other run
  -6.0 %  Block/read/fc MiB/s: 94, 100 in the other run
          New/fc ms: 1, not in the other run
          Old/fc ms: 1 in the other run only
4 of 8 figures in counted time are within 5 % of the other run's
`
	if err := compare(&out, r, other); err == nil || out.String() != want {
		t.Errorf("%v:\n%s", err, out.String())
	}
	if err := compare(&out, r, r); err != nil {
		t.Errorf("a run and itself: %v", err)
	}
	if err := compare(&out, r, Result{Clock: wall, Figures: r.Figures}); err == nil {
		t.Error("a run by another clock is taken")
	}
}

func TestReadResult(t *testing.T) {
	dir := t.TempDir()
	for text, want := range map[string]string{
		``: "unexpected end", `{"figures": []}`: "no figures", `{"figures": [{"name": "Boot/fc", "unit": "ms", "value": 1}]}`: "",
	} {
		path := filepath.Join(dir, "bench.json")
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := readResult(path); (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q", text, err, want)
		}
	}
}
