package main

import (
	"fmt"
	"regexp"
	"strconv"
	"strings"
)

// limit is one promise of SPECIFICATION.md about a figure.
type limit struct {
	name, unit string
	// atLeast is for figures that should be large.
	atLeast bool
	// factor is the limit itself, or, if there is a peer, how many times the peer's figure.
	factor         float64
	peer, peerUnit string
}

func (l limit) String() string {
	sign := "≤"
	if l.atLeast {
		sign = "≥"
	}
	s := fmt.Sprintf("%s %s %s %s", l.name, l.unit, sign, number(l.factor))
	if l.peer != "" {
		s += " × " + l.peer
		if l.peerUnit != l.unit {
			s += " " + l.peerUnit
		}
	}
	return s
}

var (
	// figureCell and bound are a row's first two cells: "`Run/fc` ms" and "≤ 2 × `Run/runc`" or "≤ 1.1 × `Execs/fc` ms-first".
	figureCell = regexp.MustCompile("^`([^` ]+)` (\\S+)$")
	bound      = regexp.MustCompile("^(≤|≥) ([0-9.]+)(?: × `([^` ]+)`(?: (\\S+))?)?$")
)

// parseLimits reads the tables of SPECIFICATION.md whose first cell begins with a figure's name in backquotes: figure and unit,
// limits joined by "and". A row that looks like one and cannot be read is an error, so that no limit is lost by a slip of the pen.
func parseLimits(text string) ([]limit, error) {
	var limits []limit
	n := 0
	for line := range strings.Lines(text) {
		n++
		cells := strings.Split(strings.Trim(strings.TrimSpace(line), "|"), "|")
		if !strings.HasPrefix(line, "|") || len(cells) < 2 || !strings.HasPrefix(strings.TrimSpace(cells[0]), "`") {
			continue
		}
		cell := strings.TrimSpace(cells[0])
		m := figureCell.FindStringSubmatch(cell)
		if m == nil {
			return nil, fmt.Errorf("line %d: %q is no figure: want `NAME` UNIT", n, cell)
		}
		for _, one := range strings.Split(cells[1], " and ") {
			one = strings.TrimSpace(one)
			b := bound.FindStringSubmatch(one)
			if b == nil {
				return nil, fmt.Errorf("line %d: %q is no limit: want ≤ or ≥, a number, and perhaps × `NAME` [UNIT]", n, one)
			}
			l := limit{name: m[1], unit: m[2], atLeast: b[1] == "≥", peer: b[3], peerUnit: b[4]}
			if l.peerUnit == "" {
				l.peerUnit = l.unit
			}
			var err error
			if l.factor, err = strconv.ParseFloat(b[2], 64); err != nil {
				return nil, fmt.Errorf("line %d: %q: %w", n, one, err)
			}
			limits = append(limits, l)
		}
	}
	if len(limits) == 0 {
		return nil, fmt.Errorf("no limit found in any table")
	}
	return limits, nil
}

// verdict is what the figures say of a limit.
type verdict struct {
	limit limit
	ok    bool
	found string
}

func (v verdict) String() string {
	word := "ok    "
	if !v.ok {
		word = "MISSED"
	}
	return fmt.Sprintf("%s %s: %s", word, v.limit, v.found)
}

// judge holds figures against limits. A figure that was not measured breaks its limit.
func judge(limits []limit, figures []Figure) []verdict {
	verdicts := make([]verdict, len(limits))
	for i, l := range limits {
		verdicts[i] = l.judge(figures)
	}
	return verdicts
}

func (l limit) judge(figures []Figure) verdict {
	value, ok := find(figures, l.name, l.unit)
	if !ok {
		return verdict{limit: l, found: "not measured"}
	}
	most, found := l.factor, number(value)
	if l.peer != "" {
		peer, ok := find(figures, l.peer, l.peerUnit)
		if !ok || peer == 0 {
			return verdict{limit: l, found: l.peer + " was not measured"}
		}
		most *= peer
		found = fmt.Sprintf("%s to %s, %.2f ×", found, number(peer), value/peer)
	}
	ok = value <= most
	if l.atLeast {
		ok = value >= most
	}
	return verdict{limit: l, ok: ok, found: found}
}

// number prints a figure with three or four digits that say something.
func number(v float64) string {
	switch {
	case v == float64(int64(v)), v >= 1000:
		return strconv.FormatFloat(v, 'f', 0, 64)
	case v >= 100:
		return strconv.FormatFloat(v, 'f', 1, 64)
	default:
		return strings.TrimRight(strings.TrimRight(strconv.FormatFloat(v, 'f', 2, 64), "0"), ".")
	}
}
