package main

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"
)

// row is one thing measured, for everybody who was measured at it.
type row struct {
	what, unit string
	values     map[string]float64
}

// rows puts figures of the same kind beside each other, in the order in which they came.
func rows(figures []Figure) []row {
	var all []row
	index := map[[2]string]int{}
	for _, f := range figures {
		what, who := f.split()
		key := [2]string{what, f.Unit}
		i, ok := index[key]
		if !ok {
			i = len(all)
			index[key] = i
			all = append(all, row{what: what, unit: f.Unit, values: map[string]float64{}})
		}
		all[i].values[who] = f.Value
	}
	return all
}

// who lists those measured in r: ourselves first, then the peers.
func (r row) who() []string {
	var names []string
	for n := range r.values {
		names = append(names, n)
	}
	slices.SortFunc(names, func(a, b string) int {
		if (a == "fc") != (b == "fc") {
			if a == "fc" {
				return -1
			}
			return 1
		}
		return strings.Compare(a, b)
	})
	return names
}

// peers prints "runc 344 (1.77 ×)" for each but ourselves: how many times theirs ours is.
func (r row) peers() string {
	var all []string
	ours, have := r.values["fc"]
	for _, n := range r.who() {
		switch {
		case n == "fc":
		case have && ours > 0 && number(r.values[n]) != "0" && r.values[n] > 0: // else a ratio says nothing
			all = append(all, fmt.Sprintf("%s %s (%.2f ×)", n, number(r.values[n]), ours/r.values[n]))
		default:
			all = append(all, n+" "+number(r.values[n]))
		}
	}
	return strings.Join(all, ", ")
}

func (r row) ours() string {
	if v, ok := r.values["fc"]; ok {
		return number(v)
	}
	return ""
}

func printTable(w io.Writer, r Result) {
	fmt.Fprintf(w, "%s\n\n", r.title())
	t := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	fmt.Fprintf(t, "what\tunit\tfc\tpeers (ours to theirs)\n")
	for _, row := range rows(r.Figures) {
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\n", row.what, row.unit, row.ours(), row.peers())
	}
	_ = t.Flush() // its writer is a terminal or a pipe, whose reader may leave
	fmt.Fprintln(w)
}
