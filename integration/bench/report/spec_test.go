package main

import (
	"os"
	"path"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// Each limit of SPECIFICATION.md is about something that -check measures.
func TestSpecification(t *testing.T) {
	text, err := os.ReadFile("../../../SPECIFICATION.md")
	if err != nil {
		t.Fatal(err)
	}
	limits, err := parseLimits(string(text))
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range limits {
		for _, name := range []string{l.name, l.peer} {
			if name != "" && !measured(name) {
				t.Errorf("%s: nobody measures %s", l, name)
			}
		}
	}
	for _, name := range []string{"Run/kata", "Pods/50/fc", "block.Write4K/go", "net/go", "Size"} {
		if measured(name) {
			t.Errorf("%s is taken for something that is measured", name)
		}
	}
}

// measured tells whether short's parts have a figure of that name, as far as patterns and packages say.
func measured(name string) bool {
	if what, ok := strings.CutSuffix(name, "/go"); ok {
		pkg, bench, ok := strings.Cut(what, ".")
		bench, _, _ = strings.Cut(bench, "/")
		known := slices.ContainsFunc(microPackages(), func(p string) bool { return path.Base(p) == pkg })
		return ok && known && regexp.MustCompile(code().bench).MatchString("Benchmark"+bench)
	}
	if strings.HasPrefix(name, "Size/") {
		return true
	}
	first, second, _ := strings.Cut(name, "/")
	second, _, _ = strings.Cut(second, "/")
	return slices.ContainsFunc(short(), func(p part) bool {
		benches, rest, _ := strings.Cut(p.bench, "/")
		return !p.micro && regexp.MustCompile(benches).MatchString("Benchmark"+first) && regexp.MustCompile(rest).MatchString(second)
	})
}
