package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestCompare(t *testing.T) {
	var out strings.Builder
	far := compare(&out, []Figure{
		{"Boot/fc", "ms", 104}, {"Net/round-trip/fc", "µs", 104}, {"Boot/qemu", "ms-boot", 106}, {"Block/read/fc", "MiB/s", 94}, {"queue.PopPush/go", "ns/op", 96},
		{"Pods/1/fc", "KiB-vmm", 200}, {"New/fc", "ms", 1},
	}, []Figure{
		{"Boot/fc", "ms", 100}, {"Net/round-trip/fc", "µs", 100}, {"Boot/qemu", "ms-boot", 100}, {"Block/read/fc", "MiB/s", 100}, {"queue.PopPush/go", "ns/op", 100},
		{"Pods/1/fc", "KiB-vmm", 100}, {"Old/fc", "ms", 1},
	})
	const want = ` +6.0 %  Boot/qemu ms-boot: 106, 100 in the other run
  -6.0 %  Block/read/fc MiB/s: 94, 100 in the other run
3 of 5 figures in counted time are within 5 % of the other run's
`
	if got := strings.TrimLeft(out.String(), " "); far != 2 || got != strings.TrimLeft(want, " ") {
		t.Errorf("%d far:\n%s", far, out.String())
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
