package main

import (
	"encoding/json"
	"fmt"
	"io"
	"math"
	"os"
	"strings"
)

// tolerance is how far a figure in counted time may be from the same one of another run of the same tree.
const tolerance = 0.05

// readResult reads a bench.json.
func readResult(path string) (r Result, err error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return r, err
	}
	if err := json.Unmarshal(text, &r); err != nil {
		return r, fmt.Errorf("%s: %w", path, err)
	}
	if len(r.Figures) == 0 {
		return r, fmt.Errorf("%s: no figures", path)
	}
	return r, nil
}

// counted tells whether a figure was taken with the clock: a time, or something by time.
func (f Figure) counted() bool {
	unit, _, _ := strings.Cut(f.Unit, "-")
	return unit == "ms" || unit == "µs" || strings.HasPrefix(unit, "ns") || strings.HasSuffix(unit, "/s")
}

// compare lists the figures of r in counted time that differ from other's by more than the tolerance, and says how many others there are.
func compare(w io.Writer, r, other []Figure) (far int) {
	same := 0
	for _, f := range r {
		v, ok := find(other, f.Name, f.Unit)
		if !ok || !f.counted() || v == 0 {
			continue
		}
		if d := f.Value/v - 1; math.Abs(d) >= tolerance {
			far++
			fmt.Fprintf(w, "%+6.1f %%  %s %s: %.4g, %.4g in the other run\n", 100*d, f.Name, f.Unit, f.Value, v)
		} else {
			same++
		}
	}
	fmt.Fprintf(w, "%d of %d figures in counted time are within %.0f %% of the other run's\n", same, same+far, 100*tolerance)
	return far
}
