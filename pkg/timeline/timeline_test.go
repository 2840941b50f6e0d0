package timeline

import (
	"maps"
	"slices"
	"testing"
	"time"
)

func TestPhases(t *testing.T) {
	tl := New(time.Now().Add(-time.Hour))
	tl.Mark("first")
	tl.Mark("second")
	tl.Set("aside", 1500*time.Nanosecond)
	f := tl.Fields()
	if got := slices.Sorted(maps.Keys(f)); !slices.Equal(got, []string{"aside", "first", "second", "total"}) {
		t.Errorf("phases %q", got)
	}
	if f["aside"] != "2µs" {
		t.Errorf("a phase measured elsewhere: %v, want 2µs", f["aside"])
	}
	parse := func(name string) time.Duration {
		d, err := time.ParseDuration(f[name].(string))
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		return d
	}
	// Each was rounded to 1 µs.
	first, second, total := parse("first"), parse("second"), parse("total")
	if first < time.Hour || (total-first-second).Abs() > 2*time.Microsecond {
		t.Errorf("first %v, second %v, total %v: the phases do not follow each other", first, second, total)
	}
}

func TestNilCostsNothing(t *testing.T) {
	var tl *Timeline
	if n := testing.AllocsPerRun(10, func() { tl.Mark("phase"); tl.Set("phase", 1) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
	if f := tl.Fields(); f != nil {
		t.Errorf("fields %v", f)
	}
}
