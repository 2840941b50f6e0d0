package main

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
)

// The table in README.md stands between these.
const (
	tableBegin = "<!-- bench: begin -->\n"
	tableEnd   = "<!-- bench: end -->\n"
)

// publish renews docs/bench.svg and README.md's table.
func publish(root string, r Result) error {
	if err := os.MkdirAll(filepath.Join(root, "docs"), 0o755); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(root, "docs", "bench.svg"), chart(r), 0o644); err != nil {
		return err
	}
	readme := filepath.Join(root, "README.md")
	text, err := os.ReadFile(readme)
	if err != nil {
		return err
	}
	renewed, err := replaceTable(string(text), markdown(r))
	if err != nil {
		return fmt.Errorf("%s: %w", readme, err)
	}
	return os.WriteFile(readme, []byte(renewed), 0o644)
}

func replaceTable(text, table string) (string, error) {
	before, rest, begun := strings.Cut(text, tableBegin)
	_, after, ended := strings.Cut(rest, tableEnd)
	if !begun || !ended {
		return "", fmt.Errorf("want the lines %q and %q around the table", strings.TrimSpace(tableBegin), strings.TrimSpace(tableEnd))
	}
	return before + tableBegin + table + tableEnd + after, nil
}

// listed are rows that are in README's table without a peer, too.
var listed = regexp.MustCompile(`^(Socket|Start/1cpu-128MiB|Pods/.*|Size/.*)$`)

// markdown is the picture, and the table of what has peers, and of weights; the rest is in bench.json.
func markdown(r Result) string {
	var b strings.Builder
	fmt.Fprintf(&b, "![bars beside the peers', and a start's phases](docs/bench.svg)\n\n%s:\n\n| what | unit | fc | peers (ours to theirs) |\n| --- | --- | --- | --- |\n", r.title())
	for _, row := range rows(r.Figures) {
		if _, ours := row.values["fc"]; ours && (len(row.values) > 1 || listed.MatchString(row.what)) {
			fmt.Fprintf(&b, "| %s | %s | %s | %s |\n", row.what, row.unit, row.ours(), row.peers())
		}
	}
	return b.String()
}
