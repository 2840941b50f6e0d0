package shim

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

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

func TestAgentErrorsAreHarmless(t *testing.T) {
	long := strings.Repeat("\u00e9", 1<<20)
	for name, tt := range map[string]struct{ in, want string }{
		"plain":          {"no such file", "no such file"},
		"lines":          {"a\n\tb\r\n", "a b"},
		"control":        {"a\x1b[31mb\x00\u202e\xff", "a?[31mb???"},
		"long":           {long, strings.Repeat("\u00e9", (maxErrorBytes-6)/2) + " [...]"},
		"long, of space": {strings.Repeat(" ", 1<<20) + "x", " [...]"},
	} {
		if got := oneLine(tt.in); got != tt.want {
			t.Errorf("%s: %d bytes: %.100q", name, len(got), got)
		}
	}
	sent := errgrpc.ToGRPC(fmt.Errorf("%s: %w", long, errdefs.ErrNotFound))
	if err := agentError(sent); len(err.Error()) > maxErrorBytes || !errdefs.IsNotFound(err) {
		t.Errorf("%d bytes, class %v", len(err.Error()), errdefs.Resolve(err))
	}
	if err := agentError(context.Canceled); !errdefs.IsCanceled(err) {
		t.Errorf("%v", err)
	}
	if sent := toStatus(errors.New(long)); len(sent.Error()) > 2*maxErrorBytes {
		t.Errorf("%d bytes go to containerd", len(sent.Error()))
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
		if got := (consoleLog{path: name}).tail(); got != want {
			t.Errorf("%q gives %q, want %q", text, got, want)
		}
	}
	// What an earlier VM of this name has said is not this one's.
	log := openConsole(name)
	if got := log.tail(); got != "" {
		t.Errorf("nothing new gives %q", got)
	}
	f, err := os.OpenFile(name, os.O_APPEND|os.O_WRONLY, 0)
	if err == nil {
		_, err = f.WriteString("mine\n")
		f.Close()
	}
	if got := log.tail(); err != nil || got != "mine" {
		t.Errorf("%q, %v", got, err)
	}
	log.from = 1 << 20
	if log.tail() == "" {
		t.Error("a log that has been shortened gives nothing")
	}
	if got := openConsole(filepath.Join(name, "x")).tail(); got != "" {
		t.Errorf("no file gives %q", got)
	}
}

// A call that waits for the connection, which ttrpc does with no regard to the context, holds nobody beyond its time.
func TestAskWithin(t *testing.T) {
	never := make(chan struct{})
	defer close(never)
	_, err := askWithin(t.Context(), 20*time.Millisecond, "Stats", func(context.Context, int) (int, error) {
		<-never
		return 0, nil
	}, 0)
	if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "guest agent, Stats: no answer within 20ms") {
		t.Errorf("error %v", err)
	}
}
