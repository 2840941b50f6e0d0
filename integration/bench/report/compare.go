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

// compare lists the figures in counted time that differ by more than the tolerance, or that only one of the two runs has, and fails if there are any.
func compare(w io.Writer, r, other Result) error {
	if r.Clock != counted || other.Clock != counted {
		return fmt.Errorf("a run by the %s clock and one by the %s clock: want two counted ones", r.Clock, other.Clock)
	}
	same, far := 0, 0
	for _, f := range r.Figures {
		if !f.counted() {
			continue
		}
		v, ok := find(other.Figures, f.Name, f.Unit)
		switch d := f.Value/v - 1; {
		case !ok:
			far++
			fmt.Fprintf(w, "          %s %s: %.4g, not in the other run\n", f.Name, f.Unit, f.Value)
		case f.Value != v && !(math.Abs(d) < tolerance):
			far++
			fmt.Fprintf(w, "%+6.1f %%  %s %s: %.4g, %.4g in the other run\n", 100*d, f.Name, f.Unit, f.Value, v)
		default:
			same++
		}
	}
	for _, f := range other.Figures {
		if _, ok := find(r.Figures, f.Name, f.Unit); f.counted() && !ok {
			far++
			fmt.Fprintf(w, "          %s %s: %.4g in the other run only\n", f.Name, f.Unit, f.Value)
		}
	}
	fmt.Fprintf(w, "%d of %d figures in counted time are within %.0f %% of the other run's\n", same, same+far, 100*tolerance)
	if far > 0 {
		return fmt.Errorf("%d figures differ from the other run's", far)
	}
	return nil
}
