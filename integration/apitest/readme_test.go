package apitest

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// README's table of Firecracker's features names tests, and there are such.
func TestReadmeNamesTests(t *testing.T) {
	text, err := os.ReadFile("../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	_, table, _ := strings.Cut(string(text), "\n| Firecracker | here | tested by |\n")
	table, _, _ = strings.Cut(table, "\n\n")
	named := regexp.MustCompile("`((?:Test|Fuzz)[A-Za-z0-9]+|(?:pkg|integration)/[a-z0-9/]+)`").FindAllStringSubmatch(table, -1)
	if len(named) < 30 {
		t.Fatalf("only %d tests are named", len(named))
	}
	function := regexp.MustCompile(`(?m)^func ((?:Test|Fuzz)[A-Za-z0-9]+)\(`)
	there := map[string]bool{}
	err = filepath.WalkDir("../..", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() && d.Name() == ".git" || d.IsDir() && d.Name() == "bin" {
			return filepath.SkipDir
		}
		if !strings.HasSuffix(path, "_test.go") {
			return nil
		}
		source, err := os.ReadFile(path)
		for _, f := range function.FindAllSubmatch(source, -1) {
			there[string(f[1])] = true
		}
		there[strings.TrimPrefix(filepath.Dir(path), "../../")] = true
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range named {
		if !there[n[1]] {
			t.Errorf("README names %s, and there is no such test", n[1])
		}
	}
}
