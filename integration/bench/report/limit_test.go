package main

import (
	"strings"
	"testing"
)

func TestParseLimits(t *testing.T) {
	text := "# Limits\n| figure | limit | what |\n| --- | --- | --- |\n" +
		"| `Run/fc` ms | ≤ 2 × `Run/runc` | a run |\n" +
		"| `Boot/fc` ms | ≤ 125 and ≤ 0.5 × `Boot/qemu` | a boot |\n" +
		"| `Block/read-seq/fc` MiB/s | ≥ 0.9 × `Block/read-seq/qemu` | |\n" +
		"| `Execs/fc` ms-last | ≤ 1.1 × `Execs/fc` ms-first | |\n" +
		"| another table | ≤ 3 | |\n"
	limits, err := parseLimits(text)
	if err != nil {
		t.Fatal(err)
	}
	want := []string{
		"Run/fc ms ≤ 2 × Run/runc", "Boot/fc ms ≤ 125", "Boot/fc ms ≤ 0.5 × Boot/qemu",
		"Block/read-seq/fc MiB/s ≥ 0.9 × Block/read-seq/qemu", "Execs/fc ms-last ≤ 1.1 × Execs/fc ms-first",
	}
	if len(limits) != len(want) {
		t.Fatalf("%d limits, want %d: %v", len(limits), len(want), limits)
	}
	for i, l := range limits {
		if l.String() != want[i] {
			t.Errorf("limit %d is %q, want %q", i, l, want[i])
		}
	}
}

func TestParseLimitsRefuses(t *testing.T) {
	for _, tt := range []struct{ row, err string }{
		{"| `Run/fc` | ≤ 2 |", "is no figure"},
		{"| `Run/fc` ms | < 2 |", "is no limit"},
		{"| `Run/fc` ms | ≤ 2 or so |", "is no limit"},
		{"| `Run/fc` ms | ≤ 1.2.3 |", "invalid syntax"},
		{"| Run/fc ms | ≤ 2 |", "no limit found"},
	} {
		if _, err := parseLimits(tt.row + "\n"); err == nil || !strings.Contains(err.Error(), tt.err) {
			t.Errorf("%s: %v, want an error with %q", tt.row, err, tt.err)
		}
	}
}

func TestJudge(t *testing.T) {
	figures := []Figure{{"Run/fc", "ms", 610}, {"Run/runc", "ms", 344}, {"Block/fc", "MiB/s", 90}, {"Block/qemu", "MiB/s", 100}, {"Queue/go", "allocs/op", 0}}
	for _, tt := range []struct {
		row string
		ok  bool
	}{
		{"| `Run/fc` ms | ≤ 610 |", true},
		{"| `Run/fc` ms | ≤ 609.9 |", false},
		{"| `Run/fc` ms | ≤ 1.8 × `Run/runc` |", true},
		{"| `Run/fc` ms | ≤ 1.7 × `Run/runc` |", false},
		{"| `Block/fc` MiB/s | ≥ 0.9 × `Block/qemu` |", true},
		{"| `Block/fc` MiB/s | ≥ 0.91 × `Block/qemu` |", false},
		{"| `Queue/go` allocs/op | ≤ 0 |", true},
		{"| `Queue/go` B/op | ≤ 0 |", false}, // not measured
		{"| `Run/fc` ms | ≤ 2 × `Run/kata` |", false},
	} {
		limits, err := parseLimits(tt.row)
		if err != nil {
			t.Fatal(err)
		}
		if v := judge(limits, figures)[0]; v.ok != tt.ok {
			t.Errorf("%v, want %t", v, tt.ok)
		}
	}
}

func TestParseFigures(t *testing.T) {
	out := "goos: linux\npkg: " + benchPackage + "\nBenchmarkRun/fc         \t       3\t       610.4 ms\t 12 ms-boot\npkg: example.com/block\nBenchmarkRead4K-2  2000  512.0 ns/op  0 B/op  0 allocs/op\n" +
		"BenchmarkNoise of a log 12 x\n--- BENCH: BenchmarkRun/fc\nPASS\n"
	got, err := parseFigures(strings.NewReader(out))
	if err != nil {
		t.Fatal(err)
	}
	want := []Figure{{"Run/fc", "ms", 610.4}, {"Run/fc", "ms-boot", 12}, {"block.Read4K/go", "ns/op", 512}, {"block.Read4K/go", "B/op", 0}, {"block.Read4K/go", "allocs/op", 0}}
	if len(got) != len(want) {
		t.Fatalf("%v, want %v", got, want)
	}
	for i := range got {
		if got[i] != want[i] {
			t.Errorf("%v, want %v", got[i], want[i])
		}
	}
}
