package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"time"
)

// Result is bench.json.
type Result struct {
	Date string `json:"date"`
	// Commit is what was measured; "-dirty" if the tree had more than that.
	Commit string `json:"commit"`
	// Clock is "counted", 1 ns an instruction, or "wall".
	Clock   string   `json:"clock"`
	Rounds  int      `json:"rounds"`
	Figures []Figure `json:"figures"`
}

// commitOf says what a tree is, as far as git knows.
func commitOf(ctx context.Context, root string) string {
	git := exec.CommandContext(ctx, "git", "describe", "--always", "--dirty", "--exclude=*")
	git.Dir = root
	commit, err := git.Output()
	if err != nil {
		return "unknown"
	}
	return strings.TrimSpace(string(commit))
}

func newResult(o options, commit string, figures []Figure) Result {
	return Result{Date: time.Now().UTC().Format(time.DateOnly), Commit: commit, Clock: o.clock, Rounds: o.rounds, Figures: figures}
}

// title says of what a table or a picture is.
func (r Result) title() string {
	clock := "counted time (1 ns an instruction, host and guest)"
	if r.Clock == wall {
		clock = "wall time, " + runtime.GOARCH
	}
	return fmt.Sprintf("%s, commit %s, %s, medians", r.Date, r.Commit, clock)
}

func (r Result) write(dir string) error {
	text, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	for name, content := range map[string][]byte{"bench.json": append(text, '\n'), "bench.svg": chart(r)} {
		if err := os.WriteFile(filepath.Join(dir, name), content, 0o644); err != nil {
			return err
		}
	}
	say("written: %s and %s", filepath.Join(dir, "bench.json"), filepath.Join(dir, "bench.svg"))
	return nil
}
