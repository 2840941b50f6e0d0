package harness

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/pelletier/go-toml/v2"
)

// Settings are keys of fc.toml and their values.
type Settings map[string]any

// settings are what every configuration of the tests starts from.
func (c *Containerd) settings() Settings {
	s := Settings{
		"kernel": filepath.Join(c.Bin, "vmlinux"),
		"image":  filepath.Join(c.Bin, "guest.img"),
		// The default of 30 s, stretched like the tests' own limits.
		"boot_timeout": Slow(30 * time.Second).String(),
		"debug":        true,
	}
	if os.Getenv(EnvConsole) == "1" {
		s["console_log"] = c.path("console")
	}
	return s
}

// consoles returns the consoles' logs, each at most its last 4 KiB.
func (c *Containerd) consoles() string {
	files, err := filepath.Glob(c.path("console", "*"))
	if err != nil {
		return err.Error()
	}
	var all strings.Builder
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			return err.Error()
		}
		fmt.Fprintf(&all, "%s:\n%s\n", filepath.Base(f), b[max(0, len(b)-4<<10):])
	}
	return all.String()
}

// defaults is the path of the configuration that containers get unless a test says otherwise.
func (c *Containerd) defaults() string { return c.path("fc.toml") }

func (c *Containerd) writeDefaults() error { return writeSettings(c.defaults(), c.settings()) }

// Config writes a configuration for one test: the tests' common settings with changes on top, where a nil value leaves out a key.
// It returns the file's path.
func (c *Containerd) Config(t testing.TB, changes Settings) string {
	t.Helper()
	s := c.settings()
	for key, value := range changes {
		if value == nil {
			delete(s, key)
			continue
		}
		s[key] = value
	}
	path := filepath.Join(t.TempDir(), "fc.toml")
	if err := writeSettings(path, s); err != nil {
		t.Fatal(err)
	}
	return path
}

func writeSettings(path string, s Settings) error {
	b, err := toml.Marshal(s)
	if err != nil {
		return err
	}
	return os.WriteFile(path, b, 0o600)
}
