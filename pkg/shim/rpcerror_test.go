package shim

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
)

func TestErrorsArriveInOneLine(t *testing.T) {
	inner := fmt.Errorf("a\nb: %w", errdefs.ErrUnavailable)
	err := errgrpc.ToNative(toStatus(fmt.Errorf("x (%w): %w; console", errors.Join(inner, errors.New("c")), errdefs.ErrUnavailable)))
	if want := "x (a b c); console"; err.Error() != want || !errdefs.IsUnavailable(err) {
		t.Errorf("%q, want %q", err, want)
	}
	if toStatus(nil) != nil {
		t.Error("nil became an error")
	}
}

func TestConsoleTail(t *testing.T) {
	name := filepath.Join(t.TempDir(), "log")
	for text, want := range map[string]string{
		"":                     "",
		"a\r\nb\r\nc\r\nd\r\n": "b | c | d",
		"a\n[1] Kernel panic - not syncing: x\nb\nc\nd\n": "[1] Kernel panic - not syncing: x",
	} {
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if got := consoleTail(name); got != want {
			t.Errorf("%q gives %q, want %q", text, got, want)
		}
	}
	if got := consoleTail(filepath.Join(name, "x")); got != "" {
		t.Errorf("no file gives %q", got)
	}
}
