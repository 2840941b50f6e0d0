package hold

import (
	"os"
	"os/exec"
	"strings"
	"testing"
)

// TestStartLean: a child has no huge pages from its first instruction, and this process has them again.
func TestStartLean(t *testing.T) {
	huge := func(pid string) bool {
		b, err := os.ReadFile("/proc/" + pid + "/status")
		if err != nil {
			t.Fatal(err)
		}
		_, after, ok := strings.Cut(string(b), "THP_enabled:")
		if !ok {
			t.Skip("this kernel does not tell")
		}
		return strings.HasPrefix(strings.TrimSpace(after), "1")
	}
	if !huge("self") {
		t.Skip("this process has none")
	}
	cmd := exec.Command("grep", "THP_enabled", "/proc/self/status")
	var out strings.Builder
	cmd.Stdout = &out
	if err := StartLean(cmd.Start); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil || strings.TrimSpace(strings.TrimPrefix(out.String(), "THP_enabled:")) != "0" {
		t.Errorf("the child has %q, %v", out.String(), err)
	}
	if !huge("self") {
		t.Error("this process has none any more")
	}
	if err := StartLean(func() error { return os.ErrInvalid }); err != os.ErrInvalid || !huge("self") {
		t.Errorf("after an error: %v", err)
	}
}
