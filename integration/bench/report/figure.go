package main

import (
	"bufio"
	"io"
	"path"
	"regexp"
	"strconv"
	"strings"
)

// Figure is one measured value.
type Figure struct {
	// Name is the benchmark's, whose last element is who was measured: Run/fc.
	Name string `json:"name"`
	// Unit tells figures of one benchmark apart, and what they are in: what stands before a hyphen is the unit itself,
	// the rest says of what: ms, ms-boot, KiB-private, MiB/s, op/s, allocs/op.
	Unit  string  `json:"unit"`
	Value float64 `json:"value"`
}

// split cuts a figure's name into what is measured and who.
func (f Figure) split() (what, who string) {
	i := strings.LastIndexByte(f.Name, '/')
	if i < 0 {
		return f.Name, ""
	}
	return f.Name[:i], f.Name[i+1:]
}

// find returns the value of a figure.
func find(figures []Figure, name, unit string) (float64, bool) {
	for _, f := range figures {
		if f.Name == name && f.Unit == unit {
			return f.Value, true
		}
	}
	return 0, false
}

// benchPackage is the package whose benchmarks' names say who is measured.
const benchPackage = "github.com/fcshim/containerd-shim-fc-v2/integration/bench"

var (
	benchLine = regexp.MustCompile(`^Benchmark(\S+)\s+\d+\s+(.*\S)\s*$`)
	procs     = regexp.MustCompile(`-\d+$`)
)

// parseFigures reads Go's benchmark format (golang.org/design/14313-benchmark-format): a name, a count, pairs of value and unit.
// Other lines are left out. As a benchmark's name ends in -N where the machine has N > 1 CPUs, no name may end so by itself.
//
// A figure from elsewhere than integration/bench, which has a package's name before it, is about a piece of code: queue.PopPush/go.
func parseFigures(r io.Reader) ([]Figure, error) {
	var figures []Figure
	var prefix, suffix string
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		if pkg, ok := strings.CutPrefix(lines.Text(), "pkg: "); ok {
			if prefix, suffix = path.Base(pkg)+".", "/go"; pkg == benchPackage {
				prefix, suffix = "", ""
			}
		}
		m := benchLine.FindStringSubmatch(lines.Text())
		if m == nil {
			continue
		}
		fields := strings.Fields(m[2])
		if len(fields)%2 != 0 {
			continue
		}
		for i := 0; i < len(fields); i += 2 {
			v, err := strconv.ParseFloat(fields[i], 64)
			if err != nil {
				break // a line of the log that only looks like one
			}
			figures = append(figures, Figure{Name: prefix + procs.ReplaceAllString(m[1], "") + suffix, Unit: fields[i+1], Value: v})
		}
	}
	return figures, lines.Err()
}
