package cgroup

import (
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/containerd/cgroups/v3/cgroup2/stats"
	"golang.org/x/sys/unix"
)

// readPressure reads how long processes stood still for want of something (kernel, Documentation/accounting/psi.rst), lines
// like "some avg10=0.12 avg60=0.00 avg300=0.00 total=345". It is nil where the kernel does not count that.
func readPressure(path string) (*stats.PSIStats, error) {
	text, err := read(path)
	if errors.Is(err, unix.EOPNOTSUPP) { // by psi=0
		return nil, nil
	}
	if err != nil || text == "" {
		return nil, err
	}
	p := &stats.PSIStats{}
	for line := range strings.Lines(text) {
		kind, values, _ := strings.Cut(strings.TrimSpace(line), " ")
		d := &stats.PSIData{}
		switch kind {
		case "some":
			p.Some = d
		case "full":
			p.Full = d
		default:
			continue
		}
		averages := map[string]*float64{"avg10": &d.Avg10, "avg60": &d.Avg60, "avg300": &d.Avg300}
		for _, field := range strings.Fields(values) {
			key, value, _ := strings.Cut(field, "=")
			var err error
			if into := averages[key]; into != nil {
				*into, err = strconv.ParseFloat(value, 64)
			} else if key == "total" {
				d.Total, err = parse(value)
			}
			if err != nil {
				return nil, fmt.Errorf("%s: %s: %w", path, key, err)
			}
		}
	}
	return p, nil
}
