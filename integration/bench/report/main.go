// Command report runs the benchmarks and tells what they say:
//
//	report [-check] [-only PATTERN] [-rounds N] [-clock counted|wall] [-out DIR] [-publish] [-from FILE] [-against FILE]
//
// It prints one table, each figure beside its peers' from the same run, and writes it to DIR as bench.json and, as a picture,
// bench.svg. Then it holds the figures against the limits in SPECIFICATION.md; one that is missed, or that nobody measured, is
// exit status 1. With -check it runs only what those limits need. With -publish it also renews the picture and the table in README.md.
// With -from, the figures are those of an earlier run's bench.json; with -against, those in counted time that another run's bench.json
// has otherwise, by 5 % or more, are listed and an error.
//
// It must never hold a time against a limit that was not counted.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"regexp"
	"syscall"
	"time"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	err := run(ctx, os.Args[1:])
	switch {
	case errors.Is(err, flag.ErrHelp):
	case err != nil:
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// options are the command line.
type options struct {
	root, bin, out string
	from, against  string
	check, publish bool
	only           *regexp.Regexp
	rounds         int
	clock          string
}

// Clocks.
const (
	counted = "counted" // nested machines that count instructions: figures repeat
	wall    = "wall"    // wherever kvmhost runs things; of use on real KVM
)

func parse(args []string) (options, error) {
	var o options
	f := flag.NewFlagSet("report", flag.ContinueOnError)
	f.StringVar(&o.root, "root", ".", "the source tree")
	f.StringVar(&o.out, "out", "", "folder for bench.json and bench.svg (default ROOT/bin)")
	f.BoolVar(&o.check, "check", false, "run only what SPECIFICATION.md's limits need")
	f.BoolVar(&o.publish, "publish", false, "renew the picture and the table in README.md")
	f.StringVar(&o.from, "from", "", "take the figures from this bench.json: measure nothing")
	f.StringVar(&o.against, "against", "", "list what differs from this bench.json by 5 % or more")
	only := f.String("only", ".", "run only the parts whose name matches")
	f.IntVar(&o.rounds, "rounds", 0, "samples of each figure, where its part has no number of its own (default 5)")
	f.StringVar(&o.clock, "clock", counted, "counted or wall")
	if err := f.Parse(args); err != nil {
		return o, err
	}
	var err error
	if o.only, err = regexp.Compile(*only); err != nil {
		return o, fmt.Errorf("-only is %q: want a regular expression: %w", *only, err)
	}
	switch {
	case f.NArg() > 0:
		return o, fmt.Errorf("argument %q is not expected: want options only", f.Arg(0))
	case o.clock != counted && o.clock != wall:
		return o, fmt.Errorf("-clock is %q: want %s or %s", o.clock, counted, wall)
	case o.publish && (o.check || *only != "." || o.clock == wall):
		return o, errors.New("-publish: want no -check, -only or -clock wall with it: it is for all figures of one run in counted time")
	case o.rounds < 0:
		return o, fmt.Errorf("-rounds is %d: want 1 or more", o.rounds)
	}
	if o.rounds == 0 {
		o.rounds = 5
	}
	if o.root, err = filepath.Abs(o.root); err != nil {
		return o, err
	}
	o.bin = filepath.Join(o.root, "bin")
	if o.out == "" {
		o.out = o.bin
	}
	return o, nil
}

func run(ctx context.Context, args []string) error {
	o, err := parse(args)
	if err != nil {
		return err
	}
	text, err := os.ReadFile(filepath.Join(o.root, "SPECIFICATION.md"))
	if err != nil {
		return err
	}
	limits, err := parseLimits(string(text))
	if err != nil {
		return fmt.Errorf("SPECIFICATION.md: %w", err)
	}
	var other Result
	if o.against != "" { // before this run's figures take the place of an earlier one's
		if other, err = readResult(o.against); err != nil {
			return err
		}
	}
	began := time.Now()
	r, failed := obtain(ctx, o)
	if len(r.Figures) == 0 {
		return failed
	}
	printTable(os.Stdout, r)
	if err := r.write(o.out); err != nil {
		return err
	}
	if o.against != "" {
		failed = errors.Join(failed, compare(os.Stdout, r, other))
	}
	if r.Clock != counted || o.only.String() != "." {
		say("%d figures after %v; their limits are for a whole run in counted time", len(r.Figures), time.Since(began).Round(time.Second))
		return failed
	}
	missed := 0
	for _, v := range judge(limits, r.Figures) {
		fmt.Println(v)
		if !v.ok {
			missed++
		}
	}
	say("%d of %d limits hold, after %v", len(limits)-missed, len(limits), time.Since(began).Round(time.Second))
	if missed > 0 {
		failed = errors.Join(failed, fmt.Errorf("%d limits of SPECIFICATION.md are missed", missed))
	}
	if failed == nil && o.publish {
		failed = publish(o.root, r)
	}
	return failed
}

// obtain measures, or reads what was measured. Figures may come with an error: of the parts that failed.
func obtain(ctx context.Context, o options) (Result, error) {
	if o.from == "" {
		commit := commitOf(ctx, o.root) // now: it takes long
		figures, err := measure(ctx, o)
		return newResult(o, commit, figures), err
	}
	r, err := readResult(o.from)
	if err == nil && o.publish && r.Clock != counted {
		return Result{}, fmt.Errorf("-publish: %s is of a run by the %s clock: want a counted one", o.from, r.Clock)
	}
	return r, err
}

func say(format string, args ...any) { fmt.Fprintf(os.Stderr, "bench: "+format+"\n", args...) }
